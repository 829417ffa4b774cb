"""Losses that a learner adds to the compiled one."""

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
from keras import ops

from keras_dlopt import _compat, checks
from keras_dlopt.config import Value, frozen
from keras_dlopt.errors import ModelError
from keras_dlopt.runtime import replica_count

Tensor = Any
_TINY = 1e-30


@dataclasses.dataclass
class MixedRows:
    """One batch of a step, new and kept rows together.

    Attributes:
        x: inputs, in the model's structure.
        logits: of the model now, float32, (rows, classes) or the output's own shape.
        kept: logits from when a row was new, of the same shape; of new rows anything.
        memory: 1 for rows from the memory, 0 for others, float32, (rows,).
        added: whether the terms are in the loss.
    """

    x: Any
    logits: Tensor
    kept: Tensor
    memory: Tensor
    added: bool = False


class LearningTerm(Value):
    """A loss against forgetting, in addition to the compiled one."""

    #: Whether it needs what the model made of a row when that was new.
    keeps_logits = False
    #: Whether it means anything without classes.
    needs_classes = False

    def start(self, learner: Any) -> "StartedTerm":
        """The term with the state that it needs for this learner's model."""
        raise TypeError(f"{type(self).__name__} must define start().")


class StartedTerm:
    """A term at work: its variables, and its loss of a batch.

    Attributes:
        variables: its state, which snapshots hold.
    """

    variables: Sequence[Any] = ()

    def loss(self, rows: MixedRows) -> Tensor:
        """The loss of the batch, ()."""
        raise TypeError(f"{type(self).__name__} must define loss().")

    def anchor(self, x: Any, y: Any) -> None:
        """The model as it is now is to be remembered; examples of what it knows."""

    def release(self) -> None:
        """What was remembered holds no longer."""


@keras.saving.register_keras_serializable("keras_dlopt")
@frozen
class DarkExperience(LearningTerm):
    """Kept rows give the logits that they gave when they were new.

    `weight * mean((z - z_kept)^2)` over the kept rows and the classes; the labels of
    kept rows count as `Replay(weight=)` says: with them this is DER++, with 0 DER.
    Logits are those of the prediction that came before the row was learned; heads with
    a softmax or sigmoid have the logarithms of their probabilities.

    Args:
        weight: of the squared difference; alpha in the paper.

    Raises:
        ConfigError: for a weight that is not positive.

    Example:
        >>> DarkExperience(0.3)
        DarkExperience(weight=0.3)

    Source: Buzzega et al., "Dark Experience for General Continual Learning"
    (arXiv:2004.07211), equations 5 and 6.
    """

    weight: float = 0.5
    keeps_logits = True

    def __post_init__(self):
        self.keep(weight=checks.positive(self.weight, name="weight"))

    def start(self, learner):
        return _StartedDarkExperience(self.weight)


class _StartedDarkExperience(StartedTerm):
    def __init__(self, weight: float):
        self.weight = weight

    def loss(self, rows):
        far = ops.square(rows.logits - rows.kept)
        far = ops.mean(ops.reshape(far, (ops.shape(far)[0], -1)), axis=-1)
        number = ops.maximum(ops.sum(rows.memory), 1.0)
        return self.weight * ops.sum(rows.memory * far) / number


def logits(outputs: Tensor, head: str) -> Tensor:
    """Logits of outputs that are probabilities, or logits already; float32.

    Args:
        outputs: (rows, classes).
        head: `"softmax"`, `"sigmoid"` or `"linear"`.
    """
    outputs = ops.cast(outputs, "float32")
    if head == "softmax":
        return ops.log(ops.maximum(outputs, _TINY))
    if head == "sigmoid":
        likely = ops.log(ops.maximum(outputs, _TINY))
        return likely - ops.log(ops.maximum(1.0 - outputs, _TINY))
    return outputs


class Terms:
    """The terms of a learner, put into the loss that the model's steps compute.

    Outside of a learner's step the model's `compute_loss` is what it was.

    Args:
        model: compiled.
        started: the terms.
        see: logits of an output.
    """

    def __init__(
        self,
        model: Any,
        started: Sequence[StartedTerm],
        see: Callable[[Any], Tensor],
    ):
        self.started, self._see = tuple(started), see
        self._here = threading.local()
        if started:
            plain = model.compute_loss

            def compute_loss(*args: Any, **kwargs: Any) -> Any:
                given = dict(zip(("x", "y", "y_pred"), args, strict=False)) | kwargs
                return self._with_terms(plain(*args, **kwargs), given.get("y_pred"))

            _compat.replace_method(model, "compute_loss", compute_loss)

    def _with_terms(self, loss: Tensor, outputs: Any) -> Tensor:
        rows = getattr(self._here, "rows", None)
        if rows is None or rows.added:
            return loss
        rows.added = True
        rows.logits = self._see(outputs)
        total = sum(term.loss(rows) for term in self.started)
        # Replicas add their gradients up; means over all rows are wanted.
        return loss + ops.cast(total, loss.dtype) / replica_count()

    @contextlib.contextmanager
    def over(self, rows: MixedRows, *, name: str) -> Iterator[None]:
        """Inside, a step of the model has these rows' terms in its loss.

        Raises:
            ModelError: for a step that computes its loss without `compute_loss`.
        """
        self._here.rows = rows
        try:
            yield
        finally:
            self._here.rows = None
        if self.started and not rows.added:
            raise ModelError(
                f"The train step of {name!r} is its own and does not call this model's "
                "compute_loss(), so that terms would change nothing. Call "
                "self.compute_loss(x, y, y_pred) there, or leave out terms=; replay "
                "from the memory works with any train step."
            )
