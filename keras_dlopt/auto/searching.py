"""A search over ways to make a model small, within a time, that can go on later."""

import dataclasses
import hashlib
import os
import time
from pathlib import Path
from typing import Any

from keras_dlopt.auto.candidates import UNTRAINED, Candidate, MadeSmall, Maker
from keras_dlopt.auto.compressed import Trial
from keras_dlopt.auto.goals import STEERED
from keras_dlopt.auto.training import Job
from keras_dlopt.auto.wanted import Goals, figures
from keras_dlopt.errors import ConfigError, ModelError, require
from keras_dlopt.files import write_atomic
from keras_dlopt.runtime.values import to_numpy

_CHANNELS = (1.0, 0.75, 0.5, 0.35)
_ENERGIES = (1.0, 0.99, 0.95, 0.9)
_CLUSTERS = (4, 8, 16, 32, 64)
_BITS = (4, 5, 6, 7, 8)
_SHORT = 3  # a candidate is trained for a third of the epochs, the best for all
_TRIALS = 20  # without a budget


class WaySearch:
    """Draws candidates, tries them, and trains the best in full.

    Args:
        job: how models are trained and judged.
        goals: what is asked.
        budget: seconds after which no candidate is begun, the trainings of the best
            counted in; None for 20 candidates.
        clusters: of all candidates; None draws them.
        int8: whether the file is a LiteRT one.
        target: what runs that one.
    """

    def __init__(
        self,
        job: Job,
        goals: Goals,
        budget: float | None,
        clusters: int | None,
        *,
        int8: bool = False,
        target: str = "xnnpack",
    ):
        require("optuna", extra="auto", purpose="A search by compress")
        self.job, self.goals, self.int8 = job, goals, int8
        self.budget, self.clusters = budget, clusters
        self.maker = Maker(job, target=target, timed=goals.timed)
        self.objectives = 3 if goals.timed else 2
        self.epochs = max(1, round(job.epochs / _SHORT))
        self.begin = time.perf_counter()
        self.before, self.loss = job.judged(job.model)
        self.tried: list[tuple[Candidate, Trial]] = []
        self.refused: dict[str, str] = {}
        self.best: MadeSmall | None = None
        self.cuts = self._cuts()

    def written(
        self, path: str | None, storage: str | os.PathLike[str] | None
    ) -> tuple[Any, Any, list[Trial], list[str]]:
        """Model and recipe of the best file, which is written; all trials, and why.

        Args:
            path: of the file; None writes none.
            storage: of a file that keeps the trials, and has those of an earlier
                search; None keeps none.

        Raises:
            ConfigError: if nothing that was tried holds what was asked, or the storage
                is of another search.
        """
        self.study = self._study(storage)
        made, trials, reasons = self._run()
        if path is not None:
            write_atomic(Path(path), made.file)
        return made.model, made.recipe, trials, reasons

    def _run(self) -> tuple[MadeSmall, list[Trial], list[str]]:
        """The best file, all trials, the chosen one first, and why."""
        here = 0
        while self._goes_on(here):
            self._try()
            here += 1
        for candidate in self._finalists():
            if self.best is not None and self._spent(_SHORT):
                break
            self._keep(self.maker.made(candidate, self.job.epochs, self._needs_none))
        trials = [trial for _, trial in self.tried]
        if self.best is None:
            raise ConfigError(self._nothing())
        first = self.best.trial
        rest = [one for one in trials if one != first]
        return self.best, [first, *rest], self._why(self.best)

    def _goes_on(self, here: int) -> bool:
        if self.budget is None:
            done = sum(t.state.is_finished() for t in self.study.trials)
            return bool(done < _TRIALS)
        return here == 0 or not self._spent(1 + _SHORT)

    def _spent(self, more: float) -> bool:
        """Whether so many times the longest trial do not fit into the budget."""
        if self.budget is None:
            return False
        longest = max((t.seconds for _, t in self.tried), default=0.0)
        return time.perf_counter() - self.begin + more * longest > self.budget

    def _try(self) -> None:
        import optuna

        asked = self.study.ask()
        candidate = self._drawn(asked)
        try:
            made = self.maker.made(candidate, self.epochs, self._needs_none)
        except (ConfigError, ModelError) as error:
            self.refused[str(candidate)] = str(error)
            self.study.tell(asked, state=optuna.trial.TrialState.FAIL)
            return
        trial = made.trial
        worse = trial.loss if trial.accuracy is None else 1 - trial.accuracy
        asked.set_user_attr("candidate", dataclasses.asdict(candidate))
        asked.set_user_attr("trial", dataclasses.asdict(trial))
        # What misses a goal is worse in all, so that the sampler stays where they hold.
        over = 1 + self.goals.excess(trial, self.before)
        values = (trial.bytes, worse, trial.latency_ms or 0.0)[: self.objectives]
        self.study.tell(asked, [over * value for value in values])
        self._keep(made)

    def _keep(self, made: MadeSmall) -> None:
        """Remembers what was made, and the model itself if it is the best."""
        self.tried.append((made.candidate, made.trial))
        held = not self.goals.excess(made.trial, self.before)
        best = self.best
        if held and (
            best is None or self.goals.value(made.trial) < self.goals.value(best.trial)
        ):
            self.best = made

    def _needs_none(self, trial: Trial) -> bool:
        """Whether a model that was not trained holds all, and is as good as given."""
        if self.goals.excess(trial, self.before):
            return False
        if self.goals.drop is not None:
            return True
        if trial.accuracy is None or self.before is None:
            return trial.loss <= self.loss
        return trial.accuracy >= self.before

    def _finalists(self) -> list[Candidate]:
        """What holds the goals, best first; then what comes nearest."""

        def order(one: tuple[Candidate, Trial]) -> tuple[float, ...]:
            over = self.goals.excess(one[1], self.before)
            return (over, *self.goals.value(one[1]))

        ranked = list(dict.fromkeys(one for one, _ in sorted(self.tried, key=order)))
        held = {c for c, t in self.tried if not self.goals.excess(t, self.before)}
        if self.best is not None and self.best.trial.method.endswith(UNTRAINED):
            ranked.remove(self.best.candidate)  # nothing is left to be trained
        # More training may yet bring one in that came near.
        near = [one for one in ranked if one not in held]
        return [one for one in ranked if one in held][:2] + near[: 1 if held else 3]

    def _drawn(self, asked: Any) -> Candidate:
        """The candidate that the sampler wants tried."""
        channels, energies = self.cuts
        drawn: dict[str, Any] = {
            "channels": asked.suggest_categorical("channels", channels),
            "energy": asked.suggest_categorical("energy", energies),
        }
        if self.int8:
            way = "int8"
        else:
            ways = ["8 bits", "shared values"]
            if self.epochs * self.job.steps >= STEERED:
                ways.append("few bits")
            if self.clusters is not None:
                ways = ["shared values"]
            way = asked.suggest_categorical("way", ways)
        if way == "few bits":
            few = self.goals.bytes or 0.2 * self.maker.plain
            most = min(0.9, few / self.maker.plain)
            least = most / 2 if self.goals.bytes else most / 20
            drawn["few"] = asked.suggest_float("few", least, most, log=True)
        elif way != "int8":
            # In what is kept, since that is what costs.
            kept = asked.suggest_float("kept", 0.01, 1.0, log=True)
            drawn["sparsity"] = 1 - kept
        if way == "shared values":
            drawn["clusters"] = self.clusters or asked.suggest_categorical(
                "clusters", _CLUSTERS
            )
        if way == "8 bits":
            drawn["bits"] = asked.suggest_categorical("bits", _BITS)
        taught = self.job.teacher and asked.suggest_categorical(
            "teacher", (True, False)
        )
        return Candidate(way=way, teacher=bool(taught), **drawn)

    def _cuts(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """The shares of channels and energies that this model lets one try."""
        channels: tuple[float, ...] = _CHANNELS
        energies: tuple[float, ...] = _ENERGIES
        try:
            self.maker.cut(Candidate(channels=channels[1]))
        except (ConfigError, ModelError) as error:
            channels, self.refused["removing channels"] = (1.0,), str(error)
        try:
            self.maker.cut(Candidate(energy=energies[-1]))
        except (ConfigError, ModelError) as error:
            energies, self.refused["products of two"] = (1.0,), str(error)
        return channels, energies

    def _study(self, storage: Any) -> Any:
        """The trials so far, and a sampler that goes on from them."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        kept = None
        if storage is not None:
            from optuna.storages import JournalStorage
            from optuna.storages.journal import JournalFileBackend

            kept = JournalStorage(JournalFileBackend(os.fspath(storage)))
        study = optuna.create_study(
            study_name="compress",
            storage=kept,
            directions=[optuna.study.StudyDirection.MINIMIZE] * self.objectives,
            load_if_exists=True,
        )
        ours = self._same()
        theirs = study.user_attrs.get("search")
        if theirs is None:
            study.set_user_attr("search", ours)
            # A mild and a strong one of each way to begin with.
            for start in self._starts():
                study.enqueue_trial(start)
        elif theirs != ours:
            other = sorted(k for k in ours if theirs.get(k) != ours[k])
            raise ConfigError(
                f"The file {os.fspath(storage)!r} keeps a search with other settings: "
                f"{', '.join(other)}. Pass what it was begun with, or another storage."
            )
        done = [t for t in study.trials if "trial" in t.user_attrs]
        study.sampler = optuna.samplers.TPESampler(
            seed=self.job.seed + len(study.trials),
            n_startup_trials=8,
        )
        for one in done:
            attrs = one.user_attrs
            candidate = Candidate(**attrs["candidate"])
            self.tried.append((candidate, Trial(**attrs["trial"])))
        return study

    def _starts(self) -> list[dict[str, Any]]:
        base = {"channels": 1.0, "energy": 1.0}
        if self.job.teacher:
            base["teacher"] = True
        if self.int8:
            return [base]
        shared = {"way": "shared values", "kept": 0.3}
        if self.clusters is None:
            shared["clusters"] = 16
        starts = [base | shared]
        if self.clusters is None:
            starts.append(base | {"way": "8 bits", "kept": 1.0, "bits": 8})
        return starts

    def _same(self) -> dict[str, Any]:
        """What a search must have in common with the one that it goes on from."""
        print_ = hashlib.sha256()
        for weight in self.job.model.weights:
            print_.update(to_numpy(weight).tobytes())
        return {
            "model": print_.hexdigest()[:16],
            "goals": dataclasses.asdict(self.goals),
            "epochs": self.job.epochs,
            "rate": self.job.rate,
            "steps": self.job.steps,
            "teacher": self.job.teacher,
            "int8": self.int8,
            "clusters": self.clusters,
            "target": self.maker.target,
            "seed": self.job.seed,
            # The same model loses the same on the same examples.
            "val": f"{self.loss:.4g}",
        }

    def _why(self, best: MadeSmall) -> list[str]:
        """For each choice, what the best trial with another one came to."""
        told = [
            f"{best.trial.method}: {figures(best.trial)}; of {len(self.tried)} trials "
            f"{self._held()} hold what was asked"
        ]
        for field in dataclasses.fields(Candidate):
            chosen = getattr(best.candidate, field.name)
            others = [
                (one, trial)
                for one, trial in self.tried
                if getattr(one, field.name) != chosen
            ]
            if not others or not self._counts(field.name, best.candidate):
                continue
            held = [o for o in others if not self.goals.excess(o[1], self.before)]
            label = f"{field.name}={_short(chosen)}"
            if not held:
                told.append(f"{label}: no trial with another held what was asked")
                continue
            next_, trial = min(held, key=lambda o: self.goals.value(o[1]))
            other = _short(getattr(next_, field.name))
            told.append(f"{label}: the best with {other} has {figures(trial)}")
        told += [f"{name} was left out: {why}" for name, why in self.refused.items()]
        return told

    def _held(self) -> int:
        return sum(not self.goals.excess(t, self.before) for _, t in self.tried)

    @staticmethod
    def _counts(name: str, one: Candidate) -> bool:
        """Whether a choice means anything for the way of a candidate."""
        only = {
            "clusters": ("shared values",),
            "bits": ("8 bits",),
            "few": ("few bits",),
            "sparsity": ("8 bits", "shared values"),
        }
        return one.way in only.get(name, (one.way,))

    def _nothing(self) -> str:
        if not self.tried:
            return (
                "No candidate could be made: "
                f"{'; '.join(self.refused.values())}. Leave time_budget out."
            )
        nearest = min(
            (t for _, t in self.tried), key=lambda t: self.goals.excess(t, self.before)
        )
        given = "" if self.before is None else f", {self.before:.2%} before"
        return (
            f"None of {len(self.tried)} trials holds what was asked; the nearest has "
            f"{figures(nearest)}{given} ({nearest.method}). Allow more, give more "
            "time_budget, or train longer with epochs=."
        )


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
