"""What compressing changed: measured, kept as data, rendered on request."""

import dataclasses
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_dlopt import checks
from keras_dlopt.errors import ConfigError
from keras_dlopt.measure.latency import Latency
from keras_dlopt.report import pages
from keras_dlopt.report.document import Document, Figure
from keras_dlopt.report.examples import Examples, Metric, examples_of, numbered
from keras_dlopt.report.flips import Flip, flips
from keras_dlopt.report.html import write_html
from keras_dlopt.report.measuring import times
from keras_dlopt.report.provenance import provenance
from keras_dlopt.report.quality import Changes, Reliability, are_logits
from keras_dlopt.report.regression import Differences
from keras_dlopt.report.robustness import Corrupted
from keras_dlopt.report.robustness import robustness as measure_robustness
from keras_dlopt.report.saliency import Saliency
from keras_dlopt.report.saliency import saliency as measure_saliency
from keras_dlopt.report.tasks import TASKS, bins, compared
from keras_dlopt.report.variants import Variant, plain_model, variant
from keras_dlopt.report.weights import WeightHistogram, histograms
from keras_dlopt.tables import Table, Tabled


@dataclasses.dataclass(frozen=True)
class Comparison(Tabled):
    """Two models on the same examples, side by side.

    Attributes:
        before: the parent.
        after: what was made of it.
        changes: which examples and classes, or numbers, came out differently.
        histograms: of the weights that both have.
        latency: name -> time of one call, where it was measured.
        class_names: of the outputs, where they were given.
        made: models, data, versions, date and command, as text.
        task: one of `report.TASKS`.
        reliability: of both, by confidence; () for a regression.
        flips: some of the examples whose label changed.
        robustness: both on corrupted images, where it was asked for.
        saliency: whether both look at the same, where it was asked for.
    """

    before: Variant
    after: Variant
    changes: Changes | Differences
    histograms: tuple[WeightHistogram, ...] = ()
    latency: dict[str, Latency] = dataclasses.field(default_factory=dict)
    class_names: tuple[str, ...] = ()
    made: dict[str, str] = dataclasses.field(default_factory=dict)
    task: str = "classification"
    reliability: tuple[Reliability, ...] = ()
    flips: tuple[Flip, ...] = ()
    robustness: tuple[Corrupted, ...] = ()
    saliency: Saliency | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; what is not a number becomes None."""
        data: dict[str, Any] = plain(vars(self))
        return data

    def document(self, *more: Table | Figure) -> Document:
        """The whole report, not rendered yet.

        Args:
            more: tables and figures to show beside the rest, such as
                `training_figure(...)` or `Figure("Sensitivity", found.plot(), note)`.
        """
        return pages.comparison(self, more)

    def to_html(
        self, path: str | os.PathLike[str], *more: Table | Figure
    ) -> pathlib.Path:
        """Writes the report as one HTML file that needs nothing else.

        Args:
            path: of the file.
            more: as for `document`.

        Raises:
            ConfigError: if the file cannot be written.
        """
        return write_html(self.document(*more), path)

    def tables(self) -> tuple[Table, ...]:
        """The figures side by side, and times where they were measured."""
        both = pages.comparison_table(
            self.before, self.after, self.changes, self.class_names, self.task
        )
        timed = (pages.latency_table(self.latency),) if self.latency else ()
        return (both, *timed)


def compare(
    before: keras.Model,
    after: keras.Model,
    data: Any,
    *,
    task: str = "classification",
    names: tuple[str, str] = ("before", "after"),
    class_names: Sequence[str] = (),
    metrics: Mapping[str, Metric] | None = None,
    batch_size: int = 256,
    from_logits: bool | None = None,
    latency: dict[str, Latency] | bool | None = None,
    robustness: bool = False,
    saliency: bool = False,
) -> Comparison:
    """Measures what changed between a model and what was made of it.

    Accuracy, calibration and every label are compared on `data`, or the errors of a
    regression; both models are written to a temporary compressed file, and its bytes
    are counted.

    Args:
        before: the parent, a built Keras model of one output.
        after: the smaller one; a `TransformedModel` predicts as it is (its activation
            quantizers included) and is finalized to be counted.
        data: `(x, y)`, inputs and labels, or batches of them, such as a
            `tf.data.Dataset`, which is drawn once. Labels are whole numbers, one-hot
            rows, or words of `class_names`; for other tasks, see there.
        task: `"classification"`; `"multi-label"`, 0 and 1 of shape (n, labels) with a
            score each, judged label by label; `"segmentation"`, a label a place, judged
            place by place but for those of the label 255 (void); or `"regression"`.
        names: of the two, for tables and plots.
        class_names: of the outputs, in their order.
        metrics: measures of your own: name -> function of (labels, outputs) that
            returns a number, or a `keras.metrics.Metric`. Labels that are words come
            as numbers.
        batch_size: examples predicted at a time, for arrays.
        from_logits: whether the outputs are logits; None finds out from the values of
            both, and where those leave it open from a loss that one is compiled with.
        latency: True times both as `measure` does, one example a call; or what
            `latency()` measured, to be shown beside the rest.
        robustness: whether to corrupt the images in common ways, too: 36 predictions of
            the first 1,000.
        saliency: whether to compare what both look at, by gradients of 64 examples.

    Raises:
        ConfigError: for another task, names that are not as many as the outputs, or a
            metric that gives no number.
        DataError: if outputs and labels do not fit each other or the task.
        ModelError: for a model that is not built, or that no file can hold.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> x, y = np.eye(4, dtype="float32"), np.array([0, 1, 0, 1])
        >>> compare(model, model, (x, y)).changes.churn
        0.0
    """
    checks.choice(task, name="task", choices=TASKS)
    drawn = examples_of((before, after), data, batch_size=batch_size)
    outputs, y = drawn.outputs, numbered(drawn.labels, class_names)
    plain_models = [plain_model(m) for m in (before, after)]
    if from_logits is None and task != "regression":
        from_logits = _are_logits(outputs, (before, after), task)
    options: dict[str, Any] = {"from_logits": from_logits, "task": task}
    first, second = (
        variant(name, rows, y, model, metrics=metrics, **options)
        for name, rows, model in zip(names, outputs, plain_models, strict=True)
    )
    found = compared(task, outputs[0], outputs[1], y, from_logits=from_logits)
    if task != "regression":
        _check_names(class_names, len(first.quality.class_accuracy))
    if latency is True:
        timed = times(dict(zip(names, plain_models, strict=True)))
        latency = {
            name: time for name, found in timed.items() for time in found.values()
        }
    return Comparison(
        before=first,
        after=second,
        changes=found,
        histograms=histograms(*plain_models),
        latency=dict(latency) if latency else {},
        class_names=tuple(class_names),
        made=provenance(dict(zip(names, (before, after), strict=True)), outputs[0], y),
        task=task,
        **_closer(drawn, y, options),
        robustness=measure_robustness(
            (before, after), drawn.images(), y, batch_size=batch_size, **options
        )
        if robustness
        else (),
        saliency=measure_saliency((before, after), drawn.inputs) if saliency else None,
    )


def _closer(drawn: Examples, y: np.ndarray, options: dict[str, Any]) -> dict[str, Any]:
    """How sure the models are, and the examples whose label changed."""
    task, from_logits = options["task"], options["from_logits"]
    if task == "regression":
        return {}
    found: dict[str, Any] = {
        "reliability": tuple(bins(outputs=o, y=y, **options) for o in drawn.outputs)
    }
    if task == "classification":
        found["flips"] = flips(
            drawn.outputs[0],
            drawn.outputs[1],
            y,
            from_logits=from_logits,
            images=drawn.images(),
        )
    return found


def _are_logits(
    outputs: Sequence[np.ndarray], models: Sequence[keras.Model], task: str
) -> bool | None:
    """By the values of both, or by a loss that one is compiled with, or None."""
    if not all(rows.ndim > 1 and rows.size for rows in outputs):
        return None  # refused by who looks at the shapes
    told = [getattr(getattr(m, "loss", None), "from_logits", None) for m in models]
    known = next((bool(t) for t in told if t is not None), None)
    columns = 1 if task == "multi-label" else outputs[0].shape[-1]
    rows = [one.reshape(-1, columns) for one in outputs if one.size % columns == 0]
    return are_logits(*rows, told=known)


def _check_names(class_names: Sequence[str], classes: int) -> None:
    if len(class_names) not in (0, classes):
        raise ConfigError(
            f"class_names must have a name for each of the {classes} classes, in the "
            f"order of the outputs. Received: {tuple(class_names)!r}."
        )


def plain(value: Any) -> Any:
    """Data that JSON can hold: what is not a number becomes None.

    Dataclasses become dictionaries (by their own `to_dict` if they have one), tuples
    lists, paths text.

    Example:
        >>> plain({"a": (1, float("nan"))})
        {'a': [1, None]}
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = value.to_dict() if hasattr(value, "to_dict") else vars(value)
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, pathlib.PurePath) else value
