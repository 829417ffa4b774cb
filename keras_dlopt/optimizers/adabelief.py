"""AdaBelief: Adam that divides by the surprise, not by the size, of the gradient."""

from typing import Any

import keras
from keras import ops

from keras_dlopt.optimizers import _options
from keras_dlopt.optimizers._moments import mean, unbias
from keras_dlopt.optimizers.base import Optimizer


def adabelief_rule(
    gradient: Any,
    slots: dict[str, Any],
    *,
    lr: Any,
    step: Any,
    beta_1: float,
    beta_2: float,
    epsilon: float,
) -> tuple[Any, dict[str, Any]]:
    """One AdaBelief step: what to subtract, and the new moments."""
    m = mean(slots["momentum"], gradient, beta_1)
    s = mean(slots["surprise"], ops.square(gradient - m), beta_2) + epsilon
    root = ops.sqrt(unbias(s, beta_2, step)) + epsilon
    return lr * unbias(m, beta_1, step) / root, {"momentum": m, "surprise": s}


@keras.saving.register_keras_serializable("keras_dlopt")
class AdaBelief(Optimizer):
    r"""AdaBelief: long steps where the gradient is as predicted.

    With gradient g, and ^ the bias correction of Adam:

        m <- beta_1 m + (1 - beta_1) g
        s <- beta_2 s + (1 - beta_2) (g - m)^2 + epsilon
        w <- w - lr * m^ / (sqrt(s^) + epsilon)

    State: 8 bytes a parameter.

    Args:
        learning_rate: float, schedule, or callable without arguments.
        beta_1: share of the mean gradient kept at each step, in [0, 1).
        beta_2: share of the mean squared surprise kept, in [0, 1).
        epsilon: added to s and to its root; not negative.
        **options: see `keras_dlopt.optimizers.Optimizer`.

    Raises:
        ConfigError: for arguments out of range.

    Example:
        >>> v = keras.Variable([1.0])
        >>> AdaBelief(0.1).apply([keras.ops.array([0.5])], [v])
        >>> v.numpy().round(4).tolist()
        [0.8889]

    Source: Zhuang et al., "AdaBelief Optimizer" (arXiv:2010.07468), algorithm 2.
    """

    slot_names = ("momentum", "surprise")
    elementwise = True

    def __init__(
        self,
        learning_rate: Any = 0.001,
        *,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-16,
        **options: Any,
    ):
        _options.check_beta(beta_1, name="beta_1")
        _options.check_beta(beta_2, name="beta_2")
        _options.check_rate(epsilon, name="epsilon")
        super().__init__(learning_rate, **options)
        self.beta_1, self.beta_2, self.epsilon = beta_1, beta_2, epsilon

    def rule(self, gradient, weight, slots, lr, step):
        return adabelief_rule(
            gradient,
            slots,
            lr=lr,
            step=step,
            beta_1=self.beta_1,
            beta_2=self.beta_2,
            epsilon=self.epsilon,
        )

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "beta_1": self.beta_1,
            "beta_2": self.beta_2,
            "epsilon": self.epsilon,
        }
