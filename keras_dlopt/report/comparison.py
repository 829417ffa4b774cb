"""What compressing changed: measured, kept as data, rendered on request."""

import dataclasses
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import keras

from keras_dlopt import checks
from keras_dlopt.errors import ConfigError
from keras_dlopt.measure.latency import Latency
from keras_dlopt.report import pages
from keras_dlopt.report.document import Document, Figure, Table
from keras_dlopt.report.examples import Metric, numbered, predicted
from keras_dlopt.report.html import write_html
from keras_dlopt.report.measuring import times
from keras_dlopt.report.provenance import provenance
from keras_dlopt.report.quality import Changes, changes
from keras_dlopt.report.regression import Differences, differences
from keras_dlopt.report.terminal import rich_table
from keras_dlopt.report.variants import TASKS, Variant, plain_model, variant
from keras_dlopt.report.weights import WeightHistogram, histograms


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two models on the same examples, side by side.

    Attributes:
        before: the parent.
        after: what was made of it.
        changes: which examples and classes, or numbers, came out differently.
        histograms: of the weights that both have.
        latency: name -> time of one call, where it was measured.
        class_names: of the outputs, where they were given.
        made: models, data, versions, date and command, as text.
    """

    before: Variant
    after: Variant
    changes: Changes | Differences
    histograms: tuple[WeightHistogram, ...] = ()
    latency: dict[str, Latency] = dataclasses.field(default_factory=dict)
    class_names: tuple[str, ...] = ()
    made: dict[str, str] = dataclasses.field(default_factory=dict)

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

    def __rich__(self) -> Any:
        from rich.console import Group

        shown = [
            pages.comparison_table(
                self.before, self.after, self.changes, self.class_names
            )
        ]
        if self.latency:
            shown.append(pages.latency_table(self.latency))
        return Group(*map(rich_table, shown))


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
            rows, or words of `class_names`; for a regression, numbers.
        task: `"classification"` or `"regression"`.
        names: of the two, for tables and plots.
        class_names: of the outputs, in their order.
        metrics: measures of your own: name -> function of (labels, outputs) that
            returns a number, or a `keras.metrics.Metric`. Labels that are words come
            as numbers.
        batch_size: examples predicted at a time, for arrays.
        from_logits: whether the outputs are logits; None finds out.
        latency: True times both as `measure` does, one example a call; or what
            `latency()` measured, to be shown beside the rest.

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
    outputs, y = predicted((before, after), data, batch_size=batch_size)
    y = numbered(y, class_names)
    plain_models = [plain_model(m) for m in (before, after)]
    options: dict[str, Any] = {"from_logits": from_logits, "task": task}
    first, second = (
        variant(name, rows, y, model, metrics=metrics, **options)
        for name, rows, model in zip(names, outputs, plain_models, strict=True)
    )
    found: Changes | Differences
    if task == "regression":
        found = differences(outputs[0], outputs[1], y)
    else:
        found = changes(outputs[0], outputs[1], y, from_logits=from_logits)
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
    )


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
