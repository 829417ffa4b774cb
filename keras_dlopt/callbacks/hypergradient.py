"""A learning rate that follows its own gradient."""

import keras
import numpy as np
from keras import ops

from keras_dlopt import checks
from keras_dlopt.callbacks.base import InGraphCallback
from keras_dlopt.callbacks.controller import Controller, Seen


def cosine(gradients, changes):
    """Cosine between the gradients and minus the changes; 0 where either is 0."""
    dot = sum(ops.sum(g * -d) for g, d in zip(gradients, changes, strict=True))
    norms = sum(ops.sum(g * g) for g in gradients) * sum(
        ops.sum(d * d) for d in changes
    )
    return ops.where(norms > 0.0, dot / ops.sqrt(ops.maximum(norms, 1e-38)), 0.0)


class _Hypergradient(Controller):
    """State: the last change of every trainable weight."""

    key = "hypergradient"
    wants_weights = True
    wants_gradients = True

    def __init__(self, beta: float, min_rate: float, max_rate: float):
        self.beta, self.min_rate, self.max_rate = beta, min_rate, max_rate

    def initial(self, model):
        return [np.zeros(v.shape, "float32") for v in model.trainable_variables]

    def after_step(self, state, seen: Seen):
        assert seen.gradients is not None
        assert seen.before is not None
        assert seen.after is not None
        gradients = [
            ops.zeros_like(d)
            if g is None
            else seen.total(ops.cast(ops.convert_to_tensor(g), "float32"))
            for g, d in zip(seen.gradients, state, strict=True)
        ]
        rate = ops.cast(seen.rate, "float32")
        agreement = cosine(gradients, state)
        agreement = ops.where(ops.isfinite(agreement), agreement, -1.0)
        new = rate * (1.0 + self.beta * agreement)
        new = ops.clip(new, self.min_rate, self.max_rate)
        changes = [
            ops.cast(a, "float32") - ops.cast(b, "float32")
            for a, b in zip(seen.after, seen.before, strict=True)
        ]
        return changes, new / rate, None


@keras.saving.register_keras_serializable("keras_dlopt")
class HypergradientLearningRate(InGraphCallback):
    r"""Raises the rate while steps agree with the next gradient, else lowers it.

    The derivative of the loss at step t with respect to the rate of step t - 1 is
    g_t . d_{t-1} / lr, with d the change of the weights. With its sign and size taken
    as the cosine

        c_t = - g_t . d_{t-1} / (|g_t| |d_{t-1}|)    in [-1, 1]

    the rate of the next step is clip(lr_t (1 + beta c_t), min_rate, max_rate). The
    changes are those that the optimizer made, so the rule fits any optimizer; for plain
    SGD, c_t is the cosine of two successive gradients.

    State: one float32 copy of the trainable weights. Under a strategy the gradients are
    summed over the replicas once more.

    Args:
        beta: largest relative change of the rate in one step, in (0, 1).
        min_rate: lowest rate.
        max_rate: highest rate.

    Raises:
        ConfigError: for arguments out of range.
        ModelError: for a loss-scaling optimizer, when training starts.

    Example:
        >>> HypergradientLearningRate(beta=0.05).get_config()["beta"]
        0.05

    Source: Baydin et al., "Online Learning Rate Adaptation with Hypergradient Descent"
    (arXiv:1703.04782), the multiplicative rule. Differs from the paper: the change of
    the weights stands for the derivative of the update rule, so that momentum and
    weight decay are part of it without a formula for each optimizer.
    """

    def __init__(
        self, *, beta: float = 0.02, min_rate: float = 1e-7, max_rate: float = 1.0
    ):
        self.beta = checks.fraction(beta, name="beta")
        self.min_rate = checks.positive(min_rate, name="min_rate")
        self.max_rate = checks.rate(max_rate, name="max_rate")
        checks.ordered(min_rate=self.min_rate, max_rate=self.max_rate)
        super().__init__()

    def make_controller(self) -> Controller:
        """The rule with this callback's constants."""
        return _Hypergradient(self.beta, self.min_rate, self.max_rate)
