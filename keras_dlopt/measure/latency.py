"""How long a prediction takes, measured fairly: the candidates take turns."""

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np

from keras_dlopt.errors import ConfigError

Name = TypeVar("Name")
WARM_UP = 3


@dataclasses.dataclass(frozen=True)
class Latency:
    """Time of one call.

    Attributes:
        median: seconds.
        tenth: seconds; one call in ten is faster.
        ninetieth: seconds; one call in ten is slower.
        calls: number of measured calls.
    """

    median: float
    tenth: float
    ninetieth: float
    calls: int

    def text(self) -> str:
        """Median and spread in milliseconds.

        Example:
            >>> Latency(0.002, 0.0019, 0.0031, 50).text()
            '2.000 (1.900 to 3.100)'
        """
        spread = f"{1e3 * self.tenth:.3f} to {1e3 * self.ninetieth:.3f}"
        return f"{1e3 * self.median:.3f} ({spread})"


def median_time(
    call: Callable[[], Any], *, calls: int, clock: Callable[[], float]
) -> float:
    """Median seconds of a call, after one that is not timed.

    Args:
        call: what is timed; it has to wait for its own result.
        calls: how many are timed.
        clock: in seconds.
    """
    call()
    times = []
    for _ in range(calls):
        began = clock()
        call()
        times.append(clock() - began)
    return float(np.median(times))


def latency(
    predict: Mapping[Name, Callable[[Any], Any]], x: Any, *, calls: int = 50
) -> dict[Name, Latency]:
    """Times several ways to predict the same thing, interleaved call by call.

    On a shared machine only the ratio of two medians from one run means something.
    Zeros in the weights change nothing here: a pruned model is as fast as its parent
    unless channels were removed.

    Args:
        predict: name -> function of one batch. It must return when the result is
            there; `lambda x: np.asarray(model(x))` does.
        x: the batch.
        calls: measured calls of each, after 3 that warm up.

    Raises:
        ConfigError: for fewer than one call, or nothing to measure.

    Example:
        >>> latency({"negate": lambda x: -x}, np.zeros(3), calls=5)["negate"].calls
        5
    """
    if calls < 1 or not predict:
        raise ConfigError(
            "latency needs at least one function and one call. Received: "
            f"{list(predict)} and calls={calls}."
        )
    for function in predict.values():
        for _ in range(WARM_UP):
            function(x)
    seconds: dict[Name, list[float]] = {name: [] for name in predict}
    for _ in range(calls):
        for name, function in predict.items():
            start = time.perf_counter()
            function(x)
            seconds[name].append(time.perf_counter() - start)
    return {
        name: Latency(
            median=float(np.median(times)),
            tenth=float(np.quantile(times, 0.1)),
            ninetieth=float(np.quantile(times, 0.9)),
            calls=calls,
        )
        for name, times in seconds.items()
    }
