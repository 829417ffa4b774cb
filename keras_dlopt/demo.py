"""The main job, end to end: train, compress, save, reload, export, report."""

import dataclasses
import json
import pathlib
import time
from typing import Any

import keras
import numpy as np

import keras_dlopt as dlopt
from keras_dlopt import checks, files, report
from keras_dlopt.errors import ConfigError, DataError, missing
from keras_dlopt.report import Progress, Silent

PARENT, COMPRESSED, INT8 = "model.keras", "model.dlopt", "model.tflite"
FILES = (PARENT, COMPRESSED, INT8, "result.json", "report.html")
SMALL = 10_000  # training examples; above, fewer epochs are enough


@dataclasses.dataclass(frozen=True)
class Settings:
    """Arguments of the demo.

    Attributes:
        data: name or path of a data set, as for `data.load`.
        epochs: of float training; compressing takes as many again and int8 a third.
            None chooses by the size of the data set.
        out: folder for the results; made if absent.
        quick: a smaller network and fewer epochs, to see that everything works.
        seed: of weights and shuffling.
    """

    data: str = "digits"
    epochs: int | None = None
    out: pathlib.Path = pathlib.Path("dlopt-demo")
    quick: bool = False
    seed: int = 0

    def __post_init__(self):
        if self.epochs is not None and self.epochs < 1:
            raise ConfigError(f"epochs must be at least 1. Received: {self.epochs}.")
        if not 0 <= self.seed < 2**32:
            raise ConfigError(
                f"seed must be between 0 and 2**32 - 1. Received: {self.seed}."
            )

    def check(self) -> None:
        """Finds out before the training what would fail after it."""
        if keras.backend.backend() != "tensorflow":
            raise ConfigError(
                "The demo writes a LiteRT file, which needs Keras' TensorFlow backend. "
                f"Received: {keras.backend.backend()!r}. Set the environment variable "
                "KERAS_BACKEND=tensorflow."
            )
        try:
            import ai_edge_litert  # noqa: F401
        except ImportError as error:
            purpose = "The demo's int8 part"
            raise missing("ai-edge-litert", extra="litert", purpose=purpose) from error
        files.check_folder(self.out, "--out")


@dataclasses.dataclass(frozen=True)
class Plan:
    """The demo in numbers, for one data set.

    Attributes:
        width: filters of the network's first stage.
        batch_size: examples a step.
        steps: steps an epoch; a last incomplete batch is left out.
        epochs: of float training and of compressing.
        int8_epochs: of quantization-aware training.
        sparsity: final share of zeros in each kernel.
        clusters: shared values in each kernel, zero not counted.
    """

    width: int
    batch_size: int
    steps: int
    epochs: int
    int8_epochs: int
    sparsity: float = 0.8
    clusters: int = 16

    @property
    def prune_end(self) -> int:
        """Step at which the final sparsity is reached: half of the compressing."""
        return self.epochs * self.steps // 2

    @property
    def cluster_begin(self) -> int:
        """Step at which kernels are clustered: 70 % of the compressing."""
        return self.epochs * self.steps * 7 // 10

    def recipe(self) -> dlopt.Recipe:
        """Every kernel is pruned on a schedule, then clustered."""
        sparsity = dlopt.schedules.PolynomialSparsity(
            self.sparsity, end=self.prune_end, frequency=max(1, self.steps // 2)
        )
        clusters = dlopt.Cluster(self.clusters, begin=self.cluster_begin)
        return dlopt.Recipe([(dlopt.named("kernel"), dlopt.Prune(sparsity) >> clusters)])


def plan(settings: Settings, dataset: dlopt.data.Dataset) -> Plan:
    """The demo in numbers.

    Raises:
        DataError: for a data set that the demo's network cannot take.
    """
    if len(dataset.input_shape) != 3:
        raise DataError(
            "The demo trains a convolutional network and needs images of shape "
            f"(height, width, channels). {dataset.name} has examples of shape "
            f"{dataset.input_shape}."
        )
    if not len(dataset.x_test):
        raise DataError(f"{dataset.name} has no test examples to report on.")
    examples = len(dataset.x_train)
    small = examples <= SMALL
    epochs = settings.epochs
    if epochs is None:
        epochs = (8 if small else 1) if settings.quick else (30 if small else 4)
    batch_size = min(32 if small else 128, examples)
    return Plan(
        width=8 if settings.quick else 16,
        batch_size=batch_size,
        steps=examples // batch_size,
        epochs=epochs,
        int8_epochs=max(1, epochs // 3),
    )


@dataclasses.dataclass(frozen=True)
class Result:
    """What the demo measured; `result.json` has all of it."""

    settings: Settings
    plan: Plan
    versions: dict[str, str]
    seconds: float
    parent: report.Variant
    compressed: report.Variant
    compressed_changes: report.Changes
    fresh_equal: bool
    int8: report.Variant
    int8_changes: report.Changes
    export: dlopt.export.ExportReport
    traces: tuple[report.Trace, ...]

    def table(self) -> report.Table:
        """The one table."""
        examples, data = self.parent.quality.examples, self.settings.data
        made = (self.compressed, self.compressed_changes), (self.int8, self.int8_changes)
        note = (
            f"On {examples:,} test examples of {data}, one run with seed "
            f"{self.settings.seed}: one example is {100 / examples:.2f} %. "
        )
        return report.variants_table(self.parent, made, note=note + NOTE)

    def checks(self) -> report.Table:
        """What was verified on the files."""
        found = "equal to the last bit" if self.fresh_equal else "DIFFERENT"
        row = ("compressed file, read in a fresh process", f"predictions {found}")
        rows = (row, *report.export_rows(self.export, "int8"))
        return report.Table("Checked", ("", "found"), rows)


NOTE = (
    "Float is the plain weights, 4 bytes each; the other two are whole files, with the "
    "architecture. Through gzip: for int8 the file, for the others the plain weights. "
    "Churn: labels that differ from the float model's. The entropy bound counts "
    "positions and values of the weights, one by one."
)
CURVES = (
    "The float training's rate follows its own loss: it climbs until the loss rises, "
    "then holds, then anneals. The compressed and the int8 model both start from the "
    "float one, with cosine decay."
)


class Job:
    """One run of the demo."""

    def __init__(self, settings: Settings, progress: Progress):
        self.settings, self.progress = settings, progress
        self.dataset = dlopt.data.load(settings.data)
        self.plan = plan(settings, self.dataset)
        self.traces: list[report.Trace] = []
