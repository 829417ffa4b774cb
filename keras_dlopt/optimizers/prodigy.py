"""Prodigy: Adam that finds its own learning rate."""

from typing import Any

import keras
from keras import ops

from keras_dlopt import checks, runtime
from keras_dlopt.optimizers import _options
from keras_dlopt.optimizers._hyper import hyper
from keras_dlopt.optimizers._moments import mean
from keras_dlopt.optimizers._options import share_kept
from keras_dlopt.optimizers.base import Optimizer


def prodigy_distance(
    dots: list[Any], sums: list[Any], *, numerator: Any, distance: Any
) -> Any:
    """The new estimate of how far the solution is from the start.

    Args:
        dots: new terms of the numerator, one scalar per weight.
        sums: the running sums of gradients, one tensor per weight.
        numerator: running numerator, already decayed.
        distance: estimate so far.
    """
    total = numerator + ops.sum(ops.stack(dots))
    length = ops.sum(ops.stack([ops.sum(ops.abs(s)) for s in sums]))
    found = ops.where(length > 0, total / ops.maximum(length, 1e-30), distance)
    return ops.maximum(distance, found), total


@keras.saving.register_keras_serializable("keras_dlopt")
class Prodigy(Optimizer):
    r"""Prodigy: Adam whose step is scaled by the estimated distance to the solution.

    With gradient g, starting weights w_0, estimate d (starting at `initial_distance`),
    and c = lr * sqrt(1 - beta_2^t) / (1 - beta_1^t):

        m <- beta_1 m + (1 - beta_1) d g
        v <- beta_2 v + (1 - beta_2) d^2 g^2
        r <- beta_3 r + c d^2 <g, w_0 - w>          beta_3 = sqrt(beta_2)
        s <- beta_3 s + c d^2 g
        w <- w - c d * m / (sqrt(v) + d epsilon)
        d <- max(d, r / |s|_1)                      sums over all weights

    State: 16 bytes a parameter.

    Args:
        learning_rate: factor on the rate that it finds; 1.0, or a schedule that ends
            lower.
        beta_1: share of the first moment kept at each step, in [0, 1).
        beta_2: share of the second moment kept, in [0, 1).
        initial_distance: first estimate, small and positive.
        epsilon: added to the root, in units of the gradient.
        **options: see `keras_dlopt.optimizers.Optimizer`.

    Raises:
        ConfigError: for arguments out of range.

    Example:
        >>> v = keras.Variable([1.0])
        >>> prodigy = Prodigy()
        >>> for _ in range(120): prodigy.apply([2 * v.value], [v])
        >>> bool(abs(v.numpy()[0]) < 0.05)
        True

    Source: Mishchenko and Defazio, "Prodigy" (arXiv:2306.06101), algorithm 4. Differs
    from the paper: bias-corrected as in the authors' code; the factor (1 - beta_3) in r
    and s, which cancels in their ratio, is left out.
    """

    slot_names = ("momentum", "velocity", "gradient_sum", "start")
    couples_weights = True
    moves_all = True

    learning_rate: Any = hyper(default=1.0, check=_options.learning_rate)
    beta_1: float = hyper(default=0.9, check=share_kept)
    beta_2: float = hyper(default=0.999, check=share_kept)
    initial_distance: float = hyper(default=1e-6, check=checks.positive)
    epsilon: float = hyper(default=1e-8, check=checks.rate)

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        start = keras.initializers.Constant(self.initial_distance)
        self.add_shared_variable("distance", shape=(), initializer=start)
        self.add_shared_variable("numerator", shape=(), initializer="zeros")

    def update(self, grads, cells, lr, step, *, shared, resting=()):
        d = runtime.read(shared["distance"])
        power_1 = ops.power(ops.cast(self.beta_1, "float32"), step)
        power_2 = ops.power(ops.cast(self.beta_2, "float32"), step)
        rate = ops.cast(lr, "float32") * ops.sqrt(1 - power_2) / (1 - power_1)
        beta_3 = self.beta_2**0.5
        dots, sums = [], []
        for gradient, cell in zip(grads, cells, strict=True):
            total, dot = self._update_cell(gradient, cell, rate, d, step, beta_3)
            sums.append(ops.cast(total, "float32"))
            dots.append(ops.cast(dot, "float32"))
        for cell in resting:
            sums.append(ops.cast(self._rest(cell, step, beta_3), "float32"))
        numerator = beta_3 * runtime.read(shared["numerator"])
        d, numerator = prodigy_distance(dots, sums, numerator=numerator, distance=d)
        runtime.assign(shared["distance"], d)
        runtime.assign(shared["numerator"], numerator)

    def _rest(self, cell, step, beta_3):
        """A weight without a gradient: it still has a start, and a part in the sums."""
        weight, slots = cell.read()
        total = beta_3 * slots["gradient_sum"]
        start = ops.where(step > 1, slots["start"], weight)
        cell.write(weight, {"gradient_sum": total, "start": start})
        return total

    def _update_cell(self, gradient, cell, rate, d, step, beta_3):
        rate, d, step = (ops.cast(x, cell.dtype) for x in (rate, d, step))
        weight, slots = cell.read()
        start = ops.where(step > 1, slots["start"], weight)
        m = mean(slots["momentum"], d * gradient, self.beta_1)
        v = mean(slots["velocity"], ops.square(d * gradient), self.beta_2)
        total = beta_3 * slots["gradient_sum"] + rate * d * d * gradient
        dot = rate * d * d * ops.sum(gradient * (start - weight))
        change = m / (ops.sqrt(v) + d * self.epsilon)
        change = self.decayed(change, gradient, weight, 1.0, cell.decay)
        new = {"momentum": m, "velocity": v, "gradient_sum": total, "start": start}
        cell.write(weight - rate * d * cell.multiplier * change, new)
        return total, dot
