"""Fake quantization of activations: a grid whose range follows the data."""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_dlopt.errors import ConfigError
from keras_dlopt.transforms.base import State, Transform
from keras_dlopt.transforms.quantize import phases
from keras_dlopt.transforms.quantize.fake_quant import (
    batch_range,
    fake_quant,
    replica_values,
)
from keras_dlopt.transforms.quantize.grids import IntegerGrid
from keras_dlopt.transforms.quantize.layout import check_bits
from keras_dlopt.transforms.quantize.observers import (
    KL,
    MSE,
    MinMax,
    MovingAverage,
    Observer,
    Percentile,
    observer_of,
)


@keras.saving.register_keras_serializable("keras_dlopt")
class FakeQuantActivation(Transform):
    """Rounds a layer's input or output to 2^bits levels between a low and a high end.

    The range is a moving average of each batch's smallest and largest value,

        low  <- momentum * low  + (1 - momentum) * min(min(x), 0)
        high <- momentum * high + (1 - momentum) * max(max(x), 0)

    starting at the first batch's, and is nudged so that 0 is exactly one of the levels.
    Values outside are clipped; the gradient passes inside the range and is zero
    outside. Outside of training the range stays; as long as there is none, values pass
    as they are.

    State: three numbers.

    Args:
        bits: 2 to 16; LiteRT wants 8.
        momentum: weight of the old range, in [0, 1).
        range: fixed (low, high), such as (0, 255 / 256) after a sigmoid; None to learn
            it from the data.
        symmetric: whether the range is widened to (-m, m), and 0 the middle of
            2^bits - 1 levels.
        observer: of each batch, averaged with `momentum`: `"moving_average"` takes its
            ends, `"percentile"` its percentiles, `"mse"` the range with the smallest
            squared error of 20; `"min_max"` takes the widest range ever seen. An
            object such as `Percentile(99.9)` sets more. The two that look at every
            value cost several times as much as the ends.
        initial: (low, high) to start from, averaged like an older batch; None starts
            at the first batch's range.
        begin: step at which rounding begins; before it the range is only observed.
        freeze: step from which the range stays; None for never.

    Raises:
        ConfigError: for bits outside 2..16, a momentum outside [0, 1), a range that
            does not contain 0, steps out of order, or the observer `"kl"`, which needs
            a histogram of all data: `post_training.quantize` has it.

    Example:
        >>> from keras_dlopt import inside, named
        >>> import keras
        >>> entry = (named("output") & inside(keras.layers.ReLU), FakeQuantActivation())

    Source: Jacob et al. (arXiv:1712.05877), section 3.1.
    """

    kind = "activation"

    def __init__(
        self,
        *,
        bits: int = 8,
        momentum: float = 0.95,
        range: tuple[float, float] | None = None,
        symmetric: bool = False,
        observer: str | Observer = "moving_average",
        initial: tuple[float, float] | None = None,
        begin: int = 0,
        freeze: int | None = None,
    ):
        self.bits = check_bits(bits)
        if not 0.0 <= momentum < 1.0:
            raise ConfigError(f"momentum must be in [0, 1). Received: {momentum!r}.")
        phases.check_phases(begin, freeze)
        self.momentum = momentum
        self.range = _checked_range("range", range)
        self.symmetric = symmetric
        self.observer = observer_of(observer)
        if isinstance(self.observer, KL):
            raise ConfigError(
                "The observer 'kl' needs a histogram of all data and cannot run in a "
                "training step. Use 'mse' or 'percentile', or calibrate with "
                "post_training.quantize(model, data, observer='kl')."
            )
        if isinstance(self.observer, MovingAverage) and observer != "moving_average":
            self.momentum = self.observer.momentum
        self.initial = _checked_range("initial", initial)
        self.begin, self.freeze = begin, freeze

    def init(self, target, weight):
        low, high = self.range or self.initial or (0.0, 0.0)
        known = self.range is not None or self.initial is not None
        return {
            "low": State(np.array(low, "float32")),
            "high": State(np.array(high, "float32")),
            "seen": State(np.array(known, "float32")),
            **phases.phase_states(self.begin, self.freeze),
        }

    def apply(self, weight, state, context):
        low, high = state["low"], state["high"]
        if context.training and self.range is None:
            low, high = self._moved(weight, state)
            context.write("low", low)
            context.write("high", high)
            context.write("seen", ops.ones_like(state["seen"]))
        rounded = fake_quant(
            weight, low, high, bits=self.bits, narrow_range=self.symmetric
        )
        if not context.training and self.range is None and self.initial is None:
            # Before the first batch there is no range to round to.
            rounded = ops.where(state["seen"] > 0, rounded, weight)
        return ops.where(state["on"] > 0, rounded, weight) if self.begin else rounded

    def _moved(self, x: Any, state: dict[str, Any]) -> tuple[Any, Any]:
        """The range with this batch in it."""
        low, high, seen = state["low"], state["high"], state["seen"]
        smallest, largest = self._observed(x)
        if isinstance(self.observer, MinMax):
            smallest = ops.minimum(smallest, low)
            largest = ops.maximum(largest, high)
            keep: Any = 0.0
        else:
            keep = self.momentum * seen
        new_low = keep * low + (1 - keep) * smallest
        new_high = keep * high + (1 - keep) * largest
        if self.freeze is None:
            return new_low, new_high
        frozen = state["frozen"] > 0
        return ops.where(frozen, low, new_low), ops.where(frozen, high, new_high)

    def _observed(self, x: Any) -> tuple[Any, Any]:
        """This batch's range, with low <= 0 <= high."""
        match self.observer:
            case Percentile(percentile=share):
                ends = ops.quantile(
                    replica_values(x), ops.array([1 - share / 100, share / 100])
                )
                smallest, largest = ends[0], ends[1]
            case MSE():
                smallest, largest = self._least_error(replica_values(x))
            case _:
                smallest, largest = batch_range(x)
        smallest, largest = ops.minimum(smallest, 0.0), ops.maximum(largest, 0.0)
        if not self.symmetric:
            return smallest, largest
        largest = ops.maximum(-smallest, largest)
        return -largest, largest

    def _least_error(self, x: Any) -> tuple[Any, Any]:
        low, high = ops.minimum(ops.min(x), 0.0), ops.maximum(ops.max(x), 0.0)
        shares = np.linspace(1.0, 0.2, 20).astype("float32")
        grid = IntegerGrid(self.bits, symmetric=False, narrow=self.symmetric)
        errors = []
        for share in shares:
            scale, lowest, highest = grid.fit(share * low, share * high, ops)
            codes = ops.clip(ops.round(x / scale), lowest, highest)
            errors.append(ops.mean(ops.square(codes * scale - x)))
        best = ops.take(ops.convert_to_tensor(shares), ops.argmin(ops.stack(errors)))
        return best * low, best * high

    def calibrated(self, low: float, high: float, magnitude: float) -> dict:
        """The state after calibration on data of this range; empty if it is fixed."""
        if self.range is not None:
            return {}
        low, high = min(low, 0.0), max(high, 0.0)
        if self.symmetric:
            low, high = -max(-low, high), max(-low, high)
        state = {"low": low, "high": high, "seen": 1.0}
        if self.begin:
            state["on"] = 1.0
        if self.freeze is not None:
            state["frozen"] = 1.0
        return {k: np.array(v, "float32") for k, v in state.items()}

    def next_due(self, step):
        return phases.next_phase(self.begin, self.freeze, step)

    def update(self, group, step):
        return [phases.flags(self.begin, self.freeze, step) for _ in group]

    def remaining(self, step):
        return phases.remaining_phase(self.begin, self.freeze, step)


def _checked_range(
    name: str, given: tuple[float, float] | None
) -> tuple[float, float] | None:
    if given is None:
        return None
    if not given[0] <= 0 <= given[1] != given[0]:
        raise ConfigError(
            f"{name} must be (low, high) with low <= 0 <= high and low < high, since "
            f"0 must be one of the levels. Received: {given!r}."
        )
    return float(given[0]), float(given[1])
