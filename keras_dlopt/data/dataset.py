"""One data set in memory, already split."""

import dataclasses
from typing import Any

import numpy as np

from keras_dlopt.errors import DataError


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Training, validation and test arrays of one task.

    Attributes:
        name: where it came from, such as `"mnist"` or a path.
        x_train: examples to train on, images as `(n, height, width, channels)`.
        y_train: their labels, int32 from 0 to `classes - 1`; where there are no
            classes, numbers to predict (float32), or labels of more axes.
        x_val: examples to choose settings on.
        y_val: their labels.
        x_test: examples to report on, once.
        y_test: their labels.
        class_names: one name per class; empty where the labels are no classes.
        of_bytes: whether the examples were given as bytes, 0 to 255.
        notes: what is to be known of them, such as how they were fitted to a model.

    Raises:
        DataError: when examples and labels do not match in number, a part that is
            needed is empty, or the parts differ in shape.

    Example:
        >>> x, y = np.zeros((6, 2, 2, 1), "float32"), np.arange(6, dtype="int32") % 2
        >>> Dataset("toy", x[:2], y[:2], x[2:4], y[2:4], x[4:], y[4:], ("a", "b"))
        Dataset('toy', 2 train, 2 validation, 2 test, shape (2, 2, 1), 2 classes)
    """

    name: str
    x_train: np.ndarray
    y_train: np.ndarray
    x_val: np.ndarray
    y_val: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    class_names: tuple[str, ...]
    of_bytes: bool = False
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for part in ("train", "val", "test"):
            x, y = self._part(part)
            if not y.ndim or len(x) != len(y) or (self.classes and y.ndim > 1):
                raise DataError(
                    f"{self.name}: x_{part} has shape {x.shape} and y_{part} "
                    f"{y.shape}; expected one label per example."
                )
            if x.shape[1:] != self.x_train.shape[1:]:
                raise DataError(
                    f"{self.name}: x_{part} has examples of shape {x.shape[1:]}, "
                    f"x_train of shape {self.x_train.shape[1:]}. Make them equal."
                )
            if self.classes and len(y) and not 0 <= y.min() <= y.max() < self.classes:
                raise DataError(
                    f"{self.name}: labels in y_{part} go from {y.min()} to {y.max()}; "
                    f"expected 0 to {self.classes - 1} for {self.classes} classes. "
                    "Number the classes from 0; give numbers to predict as floats."
                )
        if not len(self.x_train):
            raise DataError(
                f"{self.name}: no training examples are left. Give more data or a "
                "smaller validation part."
            )

    def _part(self, part: str) -> tuple[np.ndarray, np.ndarray]:
        return getattr(self, f"x_{part}"), getattr(self, f"y_{part}")

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one example."""
        return tuple(self.x_train.shape[1:])

    @property
    def train(self) -> tuple[np.ndarray, np.ndarray]:
        """`(x_train, y_train)`."""
        return self.x_train, self.y_train

    @property
    def val(self) -> tuple[np.ndarray, np.ndarray]:
        """`(x_val, y_val)`."""
        return self.x_val, self.y_val

    @property
    def test(self) -> tuple[np.ndarray, np.ndarray]:
        """`(x_test, y_test)`."""
        return self.x_test, self.y_test

    def take(self, train: int, *, test: int | None = None) -> "Dataset":
        """The first examples only, for quick runs.

        Args:
            train: number of training examples to keep.
            test: number of validation and of test examples to keep; None keeps all.
        """
        fields: dict[str, Any] = {}
        for part, count in (("train", train), ("val", test), ("test", test)):
            x, y = self._part(part)
            fields |= {f"x_{part}": x[:count], f"y_{part}": y[:count]}
        return dataclasses.replace(self, **fields)

    def __repr__(self) -> str:
        kind = f"{self.classes} classes" if self.classes else "no classes"
        return (
            f"Dataset({self.name!r}, {len(self.x_train)} train, "
            f"{len(self.x_val)} validation, {len(self.x_test)} test, "
            f"shape {self.input_shape}, {kind})"
        )
