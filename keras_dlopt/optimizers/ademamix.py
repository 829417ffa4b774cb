"""AdEMAMix: Adam with a second, much slower running mean of the gradient."""

import math
from typing import Any

import keras
from keras import ops

from keras_dlopt import checks
from keras_dlopt.optimizers._hyper import hyper
from keras_dlopt.optimizers._moments import mean, unbias
from keras_dlopt.optimizers._options import share_kept
from keras_dlopt.optimizers.base import Optimizer


def warmed(step: Any, *, warmup: int, beta_1: float, beta_3: float, alpha: float):
    """`beta_3` and `alpha` at a step: they rise from beta_1 and 0 over `warmup`.

    alpha_t = alpha * t / T and, so that the half-life of the slow mean grows evenly,
    beta_t = exp(ln b1 ln b3 / ((1 - t/T) ln b3 + (t/T) ln b1)).
    """
    if not warmup or beta_1 == 0.0:
        return beta_3, alpha
    share = ops.minimum(step / warmup, 1.0)
    low, high = math.log(beta_1), math.log(beta_3)
    beta = ops.exp(low * high / ((1 - share) * high + share * low))
    return ops.minimum(beta, beta_3), alpha * share


@keras.saving.register_keras_serializable("keras_dlopt")
class AdEMAMix(Optimizer):
    r"""AdEMAMix: the mean of recent gradients plus that of thousands of old ones.

    With gradient g, and ^ the bias correction of Adam:

        m <- beta_1 m + (1 - beta_1) g
        s <- beta_3 s + (1 - beta_3) g
        v <- beta_2 v + (1 - beta_2) g^2
        w <- w - lr * (m^ + alpha s) / (sqrt(v^) + epsilon)

    State: 12 bytes a parameter.

    Args:
        learning_rate: float, schedule, or callable without arguments.
        beta_1: share of the fast mean kept at each step, in [0, 1).
        beta_2: share of the mean square kept, in [0, 1).
        beta_3: share of the slow mean kept, in (0, 1).
        alpha: weight of the slow mean, 4 to 10.
        warmup: steps over which alpha rises from 0 and beta_3 from beta_1; 0 for none.
            The paper takes the whole training.
        epsilon: added to the root, in units of the gradient.
        **options: see `keras_dlopt.optimizers.Optimizer`.

    Raises:
        ConfigError: for arguments out of range.

    Example:
        >>> v = keras.Variable([1.0])
        >>> AdEMAMix(0.1).apply([keras.ops.array([0.5])], [v])
        >>> v.numpy().tolist()
        [0.89995]

    Source: Pagliardini et al., "The AdEMAMix Optimizer" (arXiv:2409.03137),
    algorithm 1.
    """

    slot_names = ("momentum", "slow_momentum", "velocity")
    elementwise = True

    beta_1: float = hyper(default=0.9, check=share_kept)
    beta_2: float = hyper(default=0.999, check=share_kept)
    beta_3: float = hyper(default=0.9999, check=share_kept, least=None, above=0)
    alpha: float = hyper(default=5.0, check=checks.rate)
    warmup: int = hyper(default=0, check=checks.whole, least=0)
    epsilon: float = hyper(default=1e-8, check=checks.rate)

    def rule(self, gradient, weight, slots, lr, step):
        beta_3, alpha = warmed(
            step,
            warmup=self.warmup,
            beta_1=self.beta_1,
            beta_3=self.beta_3,
            alpha=self.alpha,
        )
        fast = mean(slots["momentum"], gradient, self.beta_1)
        slow = mean(slots["slow_momentum"], gradient, beta_3)
        v = mean(slots["velocity"], ops.square(gradient), self.beta_2)
        direction = unbias(fast, self.beta_1, step) + alpha * slow
        root = ops.sqrt(unbias(v, self.beta_2, step)) + self.epsilon
        change = lr * direction / root
        return change, {"momentum": fast, "slow_momentum": slow, "velocity": v}
