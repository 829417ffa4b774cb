"""Many trials over the devices and processes of a machine, or of a Ray cluster."""

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from keras_dlopt import checks
from keras_dlopt.errors import ConfigError, require
from keras_dlopt.processes import ended_by_sigterm
from keras_dlopt.trials.executors import Local, Ray, target_of
from keras_dlopt.trials.store import Outcome, Store, alone, key_of

_POLL = 0.05


class Handle(Protocol):
    """A trial that runs."""

    def poll(self) -> tuple[Any, str] | None:
        """Its result and an error text (empty if it went well); None while it runs."""

    def stop(self) -> None:
        """Ends it."""


@dataclasses.dataclass
class _Running:
    number: int
    handle: Handle
    slot: int
    began: float


def run_tasks(
    target: str | Callable[..., Any],
    tasks: Sequence[Mapping[str, Any]] = (),
    *,
    store: str | os.PathLike[str],
    name: str = "tasks",
    space: Mapping[str, Any] | None = None,
    trials: int = 0,
    maximize: bool = False,
    seed: int = 0,
    slots: Sequence[Mapping[str, str]] | int | None = None,
    seconds: float = 3600.0,
    retries: int = 0,
    progress: bool = False,
    executor: str = "processes",
) -> list[Outcome]:
    """Runs a function once per task, each in a process of its own, and keeps results.

    Tasks that an earlier call finished in the same store are not run again; those that
    failed, or were running when their process was killed, are. A trial that fails or
    takes too long does not stop the others. When the scheduler ends, also by Ctrl-C,
    SIGTERM or SIGKILL, so do its trials, with all they started.

    Args:
        target: `"module:function"`, `"file.py:function"`, or a function that can be
            found that way. It gets a task's entries as keyword arguments and returns a
            number, or a dictionary that JSON can hold with a number `"value"`.
        tasks: one dictionary per trial, of values that JSON can hold: recipes, learning
            rates, seeds.
        store: SQLite file, made if it is not there; Optuna can read it.
        name: of the study in the store.
        space: in addition to `tasks`, what Optuna searches: name -> `(low, high)`,
            `(low, high, "log")` or a list of choices.
        trials: number of trials in `space`, those of earlier calls included.
        maximize: whether a higher value is better, for the search.
        seed: of the search.
        slots: environment variables of each trial that may run at a time, or their
            number; None for one per GPU, else one per two cores.
        seconds: longest time for one trial.
        retries: how often to run a trial again that failed.
        progress: whether to show a bar on stderr.
        executor: `"processes"`, or `"ray"` for a cluster.

    Returns:
        An outcome per task, in the order of `tasks`, then one per trial of the search.

    Raises:
        ConfigError: for a target that cannot be found, options out of range, a store
            in use, or a study that was made for something else.
        FormatError: for a store that cannot be read.
        MissingDependencyError: without Optuna, or without Ray where it was asked for.
    """
    places = _slots(slots)
    _check(executor, trials, space, seconds, retries)
    where = target_of(target)
    start = Ray(where) if executor == "ray" else Local(where)
    for task in tasks:
        key_of(task)
    with alone(store), ended_by_sigterm():
        book = Store(
            store,
            name,
            space=space or {},
            maximize=maximize,
            seed=seed,
            target=where.rpartition("/")[2],
        )
        waiting = book.begin(tasks, trials)
        with _shown(progress, book, len(tasks) + trials) as show:
            _work(book, waiting, start, places, trials, seconds, retries, show)
        return book.outcomes(tasks, trials)


def _work(
    book: Store,
    waiting: list[int],
    start: Callable[..., Handle],
    places: Sequence[Mapping[str, str]],
    trials: int,
    seconds: float,
    retries: int,
    show: Callable[[], None],
) -> None:
    """Runs what waits and what the search wants, as many at a time as places."""
    running: list[_Running] = []
    free = list(range(len(places)))
    try:
        while waiting or running or book.wants(trials):
            while free and (waiting or book.wants(trials)):
                number = waiting.pop(0) if waiting else book.ask()
                slot = free.pop(0)
                handle = start(book.task(number), places[slot])
                running.append(_Running(number, handle, slot, time.monotonic()))
            for one in list(running):
                ended = _ended(one, seconds)
                if ended is None:
                    continue
                running.remove(one)
                free.append(one.slot)
                again = book.finish(one.number, *ended, retries=retries)
                waiting += [] if again is None else [again]
                show()
            time.sleep(_POLL)
    finally:
        for one in running:
            one.handle.stop()


def _ended(one: _Running, seconds: float) -> tuple[Any, str, float] | None:
    """Result, error and seconds of a trial that has ended or must."""
    taken = time.monotonic() - one.began
    result = one.handle.poll()
    if result is not None:
        return (*result, taken)
    if taken < seconds:
        return None
    one.handle.stop()
    return None, f"timed out after {seconds:g} s and was ended", taken


def default_slots() -> list[dict[str, str]]:
    """One slot per GPU, else one per two cores with that many threads."""
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        return [{"CUDA_VISIBLE_DEVICES": str(i)} for i in range(len(gpus))]
    count = max(1, (os.cpu_count() or 1) // 2)
    threads = str(max(1, (os.cpu_count() or 1) // count))
    names = ("TF_NUM_INTRAOP_THREADS", "OMP_NUM_THREADS")
    return [dict.fromkeys(names, threads) for _ in range(count)]


def _slots(slots: Any) -> list[Mapping[str, str]]:
    if slots is None:
        return list(default_slots())
    many = isinstance(slots, Sequence) and all(isinstance(s, Mapping) for s in slots)
    places = [{}] * slots if isinstance(slots, int) else list(slots) if many else []
    if not places:
        raise ConfigError(
            "slots must be 1 or more, or a list of dictionaries of environment "
            f"variables. Received: {slots!r}."
        )
    return [{k: str(v) for k, v in place.items()} for place in places]


def _check(
    executor: str, trials: int, space: Any, seconds: float, retries: int
) -> None:
    checks.choice(executor, name="executor", choices=("processes", "ray"))
    checks.whole(trials, name="trials", least=0)
    checks.whole(retries, name="retries", least=0)
    checks.positive(seconds, name="seconds")
    if bool(trials) != bool(space):
        raise ConfigError(
            "A search needs both a space and a number of trials. Received: "
            f"space={space!r}, trials={trials}."
        )
    require("optuna", extra="auto", purpose="The store of run_tasks")
    if executor == "ray":
        require("ray", extra="ray", purpose="executor='ray'")


@contextlib.contextmanager
def _shown(progress: bool, book: Store, total: int) -> Iterator[Callable[[], None]]:
    """Gives a function that brings the bar up to date."""
    if not progress:
        yield lambda: None
        return
    from rich.console import Console

    from keras_dlopt.trials.progress import bar

    with bar(Console(stderr=True)) as shown:
        task = shown.add_task(book.name, total=total, note="")

        def show() -> None:
            done, failed, best = book.summary()
            note = f"{failed} failed" if failed else ""
            if best is not None:
                note = f"best {best:.6g} {note}"
            shown.update(task, completed=done + failed, note=note)

        show()
        yield show
