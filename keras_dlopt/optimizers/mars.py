"""MARS: Adam on a gradient whose noise is reduced by that of the step before."""

from typing import Any

import keras
from keras import ops

from keras_dlopt.optimizers import _options
from keras_dlopt.optimizers._moments import mean, unbias
from keras_dlopt.optimizers.base import Optimizer


def mars_rule(
    gradient: Any,
    slots: dict[str, Any],
    *,
    lr: Any,
    step: Any,
    beta_1: float,
    beta_2: float,
    gamma: float,
    epsilon: float,
) -> tuple[Any, dict[str, Any]]:
    """One MARS step: what to subtract, and the new state."""
    difference = ops.where(step > 1, gradient - slots["previous"], 0 * gradient)
    corrected = gradient + gamma * beta_1 / (1 - beta_1) * difference
    norm = ops.sqrt(ops.sum(ops.square(corrected)))
    corrected = corrected / ops.maximum(norm, 1.0)
    m = mean(slots["momentum"], corrected, beta_1)
    v = mean(slots["velocity"], ops.square(corrected), beta_2)
    root = ops.sqrt(unbias(v, beta_2, step)) + epsilon
    change = lr * unbias(m, beta_1, step) / root
    return change, {"momentum": m, "velocity": v, "previous": gradient}


@keras.saving.register_keras_serializable("keras_dlopt")
class MARS(Optimizer):
    r"""MARS-AdamW: AdamW on a variance-reduced gradient.

    With gradient g, and ^ the bias correction of Adam:

        c = g + gamma * beta_1 / (1 - beta_1) * (g - g_previous)
        c <- c / max(1, |c|)                     (norm over each weight)
        m <- beta_1 m + (1 - beta_1) c
        v <- beta_2 v + (1 - beta_2) c^2
        w <- w - lr * m^ / (sqrt(v^) + epsilon)

    State: 12 bytes a parameter.

    Args:
        learning_rate: float, schedule, or callable without arguments.
        beta_1: share of the first moment kept at each step, in [0, 1).
        beta_2: share of the second moment kept, in [0, 1).
        gamma: strength of the correction, 0 (AdamW with clipping) to 1.
        epsilon: added to the root, in units of the gradient.
        **options: see `keras_dlopt.optimizers.Optimizer`.

    Raises:
        ConfigError: for arguments out of range.

    Example:
        >>> v = keras.Variable([1.0])
        >>> MARS(0.1).apply([keras.ops.array([0.5])], [v])
        >>> v.numpy().round(4).tolist()
        [0.9]

    Source: Yuan et al., "MARS: Unleashing the Power of Variance Reduction"
    (arXiv:2411.10438), algorithm 2. Differs from the paper: g_previous is the gradient
    of the previous batch at the previous weights (the paper's "approximate" form),
    which needs no second gradient.
    """

    slot_names = ("momentum", "velocity", "previous")

    def __init__(
        self,
        learning_rate: Any = 0.003,
        *,
        beta_1: float = 0.95,
        beta_2: float = 0.99,
        gamma: float = 0.025,
        epsilon: float = 1e-8,
        **options: Any,
    ):
        _options.check_beta(beta_1, name="beta_1")
        _options.check_beta(beta_2, name="beta_2")
        _options.check_rate(gamma, name="gamma")
        _options.check_rate(epsilon, name="epsilon")
        super().__init__(learning_rate, **options)
        self.beta_1, self.beta_2 = beta_1, beta_2
        self.gamma, self.epsilon = gamma, epsilon

    def rule(self, gradient, weight, slots, lr, step):
        return mars_rule(
            gradient,
            slots,
            lr=lr,
            step=step,
            beta_1=self.beta_1,
            beta_2=self.beta_2,
            gamma=self.gamma,
            epsilon=self.epsilon,
        )

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "beta_1": self.beta_1,
            "beta_2": self.beta_2,
            "gamma": self.gamma,
            "epsilon": self.epsilon,
        }
