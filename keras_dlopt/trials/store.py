"""What became of each trial, in an SQLite file that Optuna reads and writes."""

import contextlib
import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import filelock

from keras_dlopt.errors import ConfigError, FormatError

_LOCK_SECONDS = 30.0  # that SQLite waits for another program that writes


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of one trial.

    Attributes:
        task: the keyword arguments.
        state: `"done"` or `"failed"`.
        value: number that the function returned; None if it failed.
        result: all that it returned.
        error: why it failed, else empty.
        seconds: that it took.
    """

    task: dict[str, Any]
    state: str
    value: float | None
    result: Any
    error: str
    seconds: float


class Store:
    """One study in an SQLite file.

    Args:
        path: of the file.
        name: of the study.
        space: that is searched, see `run_tasks`.
        maximize: whether a higher value is better.
        seed: of the search.
        target: name of what runs; its results are not those of another one.

    Raises:
        ConfigError: for a study that was made for another target, direction or space.
        FormatError: for a file that SQLite cannot read or write.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        name: str,
        *,
        space: Mapping[str, Any],
        maximize: bool,
        seed: int,
        target: str = "",
    ):
        import optuna

        self._optuna = optuna
        self._state = optuna.trial.TrialState
        self._space = {k: _distribution(optuna, k, v) for k, v in space.items()}
        self.name = name
        file = pathlib.Path(path).absolute()
        with _usable(optuna, file):
            storage = optuna.storages.RDBStorage(
                f"sqlite:///{file}",
                engine_kwargs={"connect_args": {"timeout": _LOCK_SECONDS}},
            )
            self._study = optuna.create_study(
                storage=storage,
                study_name=name,
                load_if_exists=True,
                direction="maximize" if maximize else "minimize",
            )
            # With the seed alone, a search that goes on would draw its first trials
            # once more.
            begun = len(self._study.get_trials(deepcopy=False))
            mixed = (seed + 1_000_003 * begun) % 2**32
            self._study.sampler = optuna.samplers.TPESampler(seed=mixed)
            self._check(file, maximize, target)
        self._trials: dict[int, Any] = {}
        self._searched = 0

    def _check(self, file: pathlib.Path, maximize: bool, target: str) -> None:
        """Refuses a study that was made for something else."""
        stored = self._study.user_attrs.get("target", target)
        known = self._study.direction == self._optuna.study.StudyDirection.MAXIMIZE
        other = ""
        if stored != target:
            other = f"the results of {stored!r}, not of {target!r}"
        elif known != maximize:
            other = f"maximize={known}, not {maximize}"
        for trial in self._study.get_trials(deepcopy=False):
            for key in trial.distributions.keys() & self._space.keys():
                try:
                    self._optuna.distributions.check_distribution_compatibility(
                        trial.distributions[key], self._space[key]
                    )
                except ValueError:
                    other = f"{key!r} searched in {trial.distributions[key]}"
        if other:
            raise ConfigError(
                f"The study {self.name!r} in {file} has {other}. Give another name "
                "or store, or what it was made with."
            )
        self._study.set_user_attr("target", target)

    def begin(self, tasks: Sequence[Mapping[str, Any]], trials: int) -> list[int]:
        """Adds tasks that are new; returns the numbers of those that are to run."""
        done, again = set(), []
        for trial in self._study.get_trials(deepcopy=False):
            searched = "task" not in trial.user_attrs
            if trial.state == self._state.RUNNING:  # its process was killed
                self._study.tell(trial.number, state=self._state.FAIL)
            elif trial.state == self._state.COMPLETE and searched:
                self._searched += 1
            elif trial.state == self._state.COMPLETE:
                done.add(key_of(trial.user_attrs["task"]))
        for task in tasks:
            key = key_of(task)
            if key not in done:
                done.add(key)
                again.append(self._add(dict(task)))
        return again

    def _add(self, task: dict[str, Any], tries: int = 0) -> int:
        trial = self._study.ask()
        trial.set_user_attr("task", task)
        trial.set_user_attr("tries", tries)
        self._trials[trial.number] = trial
        return trial.number

    def wants(self, trials: int) -> bool:
        """Whether the search has trials to ask for."""
        return self._searched < trials

    def ask(self) -> int:
        """The number of the search's next trial."""
        self._searched += 1
        trial = self._study.ask(self._space)
        self._trials[trial.number] = trial
        return trial.number

    def task(self, number: int) -> dict[str, Any]:
        """The keyword arguments of a trial."""
        trial = self._trials[number]
        return trial.user_attrs.get("task") or dict(trial.params)

    def finish(
        self, number: int, result: Any, error: str, seconds: float, *, retries: int
    ) -> int | None:
        """Notes how a trial ended; returns the number of its repetition, if any."""
        trial = self._trials.pop(number)
        value = None if error else value_of(result)
        if not error and value is None:
            error = (
                "returned no finite number: return one, or a dictionary with a finite "
                f"'value'. Returned: {str(result)[:200]}"
            )
        trial.set_user_attr("seconds", seconds)
        trial.set_user_attr("result", result)
        if not error:
            self._study.tell(trial, value)
            return None
        trial.set_user_attr("error", error)
        self._study.tell(trial, state=self._state.FAIL)
        task, tries = trial.user_attrs.get("task"), trial.user_attrs.get("tries", 0)
        if task is None or tries >= retries:
            return None
        return self._add(task, tries + 1)

    def summary(self) -> tuple[int, int, float | None]:
        """Trials that are done, trials that failed, and the best value."""
        trials = self._study.get_trials(deepcopy=False)
        done = [t for t in trials if t.state == self._state.COMPLETE]
        failed = [t for t in trials if t.state == self._state.FAIL]
        best = self._study.best_value if done else None
        return len(done), len(failed), best

    def outcomes(
        self, tasks: Sequence[Mapping[str, Any]], trials: int
    ) -> list[Outcome]:
        """The last outcome of each task, then as many of the search as were asked for.

        Trials that failed or were killed give way to those that were run for them.
        """
        given: dict[str, Outcome] = {}
        searched = []
        for trial in self._study.get_trials(deepcopy=False):
            outcome = self._outcome(trial)
            if "task" not in trial.user_attrs:
                searched.append(outcome)
                continue
            key = key_of(trial.user_attrs["task"])
            if key not in given or given[key].state != "done":
                given[key] = outcome
        done = [i for i, one in enumerate(searched) if one.state == "done"]
        failed = [i for i, one in enumerate(searched) if one.state != "done"]
        left = max(trials - len(done), 0)
        kept = sorted(done[:trials] + failed[max(len(failed) - left, 0) :])
        return [given[key_of(task)] for task in tasks] + [searched[i] for i in kept]

    def _outcome(self, trial: Any) -> Outcome:
        done = trial.state == self._state.COMPLETE
        return Outcome(
            task=trial.user_attrs.get("task") or dict(trial.params),
            state="done" if done else "failed",
            value=trial.value if done else None,
            result=trial.user_attrs.get("result"),
            error="" if done else trial.user_attrs.get("error", "was killed"),
            seconds=trial.user_attrs.get("seconds", 0.0),
        )


@contextlib.contextmanager
def _usable(optuna: Any, file: pathlib.Path) -> Iterator[None]:
    """Inside, what SQLite and Optuna say about a file becomes an error of ours."""
    import sqlalchemy

    quiet = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    except (
        sqlalchemy.exc.SQLAlchemyError,
        optuna.exceptions.StorageInternalError,
        RuntimeError,  # tables of another version of Optuna
    ) as error:
        why = str(error.__cause__ or error).splitlines()[0]
        raise FormatError(
            f"The store {file} cannot be used: {why} If another program holds it, "
            "wait for that; if it is damaged or no store of run_tasks, give another "
            "file."
        ) from error
    finally:
        optuna.logging.set_verbosity(quiet)


@contextlib.contextmanager
def alone(path: str | os.PathLike[str]) -> Iterator[None]:
    """Inside, no other scheduler of this machine can use the store.

    One would take the other's trials for those of a process that was killed.

    Raises:
        ConfigError: if there is one, or the file cannot be made.
    """
    place = pathlib.Path(path).absolute()
    if place.is_dir() or "?" in str(path):
        raise ConfigError(
            f"store must be an SQLite file without '?' in its name. Received: {path}."
        )
    lock = filelock.FileLock(f"{place}.lock", blocking=False)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except filelock.Timeout:
        raise ConfigError(
            f"Another run_tasks is at work on the store {path}. Wait for its end, or "
            "give another store."
        ) from None
    except OSError as error:
        raise ConfigError(
            f"store must be a file that can be written. Received: {path} ({error})."
        ) from error
    try:
        yield
    finally:
        # While it is held: afterwards it could be another one's.
        with contextlib.suppress(OSError):  # an open file, on Windows
            os.unlink(lock.lock_file)
        lock.release()


def key_of(task: Mapping[str, Any]) -> str:
    """A text that equal tasks share.

    Raises:
        ConfigError: for a task that JSON cannot hold.
    """
    try:
        if not isinstance(task, Mapping):
            raise TypeError(f"it is of the type {type(task).__name__}")
        return json.dumps(dict(task), sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"A task must be a dictionary that JSON can hold. Received: {task!r} "
            f"({error}). Pass a recipe as recipe.to_dict()."
        ) from None


def value_of(result: Any) -> float | None:
    """The finite number in what a function returned."""
    value = result.get("value") if isinstance(result, dict) else result
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    return float(value) if math.isfinite(value) else None


def _distribution(optuna: Any, name: str, given: Any) -> Any:
    distributions = optuna.distributions
    if isinstance(given, list):
        return distributions.CategoricalDistribution(given)
    low, high, *rest = given if isinstance(given, tuple) and len(given) > 1 else (0, 0)
    if not low < high or rest not in ([], ["log"]):
        raise ConfigError(
            f"The space of {name!r} must be (low, high), (low, high, 'log') or a list "
            f"of choices. Received: {given!r}."
        )
    if isinstance(low, int) and isinstance(high, int):
        return distributions.IntDistribution(low, high, log=bool(rest))
    return distributions.FloatDistribution(float(low), float(high), log=bool(rest))
