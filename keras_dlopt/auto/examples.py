"""A data set as a given model takes it: size and range of pictures, and flat ones."""

import dataclasses
import math
import os
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from keras_dlopt import data
from keras_dlopt.auto.fitting import check_fits
from keras_dlopt.data import Dataset
from keras_dlopt.data.tfds import PREFIX
from keras_dlopt.errors import ModelError
from keras_dlopt.graph.trace import input_specs
from keras_dlopt.graph.walk import layers_below
from keras_dlopt.report.examples import predicted
from keras_dlopt.report.quality import are_logits

# What bytes are made into before or inside models; `data.load` gives the first.
RANGES = ((0, 1), (0, 255), (-1, 1))
_JUDGED, _AT_A_TIME = 256, 32
# Above four standard errors of a share of 256 examples.
_CLEARLY = 0.15


def examples_for(
    model: keras.Model, name: str | os.PathLike[str], *, label: str | None = None
) -> Dataset:
    """A data set from a name or path, as `data.load` has them, for a given model.

    Pictures of a folder or of `tfds:` get the size that the model takes, and become
    rows of numbers where it takes those. Bytes become 0 to 1, 0 to 255 or -1 to 1: 0 to
    255 for models that rescale inside, 0 to 1 for others, unless the model is clearly
    more often right with another of the three. `notes` tells of such a choice, and
    where the model is not right more often than one that always names the same class.

    Args:
        model: a built Keras model.
        name: see `data.load`.
        label: name of the column of labels, in a table.

    Raises:
        DataError: for data that is not found, or does not fit the model.
        ConfigError: for arguments that do not fit the data set.

    Example:
        >>> net = keras.Sequential([keras.Input((64,)), keras.layers.Dense(10)])
        >>> examples_for(net, "digits").input_shape
        (64,)
    """
    name = os.fspath(name)
    shape = _input_shape(model)
    sized = os.path.isdir(name) or name.startswith(PREFIX)
    pictures = shape[-1:] in ((1,), (3,)) and len(shape) == 3 and None not in shape
    size = shape[:2] if sized and pictures else None
    found = data.load(name, label=label, image_size=size)
    if len(shape) == 1 and shape[0] == math.prod(found.input_shape):
        found = _mapped(found, lambda x: x.reshape(len(x), -1))
    check_fits(model, found, found.test)
    return _judged(model, found)


def _input_shape(model: keras.Model) -> tuple[Any, ...]:
    """Of one example; empty where it is not known or there are several inputs."""
    try:
        return tuple(getattr(input_specs(model), "shape", (None,))[1:])
    except ModelError:
        return ()


def _mapped(found: Dataset, change: Callable[[np.ndarray], np.ndarray]) -> Dataset:
    changed = {f"x_{p}": change(getattr(found, f"x_{p}")) for p in _PARTS}
    return dataclasses.replace(found, **changed)  # type: ignore[arg-type]


_PARTS = ("train", "val", "test")


def _judged(model: keras.Model, found: Dataset) -> Dataset:
    """The data set in the range that suits the model, with what is to be told."""
    start = (0, 255) if found.of_bytes and _rescales(model) else (0, 1)
    x, y = found.val if len(found.x_val) else found.train
    x, y = x[:_JUDGED], y[:_JUDGED]
    if not found.classes or not _classifies(model):
        return _ranged(found, start)
    ranges = RANGES if found.of_bytes else (start,)
    right = {one: _right(model, _moved(x, one), y) for one in ranges}
    best = max(ranges, key=lambda one: right[one])
    notes = []
    if right[best] - right[start] > _CLEARLY:
        notes.append(
            f"The pictures are given as numbers from {best[0]} to {best[1]}, with "
            f"which the model is right on {right[best]:.0%} of {len(x)} examples, not "
            f"as {start[0]} to {start[1]} ({right[start]:.0%})."
        )
    else:
        best = start
    most = float(np.bincount(y).max() / len(y))
    if right[best] <= most + 0.02:
        notes.append(
            f"The model is right on {right[best]:.0%} of {len(x)} examples; always "
            f"naming the same class is on {most:.0%}. If it is trained, these are not "
            "prepared as in its training, or its classes have other numbers."
        )
    return dataclasses.replace(_ranged(found, best), notes=tuple(notes))


def _rescales(model: keras.Model) -> bool:
    """Whether a layer brings bytes to small numbers."""
    kinds = (keras.layers.Rescaling, keras.layers.Normalization)
    for layer in layers_below(model, kinds):
        if isinstance(layer, keras.layers.Rescaling):
            if np.max(np.abs(layer.scale)) < 0.05:
                return True
        elif layer.built and np.max(np.abs(keras.ops.convert_to_numpy(layer.mean))) > 2:
            return True
    return False


def _classifies(model: keras.Model) -> bool:
    shape = getattr(model, "output_shape", None)
    return isinstance(shape, tuple) and len(shape) == 2 and shape[1] is not None


def _ranged(found: Dataset, to: tuple[int, int]) -> Dataset:
    return found if to == (0, 1) else _mapped(found, lambda x: _moved(x, to))


def _moved(x: np.ndarray, to: tuple[int, int]) -> np.ndarray:
    """From 0 to 1; whole numbers where that were bytes, to 255."""
    if to == (0, 1):
        return x
    whole = np.rint(x * np.float32(255))
    return whole if to == (0, 255) else whole / np.float32(127.5) - np.float32(1)


def _right(model: keras.Model, x: np.ndarray, y: np.ndarray) -> float:
    """The share of examples whose class the model names."""
    (rows,), y = predicted([model], (x, y), batch_size=_AT_A_TIME)
    if rows.shape[1] == 1:
        rows = np.hstack([np.full_like(rows, 0 if are_logits(rows) else 0.5), rows])
    return float(np.mean(rows.argmax(axis=1) == y))  # also where numbers overflow
