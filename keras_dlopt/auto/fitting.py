"""Whether examples are what a model takes, and labels what it gives."""

from typing import Any

import keras
import numpy as np

from keras_dlopt.data import Dataset
from keras_dlopt.errors import DataError, ModelError
from keras_dlopt.graph.trace import input_specs


def check_fits(model: keras.Model, *sets: Any) -> None:
    """Refuses examples of another shape than the model's, and labels past its outputs.

    Models whose inputs are not known are left to Keras, as are the shapes of several.

    Args:
        model: a built Keras model.
        *sets: each `(x, y)`, a `data.Dataset`, batches, or None.

    Raises:
        DataError: with both shapes, or the label and the number of outputs.

    Example:
        >>> net = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> check_fits(net, (np.zeros((3, 5)), np.zeros(3, int)))
        Traceback (most recent call last):
        keras_dlopt.errors.DataError: The model takes examples of shape (4,), and the \
data has (5,). Give the data that it was trained on, or reshape it.
    """
    try:
        wanted = input_specs(model)
    except ModelError:
        return
    for one in sets:
        for x, y in _pairs(one):
            if hasattr(wanted, "shape"):
                _check_inputs(tuple(wanted.shape[1:]), x)
            elif hasattr(x, "shape"):
                raise DataError(
                    f"The model takes {len(wanted)} inputs, and the data has one. Give "
                    "a dict or a list of arrays as x; on the command line "
                    "module:function, a function that returns (x, y)."
                )
            _check_labels(model, y)


def _pairs(given: Any) -> list[tuple[Any, Any]]:
    """Inputs and labels with a shape each; labels of batches are not looked at."""
    if isinstance(given, Dataset):
        return [given.train, given.val]
    if isinstance(given, tuple | list) and len(given) == 2:
        return [(given[0], given[1])]
    spec = getattr(given, "element_spec", None)
    if isinstance(spec, tuple) and len(spec) == 2:
        return [(spec[0], None)]
    return []


def _check_inputs(wanted: tuple[int | None, ...], x: Any) -> None:
    if isinstance(x, list | tuple | dict):
        raise DataError(
            f"The model takes one input of shape {wanted}, and the data has {len(x)}. "
            "Give that one alone, as an array."
        )
    shape = getattr(x, "shape", None)
    if shape is None or getattr(shape, "rank", 0) is None:
        return
    found = tuple(shape)[1:]
    # Keras adds a last axis of 1, and takes it off.
    one, other = (s[:-1] if s[-1:] == (1,) else s for s in (found, wanted))
    same = len(one) == len(other) and all(
        None in (a, b) or a == b for a, b in zip(one, other, strict=True)
    )
    if not same:
        raise DataError(
            f"The model takes examples of shape {wanted}, and the data has {found}. "
            "Give the data that it was trained on, or reshape it."
        )


def _check_labels(model: keras.Model, y: Any) -> None:
    outputs = getattr(model, "output_shape", None)
    if not isinstance(outputs, tuple) or len(outputs) != 2 or y is None:
        return
    y, width = np.asarray(y), outputs[1]
    if y.ndim != 1 or y.dtype.kind not in "iu" or not y.size or width in (None, 1):
        return
    if y.min() < 0 or y.max() >= width:
        raise DataError(
            f"The model has {width} outputs, one for each class, and the labels go "
            f"from {y.min()} to {y.max()}. Number the classes from 0, or give the "
            "model as many outputs."
        )
