"""What became of each trial, in an SQLite file that Optuna reads and writes."""

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from keras_dlopt.errors import ConfigError, missing


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
    """

    def __init__(
        self,
        path: str | os.PathLike,
        name: str,
        *,
        space: Mapping[str, Any],
        maximize: bool,
        seed: int,
    ):
        try:
            import optuna
        except ImportError as error:
            purpose = "The store of run_tasks"
            raise missing("optuna", extra="auto", purpose=purpose) from error
        self._optuna = optuna
        self._state = optuna.trial.TrialState
        self._space = {k: _distribution(optuna, k, v) for k, v in space.items()}
        self.name = name
        file = pathlib.Path(path).absolute()
        file.parent.mkdir(parents=True, exist_ok=True)
        quiet = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        try:
            self._study = optuna.create_study(
                storage=f"sqlite:///{file}",
                study_name=name,
                load_if_exists=True,
                direction="maximize" if maximize else "minimize",
                sampler=optuna.samplers.TPESampler(seed=seed),
            )
        finally:
            optuna.logging.set_verbosity(quiet)
        self._trials: dict[int, Any] = {}
        self._searched = 0

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

    def outcomes(self, tasks: Sequence[Mapping[str, Any]]) -> list[Outcome]:
        """The last outcome of each task, then those of the search."""
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
        return [given[key_of(task)] for task in tasks] + searched

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


def key_of(task: Mapping[str, Any]) -> str:
    """A text that equal tasks share.

    Raises:
        ConfigError: for a task that JSON cannot hold.
    """
    try:
        return json.dumps(task, sort_keys=True, allow_nan=False)
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
