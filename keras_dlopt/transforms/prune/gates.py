"""L0 regularization: weights behind gates that learn to close."""

import math

import keras
import numpy as np
from keras import ops

from keras_dlopt import checks
from keras_dlopt.errors import ConfigError
from keras_dlopt.transforms.base import State, Transform
from keras_dlopt.transforms.prune.pattern import Pattern, Slices, Unstructured

# The stretch of the concrete distribution beyond [0, 1], and its temperature.
GAMMA, ZETA, BETA = -0.1, 1.1, 2.0 / 3.0
_EPSILON = 1e-6


@keras.saving.register_keras_serializable("keras_dlopt")
class L0(Transform):
    """Multiplies weights by random gates, and pays for every gate that may be open.

        u ~ U(0, 1),   s = sigmoid((log u - log(1 - u) + a) / beta)
        gate = clip(s * (zeta - gamma) + gamma, 0, 1)
        loss += penalty * sum over weights of P(gate > 0)
        P(gate > 0) = sigmoid(a - beta * log(-gamma / zeta))

    with gamma = -0.1, zeta = 1.1, beta = 2/3 and a trained for each gate. Outside of
    training the gate is clip(sigmoid(a) * (zeta - gamma) + gamma, 0, 1), and a weight
    whose gate is 0 is removed. The sparsity is a result, not a setting.

    State: one trained float32 a gate.

    Args:
        penalty: loss for one weight that is there, such as 0.1 / number of examples.
        pattern: `Unstructured()` gives every weight a gate; `Rows()`, `Columns()` or
            `Filters()` give one to each slice.
        closed: share of gates that is closed at the start, in (0, 1).
        seed: for the gates' starting points.

    Raises:
        ConfigError: for a negative penalty, another pattern, or a share outside (0, 1).

    Example:
        >>> from keras_dlopt.graph.targets import Target
        >>> state = L0(1e-6).init(Target("kernel"), np.ones((300, 100), "float32"))
        >>> state["gate"].value.shape, state["gate"].trainable
        ((300, 100), True)

    Source: Louizos et al., "Learning Sparse Neural Networks through L0 Regularization"
    (arXiv:1712.01312), equations 10 to 13.
    Differs from the paper: gates are drawn once a batch, as in its section 4, and not
    once an example.
    """

    random = True

    def __init__(
        self,
        penalty: float,
        *,
        pattern: Pattern = Unstructured(),  # noqa: B008  a frozen value
        closed: float = 0.2,
        seed: int = 0,
    ):
        self.penalty = checks.number(
            penalty, name="penalty", least=0, hint="Such as 1e-6."
        )
        if not isinstance(pattern, Unstructured | Slices):
            raise ConfigError(
                "Gates stand for single weights or for slices: pattern must be "
                "Unstructured(), Rows(), Columns() or Filters(). "
                f"Received: {pattern!r}."
            )
        self.pattern = pattern
        self.closed = checks.fraction(closed, name="closed")
        self.seed = checks.seed(seed)

    def init(self, target, weight):
        return self.init_group([target], [weight])[0]

    def init_group(self, targets, weights):
        middle = math.log(1 - self.closed) - math.log(self.closed)
        states = []
        for place, (target, weight) in enumerate(zip(targets, weights, strict=True)):
            self.pattern.check(target, weight.shape)
            shape = self.pattern.pool(target, np.ones(weight.shape)).shape
            rng = np.random.default_rng([self.seed, place])
            start = rng.normal(middle, 0.01, shape).astype("float32")
            states.append({"gate": State(start, trainable=True)})
        return states

    def apply(self, weight, state, context):
        a = state["gate"]
        if not context.training:
            return weight * _stretched(ops.sigmoid(a), ops)
        open_share = ops.sigmoid(a - BETA * math.log(-GAMMA / ZETA))
        each = math.prod(weight.shape) / math.prod(a.shape)  # weights behind a gate
        context.add_loss(self.penalty * each * ops.sum(open_share))
        u = keras.random.uniform(
            a.shape, _EPSILON, 1 - _EPSILON, seed=context.seed, dtype=a.dtype
        )
        logit = ops.log(u) - ops.log(1.0 - u)
        return weight * _stretched(ops.sigmoid((logit + a) / BETA), ops)

    def finalize(self, target, weight, state):
        gate = state["gate"].astype("float64")
        gate = _stretched(1 / (1 + np.exp(-gate)), np).astype(weight.dtype)
        zero = np.zeros((), weight.dtype)
        return np.where(gate > 0, weight * gate, zero), None


def _stretched(s, xp):
    return xp.clip(s * (ZETA - GAMMA) + GAMMA, 0.0, 1.0)
