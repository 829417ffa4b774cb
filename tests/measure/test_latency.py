"""Times of calls, with a clock that says what each took."""

import itertools
import time

import pytest

from keras_dlopt.errors import ConfigError
from keras_dlopt.measure.latency import WARM_UP, latency, median_time


class Clock:
    """Stands still but for the calls that move it, by 1, 2, ... seconds."""

    def __init__(self):
        self.now, self.takes = 0.0, itertools.count(1)

    def __call__(self):
        return self.now

    def call(self, x=None):
        self.now += next(self.takes)


@pytest.mark.parametrize("calls", [11, 21])
def test_quantiles_of_calls(calls, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock)
    found = latency({"one": clock.call}, None, calls=calls)["one"]
    # After the warm-up the calls take 4, 5, 6, ... seconds.
    first, last = WARM_UP + 1, WARM_UP + calls
    assert found.median == (first + last) / 2
    assert found.tenth == first + 0.1 * (calls - 1)
    assert found.ninetieth == first + 0.9 * (calls - 1)
    assert found.calls == calls


def test_two_are_timed_in_turns(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock)
    found = latency({"a": clock.call, "b": clock.call}, None, calls=5)
    assert found["b"].median == found["a"].median + 1


def test_the_median_leaves_the_first_call_out():
    clock = Clock()
    assert median_time(clock.call, calls=3, clock=clock) == 3.0


@pytest.mark.parametrize(("predict", "calls"), [({}, 5), ({"a": print}, 0)])
def test_nothing_to_measure_is_refused(predict, calls):
    with pytest.raises(ConfigError, match="needs at least one function and one call"):
        latency(predict, None, calls=calls)
