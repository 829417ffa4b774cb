"""Adan: Nesterov momentum from gradient differences."""

from typing import Any

import keras
from keras import ops

from keras_dlopt.optimizers import _options
from keras_dlopt.optimizers._moments import mean, unbias
from keras_dlopt.optimizers.base import Optimizer


def adan_rule(
    gradient: Any,
    slots: dict[str, Any],
    *,
    lr: Any,
    step: Any,
    betas: tuple[float, float, float],
    epsilon: float,
) -> tuple[Any, dict[str, Any]]:
    """One Adan step: what to subtract, and the new state."""
    b1, b2, b3 = betas
    difference = ops.where(step > 1, gradient - slots["previous"], 0 * gradient)
    m = mean(slots["momentum"], gradient, b1)
    v = mean(slots["trend"], difference, b2)
    n = mean(slots["velocity"], ops.square(gradient + b2 * difference), b3)
    ahead = unbias(m, b1, step) + b2 * unbias(v, b2, step)
    change = lr * ahead / (ops.sqrt(unbias(n, b3, step)) + epsilon)
    new = {"momentum": m, "trend": v, "velocity": n, "previous": gradient}
    return change, new


@keras.saving.register_keras_serializable("keras_dlopt")
class Adan(Optimizer):
    r"""Adan: Adam on the gradient that Nesterov's look-ahead would see.

    With gradient g, its change d = g - g_previous (0 in the first step), and ^ the bias
    correction of Adam:

        m <- beta_1 m + (1 - beta_1) g
        v <- beta_2 v + (1 - beta_2) d
        n <- beta_3 n + (1 - beta_3) (g + beta_2 d)^2
        w <- w - lr * (m^ + beta_2 v^) / (sqrt(n^) + epsilon)

    State: 16 bytes a parameter.

    Args:
        learning_rate: float, schedule, or callable without arguments; about 5 times
            that of Adam.
        beta_1: share of the mean gradient kept at each step, in [0, 1).
        beta_2: share of the mean change kept, in [0, 1).
        beta_3: share of the mean square kept, in [0, 1).
        epsilon: added to the root, in units of the gradient.
        **options: see `keras_dlopt.optimizers.Optimizer`.

    Raises:
        ConfigError: for arguments out of range.

    Example:
        >>> v = keras.Variable([1.0])
        >>> Adan(0.1).apply([keras.ops.array([0.5])], [v])
        >>> v.numpy().round(4).tolist()
        [0.9]

    Source: Xie et al., "Adan" (arXiv:2208.06677), algorithm 1. Differs from the paper:
    betas are the shares kept (1 minus the paper's), moments are bias-corrected as in
    the authors' code, and decay comes before the step rather than as a division.
    """

    slot_names = ("momentum", "trend", "velocity", "previous")
    elementwise = True

    def __init__(
        self,
        learning_rate: Any = 0.001,
        *,
        beta_1: float = 0.98,
        beta_2: float = 0.92,
        beta_3: float = 0.99,
        epsilon: float = 1e-8,
        **options: Any,
    ):
        _options.check_beta(beta_1, name="beta_1")
        _options.check_beta(beta_2, name="beta_2")
        _options.check_beta(beta_3, name="beta_3")
        _options.check_rate(epsilon, name="epsilon")
        super().__init__(learning_rate, **options)
        self.beta_1, self.beta_2, self.beta_3 = beta_1, beta_2, beta_3
        self.epsilon = epsilon

    def rule(self, gradient, weight, slots, lr, step):
        betas = (self.beta_1, self.beta_2, self.beta_3)
        return adan_rule(
            gradient, slots, lr=lr, step=step, betas=betas, epsilon=self.epsilon
        )

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "beta_1": self.beta_1,
            "beta_2": self.beta_2,
            "beta_3": self.beta_3,
            "epsilon": self.epsilon,
        }
