"""Batches as a file takes them: in its order, of its shapes, in its types."""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_dlopt.errors import DataError
from keras_dlopt.export.ends import unique
from keras_dlopt.export.runtime import End


def in_order(x: Any, inputs: Sequence[End], *, path: str) -> list[np.ndarray]:
    """The arrays of a batch in the order of a file's inputs, checked.

    As in Keras, a last dimension of 1 may be left out, or be one too many.

    Args:
        x: an array, a list in order, a dict by name, or a nested structure.
        inputs: of the file.
        path: of the file, for the texts.

    Raises:
        DataError: for data that does not fit.

    Example:
        >>> ends = [End(name, (None, 2), np.dtype("float32")) for name in ("b", "a")]
        >>> batch = {"a": np.zeros((1, 2)), "b": np.ones((1, 2))}
        >>> [a.tolist() for a in in_order(batch, ends, path="f")]
        [[[1.0, 1.0]], [[0.0, 0.0]]]
    """
    given = [np.asarray(one) for one in _flat(x, [end.name for end in inputs], path)]
    wanted = [end.shape[1:] for end in inputs]
    arrays = [_adjusted(a, want) for a, want in zip(given, wanted, strict=True)]
    fits = all(_fits(a, want) for a, want in zip(arrays, wanted, strict=True))
    if fits and len({len(a) for a in arrays}) == 1 and len(arrays[0]):
        return arrays
    lone = all(a.shape == want for a, want in zip(given, wanted, strict=True))
    raise DataError(
        f"{path!r} takes batches of examples of shape {wanted}. Received: "
        f"{[a.shape for a in given]}."
        + (" Give one example as a batch of one: x[None]." if lone else "")
    )


def _flat(x: Any, names: list[str], path: str) -> list[Any]:
    """What was given for each of the names."""
    if isinstance(x, Mapping):
        keys = dict(zip(unique(str(key) for key in x), x, strict=True))
        keys |= {str(key): key for key in x}
        if all(name in keys for name in names) and len(x) == len(names):
            return [x[keys[name]] for name in names]
    flat = [x]
    if isinstance(x, Mapping) or (isinstance(x, list | tuple) and _holds_arrays(x)):
        flat = keras.tree.flatten(x)
    if len(flat) != len(names) or (isinstance(x, Mapping) and not _is_nested(x)):
        given = sorted(map(str, x)) if isinstance(x, Mapping) else len(flat)
        raise DataError(
            f"{path!r} takes {len(names)} inputs named {names}. Received: {given}. "
            "Pass a dict with these names, or a list in this order."
        )
    return flat


def _holds_arrays(x: Any) -> bool:
    return any(hasattr(one, "shape") for one in keras.tree.flatten(x))


def _is_nested(x: Mapping[Any, Any]) -> bool:
    return any(isinstance(one, Mapping | list | tuple) for one in x.values())


def _adjusted(values: np.ndarray, want: tuple[int | None, ...]) -> np.ndarray:
    """With a last dimension of 1 where it is left out, without it where it is extra."""
    rank = len(want) + 1
    if values.ndim == rank + 1 and values.shape[-1] == 1:
        return values[..., 0]
    left_out = values.ndim == rank - 1 > 0 and want[-1] == 1
    return values[..., None] if left_out else values


def _fits(values: np.ndarray, want: tuple[int | None, ...]) -> bool:
    return values.ndim == len(want) + 1 and all(
        w in (None, n) for w, n in zip(want, values.shape[1:], strict=True)
    )


def encoded(values: np.ndarray, end: End) -> np.ndarray:
    """A batch in the type of an input; on its grid, where it has one.

    Raises:
        DataError: for values that the type does not hold.
    """
    if end.scale:
        return quantize(values, end)
    if values.dtype == end.dtype:
        return values
    if not np.can_cast(values.dtype, end.dtype, "same_kind"):
        raise DataError(
            f"The input {end.name!r} is of type {end.dtype}. Received: {values.dtype}. "
            f"Convert the values: x.astype({str(end.dtype)!r})."
        )
    cast = values.astype(end.dtype)
    if end.dtype.kind in "iu" and not np.array_equal(cast, values):
        raise DataError(
            f"The input {end.name!r} is of type {end.dtype}, which does not hold all "
            f"the values given, {values.min()} to {values.max()}. Give smaller ones."
        )
    return cast


def quantize(values: np.ndarray, end: End) -> np.ndarray:
    """Values on the grid of an input, rounded as the kernels do.

    Raises:
        DataError: for values that are no real numbers, or NaN.

    Example:
        >>> end = End("x", (None, 3), np.dtype("int8"), scale=0.5, zero_point=-3)
        >>> quantize(np.array([0.0, 0.25, 100.0]), end).tolist()
        [-3, -2, 127]
    """
    if values.dtype.kind not in "fiub":
        raise DataError(
            f"The input {end.name!r} takes real numbers. Received: {values.dtype}. "
            "Give an array of floats."
        )
    scale, half, zero, low, high = end.numbers
    codes = np.divide(values, scale, dtype="float32", casting="same_kind")
    codes += half
    np.floor(codes, out=codes)
    codes += zero
    np.maximum(codes, low, out=codes)
    np.minimum(codes, high, out=codes)
    total = np.add.reduce(codes, axis=None)
    if total != total:
        raise DataError(
            f"The input {end.name!r} lies on a grid of {end.dtype}, which holds no "
            "NaN. Replace them: np.nan_to_num(x)."
        )
    found: np.ndarray = codes.astype(end.dtype)
    return found


def decoded(codes: np.ndarray, end: End) -> np.ndarray:
    """The values of an output; floats, where it lies on a grid."""
    if not end.scale:
        return codes
    scale, _, zero, _, _ = end.numbers
    values = codes.astype("float32")
    values -= zero
    values *= scale
    return values
