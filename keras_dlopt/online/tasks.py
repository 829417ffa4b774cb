"""What a sample's error is, and which class it has."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from keras_dlopt.errors import ConfigError, DataError, ModelError


def check_finite(arrays: Any) -> None:
    """Raises `ModelError` for outputs or weights that are not finite."""
    for array in arrays:
        if not np.isfinite(array.astype("float32")).all():
            raise ModelError(
                "The model's weights or outputs are not finite: it has diverged. "
                "Restore the last snapshot and lower the learning rate."
            )


class Task:
    """A kind of label: classes, or values.

    Args:
        kind: `"classes"` or `"values"`.
        outputs: what the model makes of some rows, arrays.
        error: a function of labels and outputs that gives an error a row; None for
            wrong classes, or mean squared differences.
        head: of a single output for one class: `"sigmoid"` or `"linear"`.

    Raises:
        ConfigError: for outputs that the kind does not go with.
    """

    def __init__(
        self,
        kind: str,
        outputs: Any,
        error: Callable[[Any, Any], Any] | None,
        *,
        head: str = "linear",
    ):
        self.kind, self._error, self._head = kind, error, head
        shapes = [tuple(a.shape[1:]) for a in keras.tree.flatten(outputs)]
        self.shapes = shapes
        if kind == "classes" and (len(shapes) != 1 or len(shapes[0]) != 1):
            raise ConfigError(
                "task='classes' goes with one output of the shape (batch, classes). "
                f"The model's have {shapes} a sample. Pass task='values', with error= "
                "for several outputs."
            )
        if kind == "values" and error is None and len(shapes) > 1:
            raise ConfigError(
                f"The model has {len(shapes)} outputs, and no error of a sample is "
                "known. Pass error=, a function of labels and outputs that gives one "
                "for each sample."
            )
        self.classes = shapes[0][0] if kind == "classes" else 0

    def labels(self, y: Any) -> np.ndarray:
        """The class of each sample, (n,); -1 for values.

        Raises:
            DataError: for labels that the model's head has no place for.
        """
        if self.kind == "values":
            return np.full(len(keras.tree.flatten(y)[0]), -1)
        (array,) = keras.tree.flatten(y)
        if array.ndim == 2 and array.shape[1] == self.classes > 1:
            return np.argmax(array, axis=1)
        if array.ndim == 2 and array.shape[1] == 1:
            array = array[:, 0]
        if array.ndim != 1 or (array != np.floor(array)).any():
            raise DataError(
                f"Labels of classes must be whole numbers, one a sample, or rows of "
                f"{self.classes} for one class each. Received the shape {array.shape} "
                f"and the type {array.dtype}. Pass task='values' for other labels."
            )
        most = max(self.classes, 2)
        wrong = (array < 0) | (array >= most)
        if wrong.any():
            i = int(np.argmax(wrong))
            raise DataError(
                f"The label {array[i]!s} in row {i} has no place in a head of "
                f"{self.classes} outputs, which holds the labels 0 to {most - 1}. "
                "Nothing of this call was learned. Give the model a wider head from "
                "the start, or number the labels anew."
            )
        return array.astype("int64")

    def errors(self, y: Any, outputs: Any, labels: np.ndarray) -> np.ndarray:
        """The error of each sample, (n,).

        Raises:
            ModelError: where the model's outputs are not finite.
            ConfigError: for a function of the user's that gives something else.
        """
        n = len(labels)
        check_finite(keras.tree.flatten(outputs))
        if self._error is not None:
            found = np.asarray(self._error(y, outputs), "float64")
            if found.shape != (n,) or not np.isfinite(found).all():
                raise ConfigError(
                    f"error= must give a finite number for each of {n} samples. "
                    f"Received: the shape {found.shape}."
                )
            return found
        (array,) = keras.tree.flatten(outputs)
        if self.kind == "values":
            (wanted,) = keras.tree.flatten(y)
            far = array.astype("float64").reshape(n, -1) - wanted.reshape(n, -1)
            return np.mean(far**2, axis=1)
        if self.classes == 1:
            border = 0.5 if self._head == "sigmoid" else 0.0
            predicted = (array[:, 0] > border).astype("int64")
        else:
            predicted = np.argmax(array, axis=1)
        return (predicted != labels).astype("float64")
