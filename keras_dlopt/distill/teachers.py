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
from keras_dlopt.graph.trace import OPEN_DIMENSION, Call, Trace, input_specs, trace
from keras_dlopt.runtime.values import to_numpy

_HEADS = ("softmax", "sigmoid")
_ROWS = 32


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


def heads_of(model: Any, found: Trace, example: Any = None) -> tuple[str, ...]:
    """For each output: `"softmax"` or `"sigmoid"` probabilities, or `"linear"`.

    Where no layer says it (operations of a subclassed model, a Lambda, a Reshape), what
    the model makes of inputs drawn at random, and of the example, does.

    Args:
        model: that was traced.
        found: its trace.
        example: a batch of inputs, for models that do not run on what is drawn.

    Raises:
        ModelError: for those, without an example.
    """
    heads = [_head(found, tensor) for tensor in found.outputs]
    if None in heads:
        made = [keras.tree.flatten(one) for one in _runs(model, example)]
        for i, batches in enumerate(zip(*made, strict=True)):
            heads[i] = heads[i] or _head_of([to_numpy(one) for one in batches])
    return tuple(str(one) for one in heads)


def _head(found: Trace, tensor: int) -> str | None:
    """What the layer says that made an output; None if it does not."""
    made = [node for node in found.nodes if tensor in node.outputs]
    for node in made[:1]:  # the innermost call ends first
        kind = _compat.operation_name(node.layer) or type(node.layer).__name__
        function = getattr(node.layer, "activation", None)
        named = getattr(function, "__name__", kind).lower()
        if named in (*_HEADS, "linear"):
            return named
    return None


def _drawn(spec: Any) -> Any:
    """Inputs small and large, so that what is bounded is seen to be."""
    rng = np.random.default_rng(0)
    shape = (_ROWS, *(OPEN_DIMENSION if d is None else d for d in spec.shape[1:]))
    if not keras.backend.is_float_dtype(spec.dtype):
        return ops.convert_to_tensor(rng.integers(0, 2, shape), spec.dtype)
    scale = np.logspace(-2, 2, _ROWS).reshape(-1, *[1] * (len(shape) - 1))
    return ops.convert_to_tensor(scale * rng.normal(size=shape), spec.dtype)


def _head_of(batches: list[np.ndarray]) -> str:
    rows = np.concatenate([one.reshape(-1, one.shape[-1]) for one in batches])
    rows = rows.astype("float32")
    if not np.all((rows >= 0) & (rows <= 1)) or not np.any((rows > 0) & (rows < 1)):
        return "linear"
    if rows.shape[-1] > 1 and np.allclose(rows.sum(-1), 1, atol=1e-2):
        return "softmax"
    return "sigmoid"


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
        raise _asking(
            model, "zeros where its input leaves a size open", error
        ) from error


def _runs(model: Any, example: Any) -> list[Any]:
    """What the model makes of the example, and of inputs drawn at random."""
    made = [] if example is None else [model(example, training=False)]
    drawn = keras.tree.map_structure(_drawn, input_specs(model, example))
    try:
        made.append(model(drawn, training=False))
    except Exception as error:  # such as words that it does not know
        if example is None:
            raise _asking(model, "numbers drawn at random", error) from error
    return made


def _asking(model: Any, what: str, error: Exception) -> ModelError:
    return ModelError(
        f"{model.name!r} does not run on {what} ({reason(error)}). Pass example=, a "
        "batch of its inputs."
    )


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
