"""What compressing changed: measured, kept as data, rendered on request."""

import dataclasses
import math
import os
import pathlib
from typing import Any

import keras
import numpy as np

from keras_dlopt.measure.latency import Latency
from keras_dlopt.report import pages
from keras_dlopt.report.document import Document
from keras_dlopt.report.html import write_html
from keras_dlopt.report.quality import Changes, changes
from keras_dlopt.report.terminal import rich_table
from keras_dlopt.report.variants import Variant, plain_model, variant
from keras_dlopt.report.weights import WeightHistogram, histograms


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two models on the same examples, side by side.

    Attributes:
        before: the parent.
        after: what was made of it.
        changes: which examples and classes came out differently.
        histograms: of the weights that both have.
        latency: name -> time of one call, where it was measured.
    """

    before: Variant
    after: Variant
    changes: Changes
    histograms: tuple[WeightHistogram, ...] = ()
    latency: dict[str, Latency] = dataclasses.field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; what is not a number becomes None."""
        data: dict[str, Any] = plain(vars(self))
        return data

    def document(self) -> Document:
        """The whole report, not rendered yet."""
        return pages.comparison(
            self.before, self.after, self.changes, self.histograms, self.latency
        )

    def to_html(self, path: str | os.PathLike[str]) -> pathlib.Path:
        """Writes the report as one HTML file that needs nothing else.

        Raises:
            ConfigError: if the file cannot be written.
        """
        return write_html(self.document(), path)

    def __rich__(self) -> Any:
        return rich_table(pages.comparison_table(self.before, self.after, self.changes))


def compare(
    before: keras.Model,
    after: keras.Model,
    data: tuple[np.ndarray, np.ndarray],
    *,
    names: tuple[str, str] = ("before", "after"),
    batch_size: int = 256,
    from_logits: bool | None = None,
    latency: dict[str, Latency] | None = None,
) -> Comparison:
    """Measures what changed between a model and what was made of it.

    Accuracy, calibration and every label are compared on `data`; both models are
    written to a temporary compressed file, and its bytes are counted.

    Args:
        before: the parent, a built Keras classifier.
        after: the smaller one; a `TransformedModel` predicts as it is (its activation
            quantizers included) and is finalized to be counted.
        data: `(x, y)`, inputs and integer or one-hot labels.
        names: of the two, for tables.
        batch_size: examples predicted at a time.
        from_logits: whether the outputs are logits; None finds out.
        latency: what `latency()` measured, to be shown beside the rest.

    Raises:
        DataError: if outputs and labels do not fit each other.
        ModelError: for a model that is not built, or that no file can hold.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> x, y = np.eye(4, dtype="float32"), np.array([0, 1, 0, 1])
        >>> compare(model, model, (x, y)).changes.churn
        0.0
    """
    x, y = data
    outputs = [m.predict(x, batch_size=batch_size, verbose=0) for m in (before, after)]
    plain_models = [plain_model(m) for m in (before, after)]
    first, second = (
        variant(name, rows, y, model, from_logits=from_logits)
        for name, rows, model in zip(names, outputs, plain_models, strict=True)
    )
    return Comparison(
        before=first,
        after=second,
        changes=changes(outputs[0], outputs[1], y, from_logits=from_logits),
        histograms=histograms(*plain_models),
        latency=dict(latency or {}),
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
