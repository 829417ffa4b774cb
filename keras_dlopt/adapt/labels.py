"""The labels that a model knows, and those that it has never seen."""

import difflib
from typing import Any

import numpy as np

from keras_dlopt.errors import ConfigError, DataError

SHOWN = 10


class Labels:
    """The labels of a task as the numbers that a model is trained on, and back.

    Args:
        y: labels of the training data, texts or whole numbers of any range.

    Attributes:
        classes: the distinct labels, sorted; a label's number is its place.

    Raises:
        DataError: for no labels, or numbers that are not whole.

    Example:
        >>> labels = Labels(["cat", "dog", "cat"])
        >>> labels.encode(["dog", "cat"]).tolist(), labels.decode([[0.1, 0.9]]).tolist()
        ([1, 0], ['dog'])
    """

    def __init__(self, y: Any):
        self.classes = np.unique(_flat(y, name="y"))
        if not self.classes.size:
            raise DataError("There are no labels. Received: an empty y.")

    def encode(self, y: Any) -> np.ndarray:
        """int32 numbers of labels.

        Raises:
            DataError: for a label that the training data had not; with the nearest.
        """
        given = _flat(y, name="y")
        if given.dtype.kind != self.classes.dtype.kind and given.size:
            raise DataError(
                f"Labels are {_words(self.classes)}. Received: {_words(given)}."
            )
        unseen = np.setdiff1d(given, self.classes)
        if unseen.size:
            raise DataError(
                f"{unseen.size} labels were never seen in training: "
                f"{_listed(unseen)}.{self._near(unseen[0])} The model knows "
                f"{_listed(self.classes)}. Leave these examples out, or make Labels of "
                "all labels and a head of their number."
            )
        return np.searchsorted(self.classes, given).astype("int32")

    def decode(self, outputs: Any) -> np.ndarray:
        """The labels of a model's outputs (examples, classes), or of numbers.

        Raises:
            DataError: for outputs of another width, or numbers without a label.
        """
        found = np.asarray(outputs)
        if found.ndim > 1:
            if found.shape[-1] != len(self.classes):
                raise DataError(
                    f"Outputs have {found.shape[-1]} columns, and there are "
                    f"{len(self.classes)} labels. Make the head with "
                    "new_head(model, labels)."
                )
            found = found.argmax(-1)
        if found.size and not 0 <= found.min() <= found.max() < len(self.classes):
            raise DataError(
                f"Numbers of labels lie in 0 to {len(self.classes) - 1}. Received: "
                f"{found.min()} to {found.max()}."
            )
        return self.classes[found]

    def _near(self, label: Any) -> str:
        if self.classes.dtype.kind != "U":
            return ""
        close = difflib.get_close_matches(str(label), self.classes.tolist(), n=3)
        return f" Near {str(label)!r}: {', '.join(map(repr, close))}." if close else ""

    def __repr__(self) -> str:
        return f"Labels({_listed(self.classes)})"


def check_labels(model: Any, y: Any) -> None:
    """Raises unless labels fit the head of a model, before `fit` gives NaN or stops.

    Args:
        model: with one output of shape (examples, classes).
        y: whole numbers from 0, or one row of `classes` numbers an example.

    Raises:
        ConfigError: for a model with several outputs.
        DataError: for labels beyond the head, below 0, or of another width.

    Example:
        >>> import keras
        >>> net = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        >>> check_labels(net, [0, 2, 1])
    """
    shape = getattr(model, "output_shape", None)
    if not isinstance(shape, tuple) or len(shape) != 2:
        raise ConfigError(
            f"{model.name!r} has no single output of shape (examples, classes): "
            f"{shape}. Check the labels of each output by themselves."
        )
    given, classes = np.asarray(y), shape[-1]
    if given.ndim == 2 and given.shape[1] > 1:
        if given.shape[1] != classes:
            raise DataError(
                f"The head of {model.name!r} has {classes} outputs, and labels have "
                f"{given.shape[1]} columns. Make the head with new_head(model, "
                f"{given.shape[1]})."
            )
        return
    numbers = _flat(y, name="y")
    if numbers.dtype.kind == "U":
        raise DataError(
            "A model is trained on numbers, and labels are texts. Encode them with "
            "Labels(y).encode(y)."
        )
    if numbers.size and (numbers.min() < 0 or numbers.max() >= classes > 1):
        raise DataError(
            f"The head of {model.name!r} has {classes} outputs, for the labels 0 to "
            f"{classes - 1}. Received: {numbers.min()} to {numbers.max()}. Make the "
            f"head with new_head(model, Labels(y)), and encode the labels with it."
        )


def _flat(y: Any, *, name: str) -> np.ndarray:
    """Labels in one row, as texts or int64."""
    given = np.asarray(y)
    if given.ndim == 2 and given.shape[1] == 1:
        given = given[:, 0]
    if given.dtype.kind == "S":
        given = np.char.decode(given, "utf-8")
    if given.dtype.kind == "O":
        given = given.astype(str)
    if given.dtype.kind == "f" and np.array_equal(given, np.floor(given)):
        given = given.astype("int64")
    if given.dtype.kind == "b":
        given = given.astype("int64")
    if given.ndim != 1 or (given.size and given.dtype.kind not in "iuU"):
        raise DataError(
            f"{name} must be one label an example, texts or whole numbers. Received: "
            f"an array of {given.dtype} of shape {given.shape}."
        )
    return given.astype("int64") if given.dtype.kind in "iu" else given


def _words(values: np.ndarray) -> str:
    return "texts" if values.dtype.kind == "U" else "whole numbers"


def _listed(values: np.ndarray) -> str:
    shown = ", ".join(map(repr, values[:SHOWN].tolist()))
    return f"{shown}, ... ({len(values)})" if len(values) > SHOWN else shown
