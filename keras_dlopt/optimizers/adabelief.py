"""AdaBelief: Adam that divides by the surprise, not by the size, of the gradient."""

import keras
from keras import ops

from keras_dlopt import checks
from keras_dlopt.optimizers._hyper import hyper
from keras_dlopt.optimizers._moments import mean, unbias
from keras_dlopt.optimizers._options import share_kept
from keras_dlopt.optimizers.base import Optimizer


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

    beta_1: float = hyper(default=0.9, check=share_kept)
    beta_2: float = hyper(default=0.999, check=share_kept)
    epsilon: float = hyper(default=1e-16, check=checks.rate)

    def rule(self, gradient, weight, slots, lr, step):
        m = mean(slots["momentum"], gradient, self.beta_1)
        surprise = ops.square(gradient - m)
        s = mean(slots["surprise"], surprise, self.beta_2) + self.epsilon
        root = ops.sqrt(unbias(s, self.beta_2, step)) + self.epsilon
        change = lr * unbias(m, self.beta_1, step) / root
        return change, {"momentum": m, "surprise": s}
