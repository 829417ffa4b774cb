"""Work in threads, in order, with what it takes in memory at once kept in bounds."""

import collections
import concurrent.futures
import contextlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

PARALLEL_FROM = 1 << 20  # elements that are worth threads
MOST_THREADS = 8

T = TypeVar("T")
R = TypeVar("R")


class Gate:
    """Lets work in while what it takes fits into a budget together.

    Work that takes more than all of it is let in when nothing else is.

    Args:
        budget: bytes.
    """

    def __init__(self, budget: float):
        self.budget = budget
        self._taken, self._inside = 0, 0
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def admit(self, size: int) -> Iterator[None]:
        """Waits until there is room for `size` bytes; they are free afterwards."""
        with self._changed:
            self._changed.wait_for(
                lambda: not self._inside or self._taken + size <= self.budget
            )
            self._taken += size
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._taken -= size
                self._inside -= 1
                self._changed.notify_all()


def in_parallel(
    work_on: Callable[[T], R],
    items: Iterable[T],
    *,
    work: int,
    temporary: Callable[[T], int] = lambda item: 0,
    budget: float = float("inf"),
) -> Iterator[R]:
    """`map`, in threads where there is enough to do; few results wait at a time.

    Args:
        work_on: what to do with each item.
        items: in the order of the results.
        work: elements in all.
        temporary: bytes that the work on an item takes and gives back.
        budget: bytes that all work may take at one time; an item that needs more is
            worked on alone.
    """
    threads = min(len(os.sched_getaffinity(0)), MOST_THREADS)
    if threads < 2 or work < PARALLEL_FROM:
        yield from map(work_on, items)
        return
    gate = Gate(budget)

    def admitted(item: T) -> R:
        with gate.admit(temporary(item)):
            return work_on(item)

    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        waiting: collections.deque[concurrent.futures.Future[R]] = collections.deque()
        try:
            for item in items:
                waiting.append(pool.submit(admitted, item))
                if len(waiting) > threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
