"""MARS: Adam on a gradient whose noise is reduced by that of the step before."""

from typing import Any

import keras
from keras import ops

from keras_dlopt import checks
from keras_dlopt.optimizers import _options
from keras_dlopt.optimizers._hyper import hyper
from keras_dlopt.optimizers._moments import mean, unbias
from keras_dlopt.optimizers._options import share_kept
from keras_dlopt.optimizers.base import Optimizer


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
    starts_apart = True

    learning_rate: Any = hyper(default=0.003, check=_options.learning_rate)
    beta_1: float = hyper(default=0.95, check=share_kept)
    beta_2: float = hyper(default=0.99, check=share_kept)
    gamma: float = hyper(default=0.025, check=checks.rate)
    epsilon: float = hyper(default=1e-8, check=checks.rate)

    def rule(self, gradient, weight, slots, lr, step):
        difference = ops.where(step > 1, gradient - slots["previous"], 0 * gradient)
        factor = self.gamma * self.beta_1 / (1 - self.beta_1)
        corrected = gradient + factor * difference
        norm = ops.sqrt(ops.sum(ops.square(corrected)))
        corrected = corrected / ops.maximum(norm, 1.0)
        m = mean(slots["momentum"], corrected, self.beta_1)
        v = mean(slots["velocity"], ops.square(corrected), self.beta_2)
        root = ops.sqrt(unbias(v, self.beta_2, step)) + self.epsilon
        change = lr * unbias(m, self.beta_1, step) / root
        return change, {"momentum": m, "velocity": v, "previous": gradient}
