"""Choosing a learning rate by random search and k-fold cross-validation."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from keras_dlopt import checks
from keras_dlopt.errors import ConfigError, DataError, missing
from keras_dlopt.schedules.parts import check_steps


@dataclasses.dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        best_rate: the rate with the best mean value.
        best_value: that value.
        trials: one dict per finished trial: `number`, `rate`, `value` (mean over the
            folds; NaN if the trial diverged), `folds` (value of each fold).
    """

    best_rate: float
    best_value: float
    trials: list[dict]


# What two runs that share a storage must agree in.
_SAME = ("low", "high", "folds", "epochs", "batch_size", "monitor", "seed")


class LearningRateSearch:
    """Random search for the learning rate, each rate judged by cross-validation.

    Trial n trains with the rate exp(u_n), u_n uniform in [log low, log high] and drawn
    from (`seed`, n) alone. The data are cut into `folds` parts; each part in turn is
    the validation data of a model trained on the others. The value of a trial is the
    mean over the folds of the best epoch's `monitor`. With `storage`, finished trials
    are kept in a file, and a search that was interrupted goes on where it stopped, with
    the rates it would have drawn anyway.

    Args:
        build: makes a new compiled model from a learning rate.
        low: lowest rate.
        high: highest rate.
        trials: rates to try in all.
        folds: parts of the data, 2 or more; 1 holds out one fifth instead.
        epochs: of each training.
        batch_size: of each training.
        monitor: name in the history of `fit` to judge by.
        mode: `"min"` if a lower value is better, `"max"` if a higher is.
        seed: of the rates, the folds and the models' initial weights.
        storage: an Optuna storage URL such as `"sqlite:///search.db"`; None keeps the
            trials in memory.
        name: of the study in the storage.

    Raises:
        ConfigError: for arguments out of range.
        MissingDependencyError: without Optuna, when the search runs.

    Example:
        >>> search = LearningRateSearch(lambda rate: None, trials=3, seed=1)
        >>> 1e-5 <= search.rate(0) <= 1e-1
        True

    Source: Bergstra and Bengio, "Random Search for Hyper-Parameter Optimization"
    (JMLR 13, 2012), section 2.
    """

    def __init__(
        self,
        build: Callable[[float], keras.Model],
        *,
        low: float = 1e-5,
        high: float = 1e-1,
        trials: int = 20,
        folds: int = 5,
        epochs: int = 5,
        batch_size: int = 128,
        monitor: str = "val_loss",
        mode: str = "min",
        seed: int = 0,
        storage: str | None = None,
        name: str = "learning_rate",
    ):
        self.build = checks.function(build, name="build")
        self.low = checks.positive(low, name="low")
        self.high = checks.positive(high, name="high")
        checks.ordered(strict=True, low=self.low, high=self.high)
        self.trials = check_steps(trials, name="trials", unit="trials")
        self.folds = check_steps(folds, name="folds", unit="folds")
        self.epochs = check_steps(epochs, name="epochs", unit="epochs")
        self.batch_size = check_steps(batch_size, name="batch_size", unit="examples")
        self.mode = checks.choice(mode, name="mode", choices=("min", "max"))
        self.monitor = checks.text(monitor, name="monitor")
        self.seed = checks.seed(seed)
        self.storage, self.name = storage, name

    def rate(self, number: int) -> float:
        """The learning rate of trial `number`."""
        u = np.random.default_rng([self.seed, number]).uniform()
        span = math.log(self.high) - math.log(self.low)
        return float(math.exp(math.log(self.low) + u * span))

    def run(self, x: Any, y: Any) -> SearchResult:
        """Tries what is left of the trials; returns all of them.

        Args:
            x: examples, an array with the examples along axis 0.
            y: their targets, an array.

        Raises:
            DataError: if there are fewer examples than folds, or `y` does not match.
        """
        x, y = np.asarray(x), np.asarray(y)
        if len(x) != len(y) or len(x) < max(self.folds, 2):
            raise DataError(
                f"Cross-validation with folds={self.folds} needs at least that many "
                f"examples, with one target each. Received: {len(x)} examples, "
                f"{len(y)} targets."
            )
        optuna = _optuna()
        study = optuna.create_study(
            storage=self.storage,
            study_name=self.name,
            direction="minimize" if self.mode == "min" else "maximize",
            load_if_exists=True,
            sampler=optuna.samplers.RandomSampler(seed=self.seed),
        )
        self._check_same(study)
        done = {t.user_attrs["number"] for t in study.trials if t.state.is_finished()}
        for number in range(self.trials):
            if number not in done:
                self._try(optuna, study, number, x, y)
        return self._result(study)

    def _check_same(self, study: Any) -> None:
        ours = {name: getattr(self, name) for name in _SAME}
        theirs = study.user_attrs.get("search")
        if theirs is None:
            study.set_user_attr("search", ours)
        elif theirs != ours:
            raise ConfigError(
                f"The storage holds a search named {self.name!r} with other settings: "
                f"{theirs}. Received: {ours}. Use these settings to resume it, or "
                "another name or storage for a new one."
            )

    def _try(self, optuna: Any, study: Any, number: int, x, y) -> None:
        rate = self.rate(number)
        study.enqueue_trial({"rate": rate}, user_attrs={"number": number})
        trial = study.ask(
            {
                "rate": optuna.distributions.FloatDistribution(
                    self.low, self.high, log=True
                )
            }
        )
        values = [
            self._train(rate, *parts) for parts in _folds(x, y, self.folds, self.seed)
        ]
        trial.set_user_attr("number", number)
        trial.set_user_attr("folds", values)
        mean = float(np.mean(values))
        if math.isfinite(mean):
            study.tell(trial, mean)
        else:  # Optuna stores no NaN: the rate diverged
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)

    def _train(self, rate: float, x, y, held_x, held_y) -> float:
        keras.utils.set_random_seed(self.seed)
        history = (
            self.build(rate)
            .fit(
                x,
                y,
                validation_data=(held_x, held_y),
                epochs=self.epochs,
                batch_size=self.batch_size,
                verbose=0,
            )
            .history
        )
        if self.monitor not in history:
            raise ConfigError(
                f"The monitored value {self.monitor!r} is not in the history. "
                f"Available: {sorted(history)}."
            )
        best = np.nanmin if self.mode == "min" else np.nanmax
        values = np.asarray(history[self.monitor], "float64")
        finite = np.isfinite(values).all()
        return float(best(values)) if finite else math.nan

    def _result(self, study: Any) -> SearchResult:
        rows = [
            {
                "number": t.user_attrs["number"],
                "rate": t.params["rate"],
                "value": math.nan if t.value is None else float(t.value),
                "folds": t.user_attrs["folds"],
            }
            for t in study.trials
            if t.state.is_finished() and "folds" in t.user_attrs
        ]
        rows.sort(key=lambda row: row["number"])
        good = [row for row in rows if math.isfinite(row["value"])]
        if not good:
            raise ConfigError(
                "Every rate of the search diverged. Received: "
                f"low={self.low}, high={self.high}. Lower both."
            )
        sign = 1.0 if self.mode == "min" else -1.0
        best = min(good, key=lambda row: sign * row["value"])
        return SearchResult(best["rate"], best["value"], rows)


def _folds(x, y, folds: int, seed: int):
    """Training and held-out arrays of each fold, the same for every rate."""
    order = np.random.default_rng(seed).permutation(len(x))
    parts = np.array_split(order, folds if folds > 1 else min(5, len(x)))
    for i in range(folds):
        rest = np.concatenate([part for j, part in enumerate(parts) if j != i])
        yield x[rest], y[rest], x[parts[i]], y[parts[i]]


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise missing("optuna", extra="auto", purpose="LearningRateSearch") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
