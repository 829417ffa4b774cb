"""RAdam: Adam whose adaptive rate waits until its variance is known."""

import keras
from keras import ops

from keras_dlopt import checks
from keras_dlopt.optimizers._hyper import hyper
from keras_dlopt.optimizers._moments import mean, seen, unbias
from keras_dlopt.optimizers._options import share_kept
from keras_dlopt.optimizers.base import Optimizer


@keras.saving.register_keras_serializable("keras_dlopt")
class RAdam(Optimizer):
    r"""Rectified Adam: no division by the second moment before it is reliable.

    With m^, v^ the bias-corrected moments of Adam, r_inf = 2 / (1 - beta_2) - 1 and
    r_t = r_inf - 2 t beta_2^t / (1 - beta_2^t):

        r_t >= threshold:  w <- w - lr * k_t * m^ / (sqrt(v^) + epsilon)
        otherwise:         w <- w - lr * m^
        k_t = sqrt((r_t - 4)(r_t - 2) r_inf / ((r_inf - 4)(r_inf - 2) r_t))

    State: 8 bytes a parameter.

    Args:
        learning_rate: float, schedule, or callable without arguments.
        beta_1: share of the first moment kept at each step, in [0, 1).
        beta_2: share of the second moment kept, in [0.6, 1); below, r_inf <= 4.
        epsilon: added to the root, in units of the gradient.
        threshold: length of the average from which it is trusted, above 4.
        **options: see `keras_dlopt.optimizers.Optimizer`.

    Raises:
        ConfigError: for arguments out of range.

    Example:
        >>> v = keras.Variable([1.0])
        >>> RAdam(0.1).apply([keras.ops.array([0.5])], [v])
        >>> v.numpy().round(4).tolist()
        [0.95]

    Source: Liu et al., "On the Variance of the Adaptive Learning Rate and Beyond"
    (arXiv:1908.03265), algorithm 2. Differs from the paper: the threshold is 5, as in
    the authors' code, where the paper has 4.
    """

    slot_names = ("momentum", "velocity")
    elementwise = True

    beta_1: float = hyper(default=0.9, check=share_kept)
    beta_2: float = hyper(default=0.999, check=share_kept, least=None, above=0.6)
    epsilon: float = hyper(default=1e-8, check=checks.rate)
    threshold: float = hyper(default=5.0, check=checks.number, above=4)

    def rule(self, gradient, weight, slots, lr, step):
        m = mean(slots["momentum"], gradient, self.beta_1)
        v = mean(slots["velocity"], ops.square(gradient), self.beta_2)
        grown = seen(self.beta_2, step)
        longest = 2 / (1 - self.beta_2) - 1
        length = longest - 2 * step * (1 - grown) / grown
        known = length >= self.threshold
        safe = ops.where(known, length, ops.full_like(length, longest))
        rectifier = ops.sqrt(
            (safe - 4) * (safe - 2) * longest / ((longest - 4) * (longest - 2) * safe)
        )
        direction = unbias(m, self.beta_1, step)
        root = ops.sqrt(unbias(v, self.beta_2, step)) + self.epsilon
        adapted = rectifier * direction / root
        change = lr * ops.where(known, adapted, direction)
        return change, {"momentum": m, "velocity": v}
