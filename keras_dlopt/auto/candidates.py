"""One way to make a model small: what is cut, what is rounded, how it is trained."""

import dataclasses
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_dlopt.auto.compressed import Trial
from keras_dlopt.auto.goals import (
    WEIGHTS,
    Parent,
    Strength,
    coded,
    plain_bytes,
    rate_recipe,
)
from keras_dlopt.auto.int8 import to_int8
from keras_dlopt.auto.small_int8 import SLOWER, LiteRTFile, inputs_of
from keras_dlopt.auto.training import Job
from keras_dlopt.export import Predictor, litert
from keras_dlopt.measure import latency
from keras_dlopt.surgery import factorize, prune_channels, remove_dead
from keras_dlopt.transforms import Recipe, finalize, transform
from keras_dlopt.transforms.low_rank import low_rank_recipe

UNTRAINED = "not trained"
WAYS = ("8 bits", "shared values", "few bits", "int8")


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A point of the search; each field is one choice.

    Attributes:
        channels: share of the parameters that stay when channels are removed; 1 leaves
            all, those that carry nothing as well.
        energy: share of the squared singular values that kernels keep as products of
            two; 1 leaves them whole.
        way: of coding the weights, one of `WAYS`.
        sparsity: share of zeros, for the first two ways.
        clusters: values a kernel, for shared values.
        bits: of integers, for `"8 bits"` and fewer.
        few: share of the bytes in memory that is trained towards, for few bits.
        teacher: whether the given model teaches.
    """

    channels: float = 1.0
    energy: float = 1.0
    way: str = "shared values"
    sparsity: float = 0.0
    clusters: int = 16
    bits: int = 8
    few: float = 0.05
    teacher: bool = True

    def __str__(self) -> str:
        parts = []
        if self.channels < 1:
            parts.append(f"{self.channels:.0%} of the parameters in channels")
        if self.energy < 1:
            parts.append(f"products of two with {self.energy:.0%} of the energy")
        if self.way == "few bits":
            parts.append(f"trained towards {self.few:.2%} of the bytes")
        elif self.way == "int8":
            parts.append("int8")
        else:
            parts.append(str(self.strength))
        return ", ".join(parts)

    @property
    def strength(self) -> Strength:
        """Of the first two ways."""
        clusters = self.clusters if self.way == "shared values" else None
        return Strength(self.sparsity, clusters, self.bits)


@dataclasses.dataclass(frozen=True, eq=False)
class MadeSmall:
    """What came of a candidate: the model, its file, its figures."""

    candidate: Candidate
    model: Any
    recipe: Recipe
    file: bytes
    trial: Trial


class Maker:
    """Makes candidates of one model.

    Args:
        job: how they are trained and judged.
        target: of LiteRT files.
        timed: whether latencies are measured, beside the given model's, in LiteRT.
    """

    def __init__(self, job: Job, *, target: str = "xnnpack", timed: bool = False):
        self.job, self.target, self.timed = job, target, timed
        self.plain = plain_bytes(job.model)
        self._cut: dict[tuple[float, float], keras.Model] = {}
        self._parents: dict[tuple[float, float], Parent] = {}
        self._given: Predictor | None = None
        self._one = _example(job)

    def made(
        self, one: Candidate, epochs: int, good: Callable[[Trial], bool]
    ) -> MadeSmall:
        """The candidate, after training only where that is not good enough before.

        Args:
            one: the candidate.
            epochs: of a training.
            good: whether a trial needs no training.

        Raises:
            ConfigError: for what cannot be cut so.
            ModelError: the same.
        """
        begin = time.perf_counter()
        job = dataclasses.replace(self.job, epochs=epochs, teacher=one.teacher)
        model = self.cut(one)
        build = self._int8 if one.way == "int8" else self._coded
        return build(one, job, model, good, begin)

    def cut(self, one: Candidate) -> keras.Model:
        """The model with its channels removed and its kernels split."""
        key = (one.channels, one.energy)
        if key not in self._cut:
            model = self.job.model
            if one.channels < 1:
                x = inputs_of(self.job.train)
                model, _ = remove_dead(model)
                model, _ = prune_channels(
                    model, parameters=one.channels, data=x, multiple=1
                )
            if one.energy < 1:
                model = factorize(model, low_rank_recipe(model, energy=one.energy))
            self._cut[key] = model
        return self._cut[key]

    def parent(self, one: Candidate) -> Parent:
        """The account of the cut model, made once."""
        key = (one.channels, one.energy)
        if key not in self._parents:
            self._parents[key] = Parent(self.cut(one))
        return self._parents[key]

    def _coded(
        self, one: Candidate, job: Job, model: Any, good: Any, begin: float
    ) -> MadeSmall:
        parent = self.parent(one)
        if one.way == "few bits":
            recipe = rate_recipe(parent, max(round(one.few * self.plain), 1), job.total)
        else:
            where = parent.but(WEIGHTS)
            recipe = one.strength.recipe(where=where)
            small = finalize(transform(model, recipe))
            made = self._judged(one, small, recipe, f"{one}, {UNTRAINED}", begin)
            if good(made.trial):
                return made
            recipe = one.strength.recipe(job.total, where)
        small = finalize(job.fit(transform(model, recipe), str(one)))
        return self._judged(one, small, recipe, f"{one}, trained", begin)

    def _judged(
        self, one: Candidate, small: Any, recipe: Recipe, method: str, begin: float
    ) -> MadeSmall:
        file = coded(small).data
        spent: tuple[float | None, float | None] = (None, None)
        if self.timed:
            with tempfile.TemporaryDirectory() as folder:
                path = os.path.join(folder, "model.tflite")
                litert(small, path, verify=False)
                spent = self._latency(path)
        accuracy, loss = self.job.judged(small)
        seconds = time.perf_counter() - begin
        trial = Trial(method, 0, len(file), accuracy, loss, seconds, *spent)
        return MadeSmall(one, small, recipe, file, trial)

    def _int8(
        self, one: Candidate, job: Job, model: Any, good: Any, begin: float
    ) -> MadeSmall:
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "model.tflite")
            small = to_int8(model, path, inputs_of(job.train), target=self.target).model
            made = self._file(one, small, path, f"{one}, {UNTRAINED}", begin)
            if good(made.trial):
                return made
            slow = SLOWER if one.channels == 1 and one.energy == 1 else 1.0
            small = job.fit(small, str(one), rate=slow * job.rate)
            litert(small, path, target=self.target)
            return self._file(one, small, path, f"{one}, trained", begin)

    def _file(
        self, one: Candidate, small: Any, path: str, method: str, begin: float
    ) -> MadeSmall:
        accuracy, loss = self.job.judged(LiteRTFile(path))
        file = Path(path).read_bytes()
        spent: tuple[float | None, float | None] = (None, None)
        if self.timed:
            spent = self._latency(path)
        seconds = time.perf_counter() - begin
        trial = Trial(method, 0, len(file), accuracy, loss, seconds, *spent)
        return MadeSmall(one, small, small.recipe, file, trial)

    def _latency(self, path: str) -> tuple[float, float]:
        """Milliseconds of one example, and the share of the given model's."""
        if self._given is None:
            with tempfile.TemporaryDirectory() as folder:
                given = os.path.join(folder, "given.tflite")
                litert(self.job.model, given, verify=False)
                self._given = Predictor(given)
        pair = {"given": self._given, "made": Predictor(path)}
        found = latency(pair, self._one)
        took = found["made"].median
        return 1e3 * took, took / found["given"].median


def _example(job: Job) -> Any:
    first = inputs_of(job.val)
    first = first[0] if isinstance(first, list) else first
    return keras.tree.map_structure(lambda part: np.asarray(part)[:1], first)
