"""What the choices of this package take: scores, labels, features, how many to keep."""

from typing import Any

import numpy as np

from keras_dlopt import checks
from keras_dlopt.errors import ConfigError, DataError


def count_of(keep: int | float, total: int) -> int:
    """How many examples `keep` means, a number or a share of `total`.

    Raises:
        ConfigError: for none, or more than there are.
    """
    if isinstance(keep, float | np.floating):
        found = round(checks.share(keep, name="keep") * total)
    else:
        found = checks.whole(
            keep, name="keep", hint="Give a share as a float, such as 0.5."
        )
    if not 1 <= found <= total:
        raise ConfigError(
            f"keep must be from 1 to the {total} examples there are. Received: {keep}."
        )
    return found


def vector(values: Any, *, name: str) -> np.ndarray:
    """Finite numbers, one an example, as float64.

    Raises:
        DataError: for anything else.
    """
    array = np.asarray(values)
    if array.ndim != 1 or not len(array) or array.dtype.kind not in "biuf":
        raise DataError(
            f"{name} must hold one number an example. Received: an array of the shape "
            f"{array.shape}, {array.dtype}."
        )
    array = array.astype("float64")
    if not np.isfinite(array).all():
        raise DataError(
            f"{name} must be finite. Received: {int((~np.isfinite(array)).sum())} "
            "values that are not, as a network gives that has diverged."
        )
    return array


def rows(values: Any, *, name: str) -> np.ndarray:
    """Finite features, one row an example, as float32.

    Raises:
        DataError: for anything else.
    """
    array = np.asarray(values)
    if array.ndim < 2 or not len(array) or array.dtype.kind not in "biuf":
        raise DataError(
            f"{name} must hold one row of numbers an example. Received: an array of "
            f"the shape {array.shape}, {array.dtype}."
        )
    array = array.reshape(len(array), -1).astype("float32")
    if not np.isfinite(array).all():
        raise DataError(f"{name} must be finite. Received: values that are not.")
    return array


def classes(labels: Any, *, count: int | None = None) -> np.ndarray:
    """Labels as whole numbers from 0; one-hot ones by their largest entry.

    Args:
        labels: (examples,), (examples, 1) or (examples, classes).
        count: of the examples that the labels go with; None for any.

    Raises:
        DataError: for anything else.
    """
    array = np.asarray(labels)
    if array.ndim == 2 and array.shape[1] > 1:
        array = array.argmax(axis=1)
    array = array.reshape(-1) if array.ndim == 2 else array
    whole = array.ndim == 1 and array.dtype.kind in "biuf" and len(array)
    if not whole or (array != np.floor(array)).any() or array.min() < 0:
        raise DataError(
            "Labels must be whole numbers from 0, or one-hot rows. Received: an array "
            f"of the shape {np.shape(labels)}, {np.asarray(labels).dtype}."
        )
    if count is not None and len(array) != count:
        raise DataError(f"There are {len(array)} labels for {count} examples.")
    return array.astype("int64")
