"""ADOPT: Adam that converges with any beta_2."""

from typing import Any

import keras
from keras import ops

from keras_dlopt.optimizers import _options
from keras_dlopt.optimizers._moments import mean
from keras_dlopt.optimizers.base import Optimizer


def adopt_rule(
    gradient: Any,
    slots: dict[str, Any],
    *,
    lr: Any,
    step: Any,
    beta_1: float,
    beta_2: float,
    epsilon: float,
) -> tuple[Any, dict[str, Any]]:
    """One ADOPT step: what to subtract, and the new moments."""
    first = step <= 1
    limit = ops.power(ops.maximum(step - 1, 1.0), 0.25)
    scaled = gradient / ops.maximum(ops.sqrt(slots["velocity"]), epsilon)
    m = mean(slots["momentum"], ops.clip(scaled, -limit, limit), beta_1)
    m = ops.where(first, slots["momentum"], m)
    square = ops.square(gradient)
    v = ops.where(first, square, mean(slots["velocity"], square, beta_2))
    return lr * m, {"momentum": m, "velocity": v}


@keras.saving.register_keras_serializable("keras_dlopt")
class ADOPT(Optimizer):
    r"""ADOPT: divides by the second moment of earlier gradients, then averages.

    With gradient g at update t = 0, 1, ...:

        t = 0:  v <- g^2, and the weights stay
        t > 0:  m <- beta_1 m + (1 - beta_1) clip(g / max(sqrt(v), epsilon), t^(1/4))
                w <- w - lr * m
                v <- beta_2 v + (1 - beta_2) g^2

    State: 8 bytes a parameter.

    Args:
        learning_rate: float, schedule, or callable without arguments.
        beta_1: share of the mean kept at each step, in [0, 1).
        beta_2: share of the second moment kept, in [0, 1).
        epsilon: least root that is divided by, in units of the gradient.
        **options: see `keras_dlopt.optimizers.Optimizer`.

    Raises:
        ConfigError: for arguments out of range.

    Example:
        >>> v = keras.Variable([1.0])
        >>> adopt = ADOPT(0.1)
        >>> for _ in range(2): adopt.apply([keras.ops.array([0.5])], [v])
        >>> v.numpy().round(4).tolist()
        [0.99]

    Source: Taniguchi et al., "ADOPT: Modified Adam Can Converge with Any beta_2"
    (arXiv:2411.02853), algorithm 2.
    """

    slot_names = ("momentum", "velocity")
    elementwise = True

    def __init__(
        self,
        learning_rate: Any = 0.001,
        *,
        beta_1: float = 0.9,
        beta_2: float = 0.9999,
        epsilon: float = 1e-6,
        **options: Any,
    ):
        _options.check_beta(beta_1, name="beta_1")
        _options.check_beta(beta_2, name="beta_2")
        _options.check_positive(epsilon, name="epsilon")
        super().__init__(learning_rate, **options)
        self.beta_1, self.beta_2, self.epsilon = beta_1, beta_2, epsilon

    def rule(self, gradient, weight, slots, lr, step):
        return adopt_rule(
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
