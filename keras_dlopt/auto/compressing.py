"""One call from a trained model to a small one, its file and the reasons."""

import functools
import os
import time
from pathlib import Path
from typing import Any

import keras

from keras_dlopt import checks
from keras_dlopt.auto import wanted
from keras_dlopt.auto.compressed import Compressed, Trial
from keras_dlopt.auto.fitting import check_fits
from keras_dlopt.auto.goals import (
    CODED,
    MOST,
    STEERED,
    WEIGHTS,
    Parent,
    Strength,
    absorbed,
    coded,
    plain_bytes,
    rate_recipe,
    strength_for,
)
from keras_dlopt.auto.narrow_int8 import narrowed
from keras_dlopt.auto.searching import WaySearch
from keras_dlopt.auto.small_int8 import small_int8
from keras_dlopt.auto.training import Job, job_for
from keras_dlopt.errors import ConfigError
from keras_dlopt.files import write_atomic
from keras_dlopt.report import Progress, compare
from keras_dlopt.storage import Ledger
from keras_dlopt.transforms import Recipe, finalize, transform

# Of the plain bytes: where a search begins, and what it does not go below and above.
_FIRST, _LEAST, _MOST = 1 / 16, 1 / 1024, 0.6
_CROWDED = 0.5  # of a file, above which what no recipe codes gives way
_NEAR = 1.3  # goals so near to each other are not told apart
_TRIES = 3


def compress(
    model: keras.Model,
    train: Any,
    val: Any = None,
    *,
    size: float | None = None,
    max_bytes: int | None = None,
    max_accuracy_drop: float | None = None,
    max_latency_ms: float | None = None,
    max_latency_share: float | None = None,
    int8: bool = False,
    target: str | None = None,
    path: str | os.PathLike[str] | None = None,
    epochs: int | None = None,
    rate: float = 1e-3,
    loss: Any = None,
    batch_size: int = 64,
    clusters: int | None = None,
    teacher: bool | None = None,
    time_budget: float | None = None,
    storage: str | os.PathLike[str] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Compressed:
    """Makes a trained model small enough, trains it on, and writes its file.

    With a size, the mildest of three ways that reaches it is taken: integers of 8 bits,
    shared values, or training towards few bits (`RateAware`; below 500 steps zeros and
    shared values, as many zeros as coding the model shows). BatchNormalization whose
    statistics would fill half of the file goes into the kernels before it. The model is
    trained on with the recipe's schedules, by default with the given one as its
    teacher, and its file measured. With `max_accuracy_drop`, smaller and smaller sizes
    are tried as long as the accuracy on `val` holds, and the smallest is returned. With
    both, larger ones than the size are not tried, and it is refused if it costs more.
    With `int8`, a LiteRT file is written as by `to_int8`; if it loses more than
    `max_accuracy_drop`, the quantized model is trained on, and if it does not, fewer
    and fewer channels are tried, which makes the file smaller and the model faster.

    With `time_budget` or a latency, ways are searched for: channels removed, kernels
    split into products, zeros, shared values, integers of 4 to 8 bits, training towards
    few bits, with the teacher and without. Each candidate is judged before it is
    trained, trained for a third of the epochs if that is needed, and the best in full.
    `reasons` then has for each choice what the best trial with another one came to.

    Args:
        model: a trained, built Keras model, which stays as it is.
        train: `(x, y)`, a `data.Dataset`, or batches whose number is known.
        val: examples to judge on, `(x, y)` or batches; None holds out a tenth of
            arrays, drawn by the seed, or takes those of a `data.Dataset`.
        size: of the coded file, as a share of the variables in memory, such as 0.1.
        max_bytes: of the file.
        max_accuracy_drop: as a share of the validation examples: 0.005 is half a point.
        max_latency_ms: of one example in LiteRT on this machine, one thread: the int8
            file's, else that of the model in float.
        max_latency_share: the same over the given model's in float, measured in turns.
        int8: whether the file is a LiteRT one, to run, not a coded one, to send.
        target: what runs the LiteRT file, None for `"xnnpack"`; see `export.litert`.
        path: of the file, ending in `.dlopt` or, with `int8`, in `.tflite`; None writes
            none.
        epochs: of a training; None for 10, and more where they are under 1,500 steps.
        rate: learning rate at the start; it falls to 0.
        loss: None takes the compiled one, or the one that labels of classes mean.
        batch_size: for arrays.
        clusters: shared values a kernel, where they are wanted whatever the number of
            steps; None for 16 in trainings too short to train towards few bits.
        teacher: whether the given model teaches; None for all that classify.
        time_budget: seconds to search in, the trainings of the best counted in; the
            first candidate is tried whatever it takes. None with a latency tries 20.
        storage: path of a file that keeps the trials of a search; a later call with the
            same model and goals goes on from them.
        seed: of shuffling; Keras' global seed is set to it.
        progress: is told how far the work is.

    Raises:
        ConfigError: without a goal, with two sizes, with an argument that means nothing
            beside the others, for a size that cannot be reached, and for an accuracy
            that could not be held; the text has what was reached.
        DataError: for data that does not fit.
        MissingDependencyError: for a search without the package `optuna`.
        ModelError: for a model that is not built, is transformed, or cannot be copied.

    Example:
        >>> digits = dlopt.data.load("digits")
        >>> net = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(),
        ...     keras.layers.Dense(64, "relu"), keras.layers.Dense(10)])
        >>> small = dlopt.compress(net, digits, size=0.1, epochs=1)
        >>> small.bytes <= 0.1 * small.plain_bytes
        True

    Source: Han et al., "Deep Compression" (arXiv:1510.00149); Lee et al., "Layer-
    adaptive Sparsity" (arXiv:2010.07611); Hinton et al. (arXiv:1503.02531).
    """
    start = time.perf_counter()
    wanted.check_model(model)
    check_fits(model, train, val)
    file: Any = wanted.checked_path(path, int8)
    plain, drop = plain_bytes(model), max_accuracy_drop
    latencies = (max_latency_ms, max_latency_share)
    asked = wanted.checked_goals(size, max_bytes, drop, latencies, int8, plain)
    budget = checks.optional(checks.positive, time_budget, name="time_budget")
    searched = budget is not None or asked.timed
    trained = {"epochs": epochs, "teacher": teacher} if drop is None else {}
    coding, kept = {"size": size, "clusters": clusters}, {"storage": storage}
    wanted.check_looked_at(int8, searched, coding, trained, {"target": target}, kept)
    job = job_for(
        model,
        train,
        val,
        loss=loss,
        batch_size=batch_size,
        epochs=epochs,
        rate=rate,
        teacher=teacher,
        seed=seed,
        progress=progress,
    )
    wanted.check_judged(drop, job)
    target = target or "xnnpack"
    if searched:
        search = WaySearch(job, asked, budget, clusters, int8=int8, target=target)
        small, recipe, trials, reasons = search.written(file, storage)
    elif int8:
        small, recipe, trials, reasons = _int8(job, file, asked, target)
    else:
        sizes = _Search(job, Parent(model), clusters, plain, start)
        return sizes.result(asked, file)
    return _result(job, small, recipe, trials, reasons, file, plain, start)


def _int8(
    job: Job, file: str, asked: wanted.Goals, target: str
) -> tuple[Any, Recipe, list[Trial], list[str]]:
    """An int8 file, of fewer channels where that holds a drop that was allowed."""
    small, recipe, trials, reasons = small_int8(job, file, asked, target=target)
    if asked.drop is None:
        return small, recipe, trials, reasons
    made, trials, why = narrowed(job, file, asked, trials, target=target)
    if made is not None:
        small, recipe = made.model, made.recipe
    return small, recipe, trials, [*reasons, *why]


def _result(
    job: Job,
    small: Any,
    recipe: Recipe,
    trials: list[Trial],
    reasons: list[str],
    path: str | None,
    plain: int,
    start: float,
) -> Compressed:
    return Compressed(
        model=small,
        path=path,
        plain_bytes=plain,
        recipe=recipe,
        trials=tuple(trials),
        reasons=tuple(dict.fromkeys(reasons)),
        report=compare(job.model, small, job.val, from_logits=job.from_logits)
        if job.classifies
        else None,
        seconds=time.perf_counter() - start,
    )


class _Search:
    """What was tried, and what came of it."""

    def __init__(
        self,
        job: Job,
        parent: Parent,
        clusters: int | None,
        plain: int,
        start: float,
    ):
        self.job, self.parent, self.plain = job, parent, plain
        self.steered = clusters is None and job.total >= STEERED
        self.clusters = 16 if clusters is None else clusters
        self.start = start
        self.trials: list[Trial] = []
        self.reasons: list[str] = []
        self.made: dict[Trial, tuple[Any, Recipe, Ledger]] = {}

    @functools.cached_property
    def folded(self) -> Parent:
        """The parent without the BatchNormalization that kernels can take in."""
        return Parent(absorbed(self.parent.model))

    def parent_for(self, goal: int) -> Parent:
        """What is trained towards a goal.

        With its normalizations a network trains better, unless they fill the file.
        """
        crowded = self.parent.beside(CODED) > _CROWDED * goal
        return self.folded if crowded else self.parent

    def reach(self, goal: int) -> Trial:
        """Trains the mildest way whose file is within the goal."""
        parent, steps = self.parent_for(goal), self.job.total
        strength = strength_for(
            parent, goal, clusters=self.clusters, found=self.steered
        )
        towards = bool(strength.sparsity) and self.steered
        aim = 0.97 * goal if towards else goal
        for _ in range(_TRIES):
            if towards:
                recipe = rate_recipe(parent, round(aim), steps)
                way = "trained towards few bits"
            else:
                recipe = strength.recipe(steps, parent.but(WEIGHTS))
                way = str(strength)
            trial = self._tried(parent.model, recipe, way, goal)
            if trial.bytes <= goal:
                told = f"{trial.method}: {trial.bytes:,} bytes, for a goal of {goal:,}"
                self.reasons.append(told)
                return trial
            # Training moved the values; what is kept shrinks as the file must,
            aim *= 0.97 * goal / trial.bytes
            # in which biases and the description stay as they are.
            rows = self.made[trial][2].rows
            kernels = sum(row.bits for row in rows if len(row.shape) > 1) / 8
            left = max(goal - (trial.bytes - kernels), 0)
            kept = (1 - strength.sparsity) * 0.97 * left / kernels
            strength = Strength(min(1 - kept, MOST), self.clusters)
        raise ConfigError(
            f"After training the file has {trial.bytes:,} bytes, more than the goal of "
            f"{goal:,}. Allow that many, or train longer with epochs=."
        )

    def hold(self, drop: float, most: int | None) -> Trial:
        """The smallest file that holds the accuracy, of at most so many bytes."""
        before, _ = self.job.judged(self.job.model)
        assert before is not None
        least = before - drop - 1e-9

        def holds(trial: Trial) -> bool:
            return trial.accuracy is not None and trial.accuracy >= least

        good = self._smallest(most or int(_MOST * self.plain), self.plain, holds)
        if good is not None:
            return good
        if most is None:
            raise ConfigError(
                f"No size held {before:.2%} but for {drop:.2%}; 8 bits a weight had "
                f"{self.trials[-1].accuracy:.2%}. Train longer with epochs=, or try "
                "post_training.quantize, which does not train."
            )
        if not self.trials:
            raise ConfigError(self.reasons[-1])
        raise ConfigError(
            f"In {most:,} bytes {self.trials[-1].accuracy:.2%} of the validation "
            f"examples came out right, {before:.2%} before: more than the drop of "
            f"{drop:.2%} was lost. Allow more bytes or a larger drop, or train longer "
            "with epochs=."
        )

    def _smallest(self, most: int, plain: int, holds: Any) -> Trial | None:
        """Doubles or halves the goal until the accuracy turns, then once between."""
        good: Trial | None = None
        bad, goal = 0, min(most, round(_FIRST * plain))
        least = min(goal, _LEAST * plain)
        while goal >= least:
            try:
                trial = self.reach(goal)
            except ConfigError as error:
                self.reasons.append(str(error))
                bad = max(bad, goal)
            else:
                if holds(trial):
                    good = trial
                else:
                    bad = max(bad, goal)
            if good is not None and good.bytes <= _NEAR * bad:
                break
            if good is not None:
                low = bad or good.bytes // 4
                goal = round((low * min(good.bytes, good.goal)) ** 0.5)
            elif goal < most:
                goal = min(2 * goal, most)
            else:
                break
        return good

    def _tried(
        self, model: keras.Model, recipe: Recipe, method: str, goal: int
    ) -> Trial:
        begin = time.perf_counter()
        job = self.job
        name = f"{method}, for {goal:,} bytes"
        small = finalize(job.fit(transform(model, recipe), name))
        ledger = coded(small)
        accuracy, loss = job.judged(small)
        seconds = time.perf_counter() - begin
        trial = Trial(method, goal, ledger.file_bytes, accuracy, loss, seconds)
        self.trials.append(trial)
        self.made[trial] = small, recipe, ledger
        return trial

    def result(self, asked: wanted.Goals, path: Any) -> Compressed:
        """The best model, whose file is the one that was measured."""
        if asked.drop is not None:
            best = self.hold(asked.drop, asked.bytes)
        else:
            assert asked.bytes is not None
            best = self.reach(asked.bytes)
        small, recipe, ledger = self.made[best]
        if path is not None:
            write_atomic(Path(path), ledger.data)
        rows = [best, *(one for one in self.trials if one is not best)]
        plain, start, reasons = self.plain, self.start, self.reasons
        return _result(self.job, small, recipe, rows, reasons, path, plain, start)
