"""What a distillation term is, and what it sees of student and teachers."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

from keras import ops

from keras_dlopt import _compat, checks
from keras_dlopt.config import Value
from keras_dlopt.errors import ModelError

Tensor = Any
_TINY = 1e-12


@dataclasses.dataclass(frozen=True)
class Compared:
    """One batch, as a term sees it; all numbers float32.

    Attributes:
        student: outputs of the student.
        teachers: outputs of each teacher, of the student's structure.
        heads: what each output is, `"softmax"` or `"sigmoid"` probabilities or
            `"linear"` values, in the outputs' structure; of the student, then of each
            teacher.
        student_features: path of a layer -> what it made of the batch.
        teacher_features: the same for each teacher.
        labels: what `fit` was given as `y`; None without labels.
        weights: of the places of each output, (batch, ...), in the outputs' structure:
            0 where Keras' losses leave a masked one out, and 1 on average; None where
            nothing is masked.
        feature_weights: path of a layer of the student -> the same of its features.
        projected: the student's features as the term's own projector maps them.
        gathered: a tensor's rows of all replicas, for terms that compare examples.
    """

    student: Any
    teachers: tuple[Any, ...]
    heads: tuple[Any, ...]
    student_features: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    teacher_features: tuple[dict[str, Tensor], ...] = ()
    labels: Any = None
    weights: Any = None
    feature_weights: dict[str, Any] = dataclasses.field(default_factory=dict)
    projected: Callable[[Tensor], Tensor] = lambda x: x
    gathered: Callable[[Tensor], Tensor] = lambda x: x


class Term(Value):
    """A loss between what student and teachers make of a batch.

    A subclass has the fields `weight` and, to look at layers, `student` and `teacher`:
    their paths, as `keras_dlopt.select` names them. Fields that are a `float` must be
    positive.
    """

    #: What the term's loss is multiplied with, beside the loss that was compiled.
    weight: float
    #: Numbers that may be 0.
    may_be_zero: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self):
        term: Any = self  # its subclasses are dataclasses
        for field in dataclasses.fields(term):
            if field.type is float:
                zero = field.name in self.may_be_zero
                check = checks.rate if zero else checks.positive
                value = check(getattr(self, field.name), name=field.name)
                self.keep(**{field.name: value})

    def __call__(self, seen: Compared) -> Tensor:
        """The loss of each example, (batch,), or of the batch, ()."""
        raise TypeError(f"{type(self).__name__} must define __call__().")

    def paths(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Paths of the layers it looks at, in the student and in the teacher."""
        return (), ()

    def projection(self, student: Any, teacher: Any) -> Any:
        """A layer that maps the student's features to the teacher's; None for none.

        Args:
            student: shape of the student's features, the batch first.
            teacher: shape of the teacher's.
        """
        del student, teacher

    def check_loss(self, loss: Any, *, name: str) -> None:
        """Refuses a compiled loss that takes linear outputs for something else."""
        del loss, name


def per_example(values: Tensor, weights: Any = None) -> Tensor:
    """The mean over all axes but the first, of places that count."""
    axes = list(range(1, len(values.shape)))
    if weights is not None:
        values = values * over(weights, values)
    return ops.mean(values, axis=axes) if axes else values


def over(weights: Tensor, values: Tensor) -> Tensor:
    """Weights of places, with the axes that the values have behind them."""
    behind = [1] * (len(values.shape) - len(weights.shape))
    return ops.reshape(weights, [*ops.shape(weights), *behind])


def weights_of(tensor: Any) -> Any:
    """What each place counts, on average 1; None without a mask.

    As Keras' losses have it: a mask leaves places out, and the mean is of the others.
    """
    mask = _compat.mask_of(tensor)
    if mask is None:
        return None
    mask = ops.cast(mask, "float32")
    return mask / ops.maximum(ops.mean(mask), _TINY)


def rows(values: Tensor) -> Tensor:
    """(batch, everything else)."""
    return ops.reshape(values, (-1, _product(values.shape[1:])))


def _product(shape: Any) -> int:
    size = 1
    for n in shape:
        if n is None:
            raise ModelError(
                f"A distillation term compares features of the shape {tuple(shape)}, "
                "whose size is open. Give the models inputs of a fixed size, or choose "
                "a layer after pooling."
            )
        size *= n
    return size
