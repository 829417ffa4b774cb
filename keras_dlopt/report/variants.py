"""One model, measured: how good it is, and how many bytes it takes."""

import contextlib
import dataclasses
import gzip
import importlib.metadata
import os
import pathlib
import platform
import tempfile
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from keras_dlopt import checks
from keras_dlopt.report.examples import Metric, measured
from keras_dlopt.report.tasks import TASKS, judge, own_measures
from keras_dlopt.report.weights import sparsity
from keras_dlopt.storage import Ledger, save_compressed
from keras_dlopt.transforms import TransformedModel, finalize


@dataclasses.dataclass(frozen=True)
class Variant:
    """One model, measured.

    Attributes:
        name: shown in tables.
        quality: on the examples of the comparison: of a classifier, or the errors of
            a regression.
        sparsity: share of exact zeros among weights of two or more dimensions.
        ledger: where the bytes of its compressed file go.
        file_bytes: of the file that is compared: the compressed one, or another.
        gzip_bytes: of that other file through gzip, else of the plain weights.
        metrics: the user's own, by name.
    """

    name: str
    quality: Any  # Quality or Errors
    sparsity: float
    ledger: Ledger
    file_bytes: int
    gzip_bytes: int
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)


def variant(
    name: str,
    outputs: np.ndarray,
    labels: np.ndarray,
    model: keras.Model,
    *,
    ledger: Ledger | None = None,
    file: str | os.PathLike[str] | None = None,
    from_logits: bool | None = None,
    task: str = "classification",
    metrics: Mapping[str, Metric] | None = None,
) -> Variant:
    """Measures one model by what it predicted, its weights and its file.

    Args:
        name: shown in tables.
        outputs: what it predicted, or its exported file did.
        labels: integers or one-hot rows.
        model: it; a `TransformedModel` is finalized to be counted.
        ledger: what `save_compressed` returned for it; None writes a temporary file.
        file: another file that it was exported to, whose bytes count.
        from_logits: whether the outputs are logits; None finds out.
        task: one of `report.TASKS`.
        metrics: name -> function of (labels, outputs), or a Keras metric.

    Raises:
        DataError: if outputs and labels do not fit each other.
        ModelError: for a model that is not built, or that no file can hold.
    """
    model = plain_model(model)
    account = ledger_of(model) if ledger is None else ledger
    sizes = account.file_bytes, account.gzip_bytes
    if file is not None:
        content = pathlib.Path(file).read_bytes()
        sizes = len(content), len(gzip.compress(content, 9))
    checks.choice(task, name="task", choices=TASKS)
    found = judge(task, outputs, labels, from_logits=from_logits)
    own = {
        **own_measures(task, outputs, labels, from_logits=from_logits),
        **measured(metrics or {}, outputs, labels),
    }
    return Variant(name, found, sparsity(model), account, *sizes, own)


def ledger_of(model: keras.Model) -> Ledger:
    """Where the bytes of the model's compressed file would go.

    Raises:
        ModelError: for a model that is not built, or that no file can hold.
    """
    with tempfile.TemporaryDirectory() as folder:
        return save_compressed(model, pathlib.Path(folder) / "model.dlopt")


def plain_model(model: keras.Model) -> keras.Model:
    """The model with ordinary weights."""
    return finalize(model) if isinstance(model, TransformedModel) else model


def versions() -> dict[str, str]:
    """Package -> version, of what figures depend on; for footers and results."""
    names = ("keras_dlopt", "keras", "tensorflow", "numpy", "ai_edge_litert")
    found = {"python": platform.python_version()}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found
