"""ADOPT: Adam that converges with any beta_2."""

import keras
from keras import ops

from keras_dlopt import checks
from keras_dlopt.optimizers._hyper import hyper
from keras_dlopt.optimizers._moments import mean
from keras_dlopt.optimizers._options import share_kept
from keras_dlopt.optimizers.base import Optimizer


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
    starts_apart = True
    elementwise = True

    beta_1: float = hyper(default=0.9, check=share_kept)
    beta_2: float = hyper(default=0.9999, check=share_kept)
    epsilon: float = hyper(default=1e-6, check=checks.positive)

    def rule(self, gradient, weight, slots, lr, step):
        first = step <= 1
        limit = ops.power(ops.maximum(step - 1, 1.0), 0.25)
        scaled = gradient / ops.maximum(ops.sqrt(slots["velocity"]), self.epsilon)
        m = mean(slots["momentum"], ops.clip(scaled, -limit, limit), self.beta_1)
        m = ops.where(first, slots["momentum"], m)
        square = ops.square(gradient)
        v = ops.where(first, square, mean(slots["velocity"], square, self.beta_2))
        return lr * m, {"momentum": m, "velocity": v}
