"""Teachers: what their outputs are, which layers are looked at, and moving averages."""

from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_dlopt import _compat, checks
from keras_dlopt.config import Value, frozen
from keras_dlopt.errors import ConfigError, ModelError
from keras_dlopt.graph.copying import reason
from keras_dlopt.graph.trace import Call, Trace, trace
from keras_dlopt.runtime.values import to_numpy

_HEADS = ("softmax", "sigmoid")


@keras.saving.register_keras_serializable("keras_dlopt")
@frozen
class MeanTeacher(Value):
    """The teacher is a moving average of the student's own weights.

    `w_teacher = decay * w_teacher + (1 - decay) * w_student` before each step, moving
    statistics included; it starts from the student. Of a transformed student these are
    the weights under the transforms, so that a quantized student learns from a float
    teacher that moves with it.

    Args:
        decay: share of the old average that stays with a step.

    Raises:
        ConfigError: for a decay outside [0, 1).

    Example:
        >>> MeanTeacher(0.99)
        MeanTeacher(decay=0.99)

    Source: Tarvainen, Valpola, "Mean teachers are better role models"
    (arXiv:1703.01780), section 2.
    """

    decay: float = 0.999

    def __post_init__(self):
        self.keep(decay=checks.decay(self.decay, name="decay"))


def heads_of(found: Trace) -> tuple[str, ...]:
    """For each output: `"softmax"` or `"sigmoid"` probabilities, or `"linear"`."""
    return tuple(_head(found, tensor) for tensor in found.outputs)


def _head(found: Trace, tensor: int) -> str:
    made = [node for node in found.nodes if tensor in node.outputs]
    for node in made[:1]:  # the innermost call ends first
        kind = _compat.operation_name(node.layer) or type(node.layer).__name__
        function = getattr(node.layer, "activation", None)
        named = getattr(function, "__name__", kind).lower()
        if named in _HEADS:
            return named
    return "linear"


def call_of(found: Trace, path: str, *, side: str, model: Any) -> Call:
    """The call of the layer that a term looks at.

    Raises:
        ConfigError: for a path that no layer has, and a layer that is called twice.
    """
    calls = [call for call in found.calls if call.path == path]
    if not calls:
        known = list(dict.fromkeys(call.path for call in found.calls))
        hint = checks.nearest(path, known)
        shown = ", ".join(known[:30]) + (", ..." if len(known) > 30 else "")
        raise ConfigError(
            f"The {side} {model.name!r} runs no layer {path!r}. "
            f"{hint or f'Its layers are: {shown}.'}"
        )
    if len(calls) > 1 or len(calls[0].outputs) != 1:
        raise ConfigError(
            f"The {side}'s layer {path!r} is called {len(calls)} times or gives "
            "several tensors, so it is not clear which one is meant. Choose a layer "
            "that is called once."
        )
    return calls[0]


def shape_of(found: Trace, path: str, *, side: str, model: Any) -> tuple[Any, ...]:
    """Shape of the features that a layer makes, the batch open."""
    call = call_of(found, path, side=side, model=model)
    layer: Any = call.layer
    if getattr(layer, "data_format", None) == "channels_first":
        raise ConfigError(
            f"The {side}'s layer {path!r} has its channels first; features are "
            "compared along the last axis. Build the model with "
            "data_format='channels_last'."
        )
    return (None, *found.specs[call.outputs[0]].shape[1:])


def surveyed(models: Iterable[Any], example: Any) -> list[Trace]:
    """One trace of each model.

    Raises:
        ModelError: for a model that does not run on zeros of a size of our choice.
    """
    return [_traced(model, example) for model in models]


def _traced(model: Any, example: Any) -> Trace:
    try:
        return trace(model, example)
    except Exception as error:
        if example is not None or isinstance(error, ModelError):
            raise
        raise ModelError(
            f"{model.name!r} does not run on zeros where its input leaves a size open "
            f"({reason(error)}). Pass example=, a batch of its inputs."
        ) from error


class Average:
    """A moving average of a model's weights, and the model run with it.

    Args:
        host: the Keras model that gets a weight for each average.
        model: whose weights are averaged.
        decay: share of the old average that stays.
    """

    def __init__(self, host: Any, model: Any, decay: float):
        self.decay, self.pairs = decay, []
        for number, variable in enumerate(model.variables):
            if keras.backend.is_float_dtype(variable.dtype):
                average = host.add_weight(
                    shape=variable.shape,
                    dtype=variable.dtype,
                    initializer=lambda *_, v=variable, **__: _copied(v),
                    trainable=False,
                    autocast=False,
                    aggregation="mean",
                    name=f"average_{number}",
                )
                self.pairs.append((variable, average))

    def update(self) -> None:
        """One step towards the weights as they are."""
        for variable, average in self.pairs:
            value = ops.convert_to_tensor(variable)
            average.assign(average + (1.0 - self.decay) * (value - average))

    def values(self) -> list[tuple[Any, Any]]:
        """Each variable with its average."""
        return [(v, ops.convert_to_tensor(average)) for v, average in self.pairs]


def _copied(variable: Any) -> Any:
    # JAX gives no buffer away twice.
    return ops.array(np.array(to_numpy(variable)), dtype=variable.dtype)
