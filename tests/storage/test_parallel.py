"""Threads in order, within a budget of memory; what decoders take is counted."""

import os
import threading
import tracemalloc

import numpy as np
import pytest

from keras_dlopt.codecs import Tensor
from keras_dlopt.storage import parallel
from keras_dlopt.storage.contents import SavedState, read_contents, write_contents
from keras_dlopt.storage.records import Record

SIZES = [7, 3, 40, 1, 1, 25, 6, 2, 30, 9, 4, 4, 8, 5, 120, 3, 3, 17, 2, 2]


@pytest.fixture(autouse=True)
def _fresh_keras_state():
    """No Keras here."""


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    monkeypatch.setattr(parallel, "PARALLEL_FROM", 0)


class Counted:
    """What is inside at one time; a barrier holds pairs until both are there."""

    def __init__(self):
        self.lock, self.inside, self.sums, self.most = threading.Lock(), {}, [], 0

    def work(self, item):
        place, size = item
        with self.lock:
            self.inside[place] = size
            self.sums.append((sum(self.inside.values()), len(self.inside)))
        threading.Event().wait(0.002)
        with self.lock:
            del self.inside[place]
        return place


def test_what_is_worked_on_at_once_stays_within_the_budget():
    counted, budget = Counted(), 50
    found = parallel.in_parallel(
        counted.work,
        list(enumerate(SIZES * 3)),
        work=1,
        temporary=lambda item: item[1],
        budget=budget,
    )
    assert list(found) == list(range(3 * len(SIZES)))
    assert all(total <= budget or alone == 1 for total, alone in counted.sums)
    assert max(total for total, _ in counted.sums) == 120  # larger than all, and alone


def test_threads_work_together_where_the_budget_lets_them():
    meet = threading.Barrier(8, timeout=30)
    found = parallel.in_parallel(
        lambda i: (meet.wait(), i)[1],
        range(8),
        work=1,
        temporary=lambda i: 10,
        budget=80,
    )
    assert list(found) == list(range(8))


def test_the_first_exception_is_raised_and_the_rest_is_dropped():
    started = []

    def work(i):
        started.append(i)
        if i in (3, 5):
            raise KeyError(i)
        return i

    found = parallel.in_parallel(
        work, range(1000), work=1, temporary=lambda i: 1, budget=1
    )
    assert [next(found) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(KeyError, match="3"):
        next(found)
    assert len(started) < 30


def test_records_are_admitted_by_what_they_take(monkeypatch):
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=n) for n in (4000, 9000, 700, 6000, 5000)]
    state = SavedState([f"a{i}" for i in range(5)], arrays, 5, 5)
    data = write_contents({}, state, lambda i: None)
    seen, admit = [], parallel.Gate.admit

    def watched(gate, size):
        seen.append((size, gate.budget))
        return admit(gate, size)

    monkeypatch.setattr(parallel.Gate, "admit", watched)
    limit = 10**6
    read = read_contents(data, max_bytes=limit)
    assert [t.array.tobytes() for t in read.tensors] == [a.tobytes() for a in arrays]
    assert sorted(seen) == sorted((2**22 + 48 * a.size, limit) for a in arrays)


def hard(n):
    """Arrays whose decoders take the most."""
    rng = np.random.default_rng(0)
    yield np.tile(rng.normal(size=n // 8), 8)
    kept = rng.random(n) < 0.5
    yield np.where(kept, rng.normal(size=n), 0).astype("float32")
    yield np.where(kept, np.rint(rng.normal(0, 25, n)), 0).astype("int8")
    yield (np.rint(rng.normal(0, 25, n)).reshape(-1, 64) * 0.013).astype("float16")
    yield (np.rint(rng.normal(0, 0.3, n)).reshape(-1, 64) * 0.013).astype("float32")


@pytest.mark.parametrize("version", [1, 3])
@pytest.mark.parametrize("off", ["", "1"])
def test_decoders_take_no_more_than_is_counted(version, off, monkeypatch):
    monkeypatch.setenv("KERAS_DLOPT_NO_NUMBA", off)
    for array in hard(1 << 17):
        data = memoryview(Tensor(version=version).encode(array))
        record = Record(data, max_bytes=2**30)
        record.decode()
        tracemalloc.start()
        record.decode()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak <= record.nbytes + record.temporary
