"""What compressing changed: measured, kept as data, rendered on request."""

import dataclasses
import math
import os
import pathlib
import tempfile
from typing import Any

import keras
import numpy as np

from keras_dlopt.measure.latency import Latency
from keras_dlopt.report import pages
from keras_dlopt.report.document import Document
from keras_dlopt.report.html import write_html
from keras_dlopt.report.quality import Changes, Quality, changes, quality
from keras_dlopt.report.terminal import rich_table
from keras_dlopt.report.weights import WeightHistogram, histograms, sparsity
from keras_dlopt.storage import Ledger, save_compressed
from keras_dlopt.transforms import TransformedModel, finalize


@dataclasses.dataclass(frozen=True)
class Variant:
    """One model, measured.

    Attributes:
        name: shown in tables.
        quality: on the examples of the comparison.
        sparsity: share of exact zeros among weights of two or more dimensions.
        ledger: where the bytes of its compressed file go.
    """

    name: str
    quality: Quality
    sparsity: float
    ledger: Ledger


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
        data = dataclasses.asdict(self)
        for name in ("before", "after"):
            data[name]["ledger"] = getattr(self, name).ledger.to_dict()
        return plain(data)

    def document(self) -> Document:
        """The whole report, not rendered yet."""
        return pages.comparison(self)

    def to_html(self, path: str | os.PathLike) -> pathlib.Path:
        """Writes the report as one HTML file that needs nothing else.

        Raises:
            ConfigError: if the file cannot be written.
        """
        return write_html(self.document(), path)

    def __rich__(self) -> Any:
        return rich_table(pages.comparison_table(self))


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
    plain_models = [_plain_model(m) for m in (before, after)]
    variants = [
        Variant(
            name=name,
            quality=quality(rows, y, from_logits=from_logits),
            sparsity=sparsity(model),
            ledger=ledger(model),
        )
        for name, rows, model in zip(names, outputs, plain_models, strict=True)
    ]
    return Comparison(
        before=variants[0],
        after=variants[1],
        changes=changes(outputs[0], outputs[1], y, from_logits=from_logits),
        histograms=histograms(*plain_models),
        latency=dict(latency or {}),
    )


def ledger(model: keras.Model) -> Ledger:
    """Where the bytes of the model's compressed file would go.

    Raises:
        ModelError: for a model that is not built, or that no file can hold.
    """
    with tempfile.TemporaryDirectory() as folder:
        return save_compressed(model, pathlib.Path(folder) / "model.dlopt")


def _plain_model(model: keras.Model) -> keras.Model:
    return finalize(model) if isinstance(model, TransformedModel) else model


def plain(value: Any) -> Any:
    """Data that JSON can hold: tuples become lists, nan and infinity None.

    Example:
        >>> plain({"a": (1, float("nan"))})
        {'a': [1, None]}
    """
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
