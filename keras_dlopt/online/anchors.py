"""Terms that hold a model near to what it was at an anchor."""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_dlopt import checks
from keras_dlopt.config import frozen
from keras_dlopt.distill.logits import LogitsDistillation
from keras_dlopt.distill.term import Compared
from keras_dlopt.graph.copying import copy_model
from keras_dlopt.online.fisher import fisher_diagonal
from keras_dlopt.online.terms import LearningTerm, StartedTerm
from keras_dlopt.runtime import to_numpy

# Far below any logit: a class that the teacher never saw.
_NEVER = -1e9


@keras.saving.register_keras_serializable("keras_dlopt")
@frozen
class EWC(LearningTerm):
    """Weights that mattered stay near to where they were: elastic consolidation.

    `strength / 2 * sum_i F_i (w_i - w*_i)^2`, from the first `learner.anchor()` on. At
    each anchor `F = decay * F + F_new` and `w* = w`: one penalty for all that was
    before, as in online EWC. A step of gradient descent is stable while the learning
    rate times `strength` times the largest F stays below 2.

    Args:
        strength: lambda, in units of the loss for each example.
        examples: at most this many for the Fisher information.
        labels: `"data"` or `"model"`, as of `fisher_diagonal`.
        decay: what the earlier information is multiplied with, in [0, 1].

    Raises:
        ConfigError: for numbers out of range.

    Example:
        >>> EWC(strength=1_000.0)
        EWC(strength=1000.0)

    Source: Kirkpatrick et al. (arXiv:1612.00796), equation 3; Schwarz et al. (
    arXiv:1805.06370), section 3.
    """

    strength: float = 10.0
    examples: int = 200
    labels: str = "model"
    decay: float = 1.0
    needs_classes = True

    def __post_init__(self):
        self.keep(
            strength=checks.positive(self.strength, name="strength"),
            examples=checks.count(self.examples, name="examples"),
            labels=checks.choice(self.labels, name="labels", choices=("data", "model")),
            decay=checks.probability(self.decay, name="decay"),
        )

    def start(self, learner):
        return _StartedEWC(self, learner)


class _StartedEWC(StartedTerm):
    def __init__(self, term: EWC, learner: Any):
        self.term, self.model, self._see = term, learner.model, learner.logits
        self._weights = list(self.model.trainable_variables)
        self._fisher = [_like(v) for v in self._weights]
        self._anchors = [_like(v) for v in self._weights]
        self.variables = [*self._fisher, *self._anchors]

    def loss(self, rows):
        total: Any = 0.0
        for weight, fisher, anchor in zip(
            self._weights, self._fisher, self._anchors, strict=True
        ):
            far = ops.cast(ops.convert_to_tensor(weight), "float32") - anchor
            total += ops.sum(fisher * ops.square(far))
        return 0.5 * self.term.strength * total

    def anchor(self, x, y):
        x, y = _some(self.term.examples, x, y)
        labels = y if self.term.labels == "data" else None
        found = fisher_diagonal(self.model, x, labels, logits=self._see)
        for weight, fisher, anchor, new in zip(
            self._weights, self._fisher, self._anchors, found, strict=True
        ):
            fisher.assign(self.term.decay * to_numpy(fisher) + new)
            anchor.assign(to_numpy(weight).astype("float32"))

    def release(self):
        for fisher in self._fisher:
            fisher.assign(np.zeros(tuple(fisher.shape), "float32"))


@keras.saving.register_keras_serializable("keras_dlopt")
@frozen
class SnapshotDistillation(LearningTerm):
    """The model as it was at the last anchor teaches the model as it is.

    `weight * T^2 * KL(softmax(z_then / T) || softmax(z_now / T))`, the mean over new
    and kept rows, over the classes that had come before the anchor.

    Args:
        weight: beside the compiled loss.
        temperature: T, dimensionless.

    Raises:
        ConfigError: for numbers that are not positive.

    Example:
        >>> SnapshotDistillation(temperature=2.0)
        SnapshotDistillation()

    Source: Li and Hoiem, "Learning without Forgetting" (arXiv:1606.09282), section 3.
    """

    weight: float = 1.0
    temperature: float = 2.0
    needs_classes = True

    def __post_init__(self):
        self.keep(
            weight=checks.positive(self.weight, name="weight"),
            temperature=checks.positive(self.temperature, name="temperature"),
        )

    def start(self, learner):
        return _StartedSnapshot(self, learner)


class _StartedSnapshot(StartedTerm):
    def __init__(self, term: SnapshotDistillation, learner: Any):
        self.term, self._learner = term, learner
        self._compared = LogitsDistillation(temperature=term.temperature)
        self._then = copy_model(learner.model)
        self._then.trainable = False
        # One logit stands for two classes, and no mask.
        self._classes = 0 if learner.classes == 1 else learner.classes
        self._seen = _variable((max(self._classes, 1),))
        self._on = _variable(())
        self.variables = [*self._then.variables, self._seen, self._on]

    def loss(self, rows):
        then = ops.stop_gradient(
            self._learner.logits(self._then(rows.x, training=False))
        )
        now = rows.logits
        if self._classes:
            never = _NEVER * (1.0 - ops.convert_to_tensor(self._seen))
            then, now = then + never, now + never
        seen = Compared(now, (then,), ("linear", "linear"))
        return self.term.weight * self._on * ops.mean(self._compared(seen))

    def anchor(self, x, y):
        for old, new in zip(
            self._then.variables, self._learner.model.variables, strict=True
        ):
            old.assign(to_numpy(new))
        if self._classes:
            mask = np.zeros(self._classes, "float32")
            mask[sorted(self._learner.labels_seen)] = 1.0
            self._seen.assign(mask)
        self._on.assign(1.0)

    def release(self):
        self._on.assign(0.0)


def _some(most: int, x: Any, y: Any) -> tuple[Any, Any]:
    """At most this many examples, evenly spread."""
    n = len(y)
    places = np.arange(n) if n <= most else np.arange(most) * n // most
    return keras.tree.map_structure(lambda a: a[places], x), y[places]


def _variable(shape: tuple[int, ...]) -> Any:
    return keras.Variable(np.zeros(shape, "float32"), trainable=False)


def _like(variable: Any) -> Any:
    return _variable(tuple(variable.shape))
