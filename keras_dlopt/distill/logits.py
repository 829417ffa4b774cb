"""Distillation between the outputs of student and teacher."""

from typing import Any

import keras
from keras import ops

from keras_dlopt import checks
from keras_dlopt.config import frozen
from keras_dlopt.distill.term import Compared, Tensor, Term, per_example
from keras_dlopt.errors import ConfigError, DataError

_TINY = 1e-30
_FLAT = 1e-16  # product of two sums of squares of probabilities
_FAR = 1e4  # a logit that far below the others has the probability 0

_OF_VALUES = (
    "cosinesimilarity",
    "huber",
    "logcosh",
    "meanabsoluteerror",
    "meanabsolutepercentageerror",
    "meansquarederror",
    "meansquaredlogarithmicerror",
)


@frozen
class _Outputs(Term):
    """Of models with several outputs, the one that is meant."""

    def pick(self, structure: Any) -> Tensor:
        output = getattr(self, "output", None)
        if output is None:
            flat = keras.tree.flatten(structure)
            if len(flat) == 1:
                return flat[0]
            raise ConfigError(
                f"The model has {len(flat)} outputs, and {self!r} does not say which "
                "one it compares. Give output=, its name or number."
            )
        try:
            return structure[output]
        except (LookupError, TypeError) as error:
            known = list(structure) if isinstance(structure, dict) else "by number"
            raise ConfigError(
                f"There is no output {output!r}. Outputs are: {known}."
            ) from error

    def _weights(self, seen: Compared) -> Any:
        return None if seen.weights is None else self.pick(seen.weights)

    def check_loss(self, loss, *, name):
        if _of_values(loss):
            raise ConfigError(
                f"{self!r} takes the outputs of {name!r} for logits of classes, and "
                f"the loss {loss!r} for plain values. Use "
                "OutputDistillation('mean_squared_error'), which compares values."
            )

    def _labels(self, labels: Any) -> Any:
        return labels if getattr(self, "output", None) is None else self.pick(labels)


def _of_values(loss: Any) -> bool:
    """Whether a compiled loss is one of Keras' for regression."""
    try:
        found = keras.losses.get(loss)
    except (TypeError, ValueError):
        return False
    name = getattr(found, "__name__", None) or type(found).__name__
    return name.lower().replace("_", "") in _OF_VALUES


def _logits(values: Tensor, head: str) -> Tensor:
    """Unnormalized log-probabilities, (batch, ..., classes of at least 2)."""
    if head == "softmax":
        return ops.log(ops.maximum(values, _TINY))
    if head == "sigmoid":
        likely = ops.log(ops.maximum(values, _TINY))
        values = likely - ops.log(ops.maximum(1.0 - values, _TINY))
    return values


def _pair(seen: Compared, term: Any) -> tuple[Tensor, Tensor]:
    """The logits of student and teacher, (batch, ..., classes).

    One output for a class of its own, through a sigmoid or alone, becomes two: the
    class, and not the class. Several teachers have the mean of their probabilities at
    the term's temperature.
    """
    outputs = [term.pick(one) for one in (seen.student, *seen.teachers)]
    heads = [term.pick(one) for one in seen.heads]
    shapes = {tuple(one.shape[1:]) for one in outputs}
    if len(shapes) > 1:
        raise ConfigError(
            "Student and teacher must have outputs of one shape. Received: "
            f"{[tuple(one.shape) for one in outputs]}. Compare features instead: "
            "FeatureDistillation maps one width to the other."
        )
    binary = "sigmoid" in heads or outputs[0].shape[-1] == 1
    made = [_logits(one, head) for one, head in zip(outputs, heads, strict=True)]
    if binary:
        made = [ops.stack([ops.zeros_like(one), one], axis=-1) for one in made]
    student, *teachers = made
    if len(teachers) == 1:
        return student, teachers[0]
    heat = term.temperature
    together = [ops.log_softmax(one / heat, axis=-1) for one in teachers]
    # But for the logarithm of their number, which no softmax sees.
    return student, heat * ops.logsumexp(ops.stack(together), axis=0)


def _divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher || student) over the last axis, from logits."""
    taught = ops.log_softmax(teacher, axis=-1)
    learned = ops.log_softmax(student, axis=-1)
    return ops.sum(ops.exp(taught) * (taught - learned), axis=-1)


@keras.saving.register_keras_serializable("keras_dlopt")
@frozen
class LogitsDistillation(_Outputs):
    """The student's softened probabilities come close to the teacher's.

    `T^2 * KL(softmax(z_teacher / T) || softmax(z_student / T))`, the mean over the
    examples. Heads with a softmax or a sigmoid are seen through: their logits are the
    logarithms of what they give. The gradients keep their size for any temperature.

    Args:
        temperature: T, dimensionless; 1 keeps probabilities as they are.
        weight: of this loss beside the compiled one.
        output: which output, for models with several.

    Raises:
        ConfigError: for numbers that are not positive.

    Example:
        >>> LogitsDistillation(temperature=2.0)
        LogitsDistillation(temperature=2.0)

    Source: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network"
    (arXiv:1503.02531), section 2.
    """

    temperature: float = 4.0
    weight: float = 1.0
    output: str | int | None = None

    def __call__(self, seen):
        student, teacher = _pair(seen, self)
        heat = self.temperature
        found = _divergence(student / heat, teacher / heat)
        return heat**2 * per_example(found, self._weights(seen))


@keras.saving.register_keras_serializable("keras_dlopt")
@frozen
class DecoupledDistillation(_Outputs):
    """Target class and other classes apart, each with a weight of its own (DKD).

    `T^2 * (alpha * KL(b_teacher || b_student) + beta * KL(q_teacher || q_student))`
    with b the probabilities of the target class and of all others, and q those of the
    others among themselves.

    Args:
        temperature: T, dimensionless.
        alpha: weight of the target class.
        beta: weight of the other classes; 1 to 8 in the paper.
        weight: of this loss beside the compiled one.
        output: which output, for models with several.

    Raises:
        ConfigError: for numbers that are not positive.
        DataError: in `fit`, without labels.

    Example:
        >>> DecoupledDistillation(beta=2.0)
        DecoupledDistillation(beta=2.0)

    Source: Zhao et al., "Decoupled Knowledge Distillation" (arXiv:2203.08679), eq. 7.
    """

    temperature: float = 4.0
    alpha: float = 1.0
    beta: float = 8.0
    weight: float = 1.0
    output: str | int | None = None

    def __call__(self, seen):
        student, teacher = _pair(seen, self)
        heat = self.temperature
        target = _one_hot(self._labels(seen.labels), student.shape)
        student, teacher = student / heat, teacher / heat
        parts = [_target_and_rest(one, target) for one in (student, teacher)]
        first = _divergence(*parts)
        others = [one - _FAR * target for one in (student, teacher)]
        second = _divergence(*others)
        apart = self.alpha * first + self.beta * second
        return heat**2 * per_example(apart, self._weights(seen))


def _target_and_rest(logits: Tensor, target: Tensor) -> Tensor:
    """Log-probabilities of the target class and of all others together."""
    logs = ops.log_softmax(logits, axis=-1)
    likely = ops.sum(target * logs, axis=-1)
    rest = ops.logsumexp(logs - _FAR * target, axis=-1)
    return ops.stack([likely, rest], axis=-1)


def _one_hot(labels: Any, shape: Any) -> Tensor:
    """Labels as one row of 0 and 1 each, of the shape of the logits."""
    if labels is None:
        raise DataError(
            "DecoupledDistillation needs the class of each example, and fit() was "
            "given none. Pass y, or use LogitsDistillation."
        )
    labels = ops.convert_to_tensor(labels)
    if len(labels.shape) == len(shape) and labels.shape[-1] == 1 and shape[-1] != 1:
        labels = ops.squeeze(labels, axis=-1)
    if len(labels.shape) == len(shape):
        return ops.cast(labels, "float32")
    return ops.one_hot(ops.cast(labels, "int32"), shape[-1], dtype="float32")


@keras.saving.register_keras_serializable("keras_dlopt")
@frozen
class DIST(_Outputs):
    """Correlations in place of exact probabilities.

    `T^2 * (beta * (1 - r(rows)) + gamma * (1 - r(columns)))` with r Pearson's
    correlation of student and teacher: of the classes of an example, and of the
    examples of a batch for a class. On several replicas the examples of all count.

    Args:
        temperature: T, dimensionless.
        beta: weight of the relations between classes.
        gamma: weight of the relations within a class.
        weight: of this loss beside the compiled one.
        output: which output, for models with several.

    Raises:
        ConfigError: for numbers that are not positive.

    Example:
        >>> DIST(temperature=4.0)
        DIST(temperature=4.0)

    Source: Huang et al., "Knowledge Distillation from A Stronger Teacher"
    (arXiv:2205.10536), eq. 10.
    """

    temperature: float = 1.0
    beta: float = 1.0
    gamma: float = 1.0
    weight: float = 1.0
    output: str | int | None = None

    def __call__(self, seen):
        student, teacher = (
            seen.gathered(ops.reshape(one, (-1, one.shape[-1])))
            for one in _pair(seen, self)
        )
        p = ops.softmax(student / self.temperature, axis=-1)
        q = ops.softmax(teacher / self.temperature, axis=-1)
        weights = self._weights(seen)
        there = ops.ones_like(p[:, :1])
        if weights is not None:
            there = seen.gathered(ops.reshape(weights, (-1, 1)))
            there = ops.cast(there > 0, p.dtype)
        between = 1.0 - _pearson(p, q, axis=1)
        between = ops.sum(between * there[:, 0]) / ops.maximum(ops.sum(there), 1.0)
        within = ops.mean(1.0 - _pearson(p, q, axis=0, there=there))
        return self.temperature**2 * (self.beta * between + self.gamma * within)


def _pearson(a: Tensor, b: Tensor, axis: int, there: Any = 1.0) -> Tensor:
    """Along an axis, of the rows that are there."""
    count = ops.mean(there)
    a = there * (a - ops.mean(a * there, axis=axis, keepdims=True) / count)
    b = there * (b - ops.mean(b * there, axis=axis, keepdims=True) / count)
    square = ops.sum(a * a, axis=axis) * ops.sum(b * b, axis=axis)
    # Constant rows, such as those of equal logits, have no correlation, and no gradient
    # where the quotient has none.
    varies = square > _FLAT
    root = ops.sqrt(ops.where(varies, square, 1.0))
    return ops.where(varies, ops.sum(a * b, axis=axis) / root, 0.0)


@keras.saving.register_keras_serializable("keras_dlopt")
@frozen
class OutputDistillation(_Outputs):
    """Any Keras loss between the student's outputs and the teacher's.

    For regression, embeddings, segmentation maps: the teacher's output is the target.

    Args:
        loss: name of a Keras loss that compares outputs of one shape.
        weight: of this loss beside the compiled one.
        output: which output, for models with several.

    Raises:
        ConfigError: for an unknown name, and a weight that is not positive.

    Example:
        >>> OutputDistillation("huber", weight=0.5)
        OutputDistillation(loss='huber', weight=0.5)
    """

    loss: str = "mean_squared_error"
    weight: float = 1.0
    output: str | int | None = None

    def check_loss(self, loss, *, name):
        del loss, name  # any will do

    def __post_init__(self):
        super().__post_init__()
        checks.text(self.loss, name="loss")
        try:
            found = keras.losses.get(self.loss)
        except ValueError:
            found = None
        if found is None or isinstance(found, keras.losses.Loss):
            raise ConfigError(
                f"loss must be the name of one of Keras' loss functions, such as "
                "'mean_squared_error', 'huber', 'cosine_similarity'. Received: "
                f"{self.loss!r}."
            )

    def __call__(self, seen):
        student = self.pick(seen.student)
        function = keras.losses.get(self.loss)
        losses = [
            per_example(function(self.pick(one), student), self._weights(seen))
            for one in seen.teachers
        ]
        return sum(losses) / len(losses)
