"""Adan: Nesterov momentum from gradient differences."""

import keras
from keras import ops

from keras_dlopt import checks
from keras_dlopt.optimizers._hyper import hyper
from keras_dlopt.optimizers._moments import mean, unbias
from keras_dlopt.optimizers._options import share_kept
from keras_dlopt.optimizers.base import Optimizer


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
    starts_apart = True
    elementwise = True

    beta_1: float = hyper(default=0.98, check=share_kept)
    beta_2: float = hyper(default=0.92, check=share_kept)
    beta_3: float = hyper(default=0.99, check=share_kept)
    epsilon: float = hyper(default=1e-8, check=checks.rate)

    def rule(self, gradient, weight, slots, lr, step):
        b1, b2, b3 = self.beta_1, self.beta_2, self.beta_3
        difference = ops.where(step > 1, gradient - slots["previous"], 0 * gradient)
        m = mean(slots["momentum"], gradient, b1)
        v = mean(slots["trend"], difference, b2)
        n = mean(slots["velocity"], ops.square(gradient + b2 * difference), b3)
        ahead = unbias(m, b1, step) + b2 * unbias(v, b2, step)
        change = lr * ahead / (ops.sqrt(unbias(n, b3, step)) + self.epsilon)
        new = {"momentum": m, "trend": v, "velocity": n, "previous": gradient}
        return change, new
