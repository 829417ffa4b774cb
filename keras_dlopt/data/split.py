"""Turns raw arrays into a `Dataset`: labels, channels, range, validation part."""

import dataclasses

import numpy as np

from keras_dlopt import checks
from keras_dlopt.data.dataset import Dataset
from keras_dlopt.errors import ConfigError, DataError

DTYPES = ("float32", "uint8")


@dataclasses.dataclass
class Raw:
    """What a source found; parts that it does not have are None."""

    name: str
    x_train: np.ndarray
    y_train: np.ndarray
    x_val: np.ndarray | None = None
    y_val: np.ndarray | None = None
    x_test: np.ndarray | None = None
    y_test: np.ndarray | None = None
    class_names: tuple[str, ...] | None = None
    validation: int | float = 0.1


def finish(raw: Raw, *, dtype: str, validation: int | float | None) -> Dataset:
    """The finished data set; see `load` for the rules."""
    checks.choice(
        dtype,
        name="dtype",
        choices=DTYPES,
        hint="float32 images lie in [0, 1], uint8 images in 0..255.",
    )
    if raw.x_test is None or raw.y_test is None:
        raise DataError(f"{raw.name} has no test part.")
    if raw.x_val is None or raw.y_val is None:
        size = raw.validation if validation is None else validation
        count = _count(size, len(raw.x_train), raw.name)
        cut = len(raw.x_train) - count
        raw = dataclasses.replace(
            raw,
            x_train=raw.x_train[:cut],
            y_train=raw.y_train[:cut],
            x_val=raw.x_train[cut:],
            y_val=raw.y_train[cut:],
        )
    elif validation is not None:
        raise ConfigError(
            f"{raw.name} brings its own validation part; leave out "
            f"validation={validation!r}."
        )
    labels = {p: _labels(getattr(raw, f"y_{p}"), raw, p) for p in _PARTS}
    top = max(int(y.max(initial=-1)) for y in labels.values())
    names = raw.class_names or tuple(str(i) for i in range(top + 1))
    images = {p: _examples(getattr(raw, f"x_{p}"), dtype, raw.name) for p in _PARTS}
    return Dataset(
        name=raw.name,
        class_names=tuple(names),
        **{f"x_{p}": x for p, x in images.items()},
        **{f"y_{p}": y for p, y in labels.items()},
    )


_SIZE = "It is a share in [0, 1), or a number of the training examples."
_PARTS = ("train", "val", "test")


def _count(size: int | float, total: int, name: str) -> int:
    """Number of validation examples meant by a number or a share."""
    number = checks.number(size, name="validation", least=0, hint=_SIZE)
    whole = np.asarray(size).dtype.kind in "iu"
    count = int(number) if whole else round(number * total)
    if count >= total:
        raise checks.refused(
            size,
            name="validation",
            wanted="a share in [0, 1) or a number below the "
            f"{total} training examples of {name}",
        )
    return count


def _labels(values: np.ndarray, raw: Raw, part: str) -> np.ndarray:
    values = np.asarray(values)
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    integral = np.issubdtype(values.dtype, np.integer) or (
        np.issubdtype(values.dtype, np.floating)
        and np.array_equal(values, np.rint(values))
    )
    if not integral:
        raise DataError(
            f"{raw.name}: y_{part} holds values of type {values.dtype}; expected "
            "integer class labels."
        )
    return values.astype(np.int32)


def _examples(values: np.ndarray, dtype: str, name: str) -> np.ndarray:
    """Adds the channel axis to gray images; scales bytes to [0, 1]."""
    if values.ndim == 3:
        values = values[..., None]
    if values.dtype == np.uint8:
        if dtype == "uint8":
            return np.ascontiguousarray(values)
        return values.astype(np.float32) / np.float32(255)
    if dtype == "uint8":
        raise DataError(
            f"{name} holds values of type {values.dtype}, which cannot be given as "
            "uint8 without loss. Ask for dtype='float32'."
        )
    if not np.issubdtype(values.dtype, np.number):
        raise DataError(
            f"{name} holds examples of type {values.dtype}; expected numbers."
        )
    return values.astype(np.float32)
