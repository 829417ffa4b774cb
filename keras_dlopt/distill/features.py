"""Distillation between layers inside student and teacher."""

from typing import Any

import keras
from keras import ops

from keras_dlopt import checks
from keras_dlopt.config import frozen
from keras_dlopt.distill.term import (
    Compared,
    Tensor,
    Term,
    over,
    per_example,
    rows,
)
from keras_dlopt.errors import ConfigError

_TINY = 1e-12


@frozen
class _Layers(Term):
    """A term that looks at one layer of each side."""

    def paths(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        return (self.student,), (self.teacher,)  # type: ignore[attr-defined]

    def __post_init__(self):
        super().__post_init__()
        term: Any = self
        checks.text(term.student, name="student")
        checks.text(term.teacher, name="teacher")
        self.keep(which=checks.whole(term.which, name="which", least=0))

    def _features(self, seen: Compared) -> tuple[Tensor, Tensor]:
        term: Any = self
        student = seen.student_features[term.student]
        return student, seen.teacher_features[term.which][term.teacher]

    def _weights(self, seen: Compared, values: Tensor) -> Any:
        """What the places of the compared features count; None if all the same."""
        term: Any = self
        weights = seen.feature_weights.get(term.student)
        if weights is not None and weights.shape[1:] != values.shape[1:2]:
            raise ConfigError(
                f"{term.student!r} is masked, and {term.teacher!r} has features of "
                f"another length, {values.shape[1]}, so it is not clear which of them "
                "are left out. Choose layers of one length."
            )
        return weights


@keras.saving.register_keras_serializable("keras_dlopt")
@frozen
class FeatureDistillation(_Layers):
    """The student's features, through a learned projector, come close to the teacher's.

    The mean of `(P(f_student) - f_teacher)^2`. The projector P is a dense map of the
    channels, in convolutional features a 1x1 convolution; it trains with the student
    and is left out of the finalized model. Where heights and widths, or lengths, differ
    the larger features are resized to the smaller by bilinear interpolation.

    Args:
        student: path of the student's layer.
        teacher: path of the teacher's layer.
        projector: `"linear"`; None for features of one width as they are; `"auto"` for
            a projector where the widths differ.
        which: which of several teachers, from 0.
        weight: of this loss beside the compiled one.

    Raises:
        ConfigError: for layers that are not there, and with `projector=None` for
            features of several widths.

    Example:
        >>> FeatureDistillation("conv2", "block3/out")
        FeatureDistillation(student='conv2', teacher='block3/out')

    Source: Romero et al., "FitNets: Hints for Thin Deep Nets" (arXiv:1412.6550), eq. 3,
    with the mean in place of half the sum.
    """

    student: str
    teacher: str
    projector: str | None = "auto"
    which: int = 0
    weight: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        checks.choice(
            self.projector, name="projector", choices=("auto", "linear", None)
        )

    def projection(self, student, teacher):
        if len(student) != len(teacher):
            raise ConfigError(
                f"Features must have as many axes on both sides. Received: "
                f"{self.student!r} with {tuple(student)}, {self.teacher!r} with "
                f"{tuple(teacher)}. Choose layers of one kind, both before or both "
                "after pooling."
            )
        same = student[-1] == teacher[-1]
        if self.projector is None and not same:
            raise ConfigError(
                f"{self.student!r} has {student[-1]} channels and {self.teacher!r} "
                f"{teacher[-1]}. Use projector='linear'."
            )
        if self.projector is None or (self.projector == "auto" and same):
            return None
        return keras.layers.Dense(teacher[-1], use_bias=False)

    def __call__(self, seen):
        student, teacher = self._features(seen)
        student, teacher = of_one_size(seen.projected(student), teacher)
        weights = self._weights(seen, student)
        return per_example(ops.square(student - teacher), weights)


def of_one_size(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Feature maps or sequences, the larger ones resized to the smaller."""
    if len(a.shape) not in (3, 4) or a.shape[1:-1] == b.shape[1:-1]:
        return a, b
    size = tuple(min(n, m) for n, m in zip(a.shape[1:-1], b.shape[1:-1], strict=True))
    return _resized(a, size), _resized(b, size)


def _resized(x: Tensor, size: tuple[int, ...]) -> Tensor:
    if tuple(x.shape[1:-1]) == size:
        return x
    if len(x.shape) == 3:
        return ops.squeeze(_resized(ops.expand_dims(x, 1), (1, *size)), 1)
    return ops.image.resize(x, size, antialias=True, data_format="channels_last")


@keras.saving.register_keras_serializable("keras_dlopt")
@frozen
class AttentionTransfer(_Layers):
    """Where in an image the features are large is where the teacher's are.

    The mean over positions of `(a_student - a_teacher)^2` with `a = A / ||A||_2` and A
    the mean over channels of the squared features. No width needs to fit.

    Args:
        student: path of the student's layer.
        teacher: path of the teacher's layer.
        which: which of several teachers, from 0.
        weight: of this loss; the maps are small numbers: the paper takes about 1000.

    Raises:
        ConfigError: for layers that are not there.

    Example:
        >>> AttentionTransfer("conv2", "conv4", weight=1000.0)
        AttentionTransfer(student='conv2', teacher='conv4')

    Source: Zagoruyko, Komodakis, "Paying More Attention to Attention"
    (arXiv:1612.03928), eq. 2, with the squared difference of the authors' code.
    """

    student: str
    teacher: str
    which: int = 0
    weight: float = 1000.0

    def projection(self, student, teacher):
        for path, shape in ((self.student, student), (self.teacher, teacher)):
            if len(shape) not in (3, 4):
                raise ConfigError(
                    f"Attention maps need features with positions, (batch, height, "
                    f"width, channels) or (batch, length, channels). {path!r} has "
                    f"{tuple(shape)}. Choose a layer before pooling or flattening."
                )

    def __call__(self, seen):
        maps = [
            ops.mean(ops.square(one), axis=-1, keepdims=True)
            for one in self._features(seen)
        ]
        maps = list(of_one_size(*maps))
        weights = self._weights(seen, maps[0])
        maps = [_only(weights, one) for one in maps]
        student, teacher = (_unit(rows(one)) for one in maps)
        return per_example(ops.square(student - teacher), weights)


def _only(weights: Any, x: Tensor) -> Tensor:
    """Features with 0 in place of what is masked."""
    if weights is None:
        return x
    return ops.where(over(weights, x) > 0, x, 0.0)


def _unit(x: Tensor) -> Tensor:
    square = ops.sum(ops.square(x), axis=-1, keepdims=True)
    return x * ops.rsqrt(ops.maximum(square, _TINY))


@keras.saving.register_keras_serializable("keras_dlopt")
@frozen
class RelationalDistillation(_Layers):
    """Distances and angles between the examples of a batch are as in the teacher.

    `distance * huber(d_student, d_teacher) + angle * huber(c_student, c_teacher)`: d
    the Euclidean distances of all pairs, divided by their mean, c the cosines of the
    angles of all triples. Widths need not fit. On several replicas the examples of all
    count; memory grows with the third power of the batch where `angle` is not 0.

    Args:
        student: path of the student's layer, such as the one before the head.
        teacher: path of the teacher's layer.
        distance: weight of the distances; 25 in the paper.
        angle: weight of the angles; 50 in the paper.
        which: which of several teachers, from 0.
        weight: of this loss beside the compiled one.

    Raises:
        ConfigError: for weights below 0, and for layers that are not there.

    Example:
        >>> RelationalDistillation("pool", "pool", angle=0.0)
        RelationalDistillation(student='pool', teacher='pool', angle=0.0)

    Source: Park et al., "Relational Knowledge Distillation" (arXiv:1904.05068), eq. 5
    to 8.
    """

    student: str
    teacher: str
    distance: float = 25.0
    angle: float = 50.0
    which: int = 0
    weight: float = 1.0

    may_be_zero = ("distance", "angle")

    def __call__(self, seen):
        both = [_only(self._weights(seen, x), x) for x in self._features(seen)]
        student, teacher = (seen.gathered(rows(x)) for x in both)
        loss = ops.zeros((), student.dtype)
        if self.distance:
            loss += self.distance * _huber(_distances(student), _distances(teacher))
        if self.angle:
            loss += self.angle * _huber(_angles(student), _angles(teacher))
        return loss


def _distances(x: Tensor) -> Tensor:
    """Of all pairs, divided by the mean of those of different examples."""
    square = ops.sum(ops.square(x), axis=1)
    gram = ops.matmul(x, ops.transpose(x))
    apart = square[:, None] + square[None, :] - 2.0 * gram
    apart = apart * (1.0 - ops.eye(ops.shape(x)[0], dtype=x.dtype))
    # The root has no gradient at 0, where an example meets itself or its double.
    there = ops.cast(apart > _TINY, apart.dtype)
    root = ops.sqrt(ops.where(apart > _TINY, apart, 1.0)) * there
    return root / ops.maximum(ops.sum(root) / ops.maximum(ops.sum(there), 1.0), _TINY)


def _angles(x: Tensor) -> Tensor:
    """Cosines of the angle at each example between each two others."""
    ways = _unit(x[None, :, :] - x[:, None, :])
    return ops.matmul(ways, ops.transpose(ways, (0, 2, 1)))


def _huber(a: Tensor, b: Tensor) -> Tensor:
    gap = ops.abs(a - b)
    return ops.mean(ops.where(gap < 1.0, 0.5 * gap * gap, gap - 0.5))
