"""Arrays as unsigned bit patterns, so that every value survives exactly."""

import math

import numpy as np

from keras_dlopt.errors import ConfigError, FormatError

# The position is the number in the file: append only.
NAMES = (
    "bool",
    "uint8",
    "int8",
    "uint16",
    "int16",
    "uint32",
    "int32",
    "uint64",
    "int64",
    "float16",
    "bfloat16",
    "float32",
    "float64",
    "float8_e4m3fn",
    "float8_e5m2",
)


def dtype_of(name: str) -> np.dtype:
    """The NumPy dtype of a name in `NAMES`."""
    if name.startswith(("bfloat", "float8")):
        import ml_dtypes  # only where NumPy itself lacks the type

        found: np.dtype = np.dtype(getattr(ml_dtypes, name))
        return found
    return np.dtype(name)


def number_of(dtype: np.dtype) -> int:
    """The number of a dtype in the file."""
    if dtype.name not in NAMES:
        raise ConfigError(
            f"Arrays of dtype {dtype.name} cannot be stored. Expected one of "
            f"{', '.join(NAMES)}. Cast the array first."
        )
    return NAMES.index(dtype.name)


def is_float(dtype: np.dtype) -> bool:
    """Whether the dtype holds floating-point numbers."""
    return "float" in dtype.name


def to_bits(array: np.ndarray) -> np.ndarray:
    """Flat (C order) unsigned integers with the array's bit patterns."""
    flat = np.ascontiguousarray(array).reshape(-1)
    flat = flat.astype(flat.dtype.newbyteorder("="), copy=False)
    return flat.view(f"u{flat.dtype.itemsize}")


def from_bits(bits: np.ndarray, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """The inverse of `to_bits`."""
    if dtype == np.bool_ and bits.size and bits.max() > 1:
        raise FormatError(
            f"The file is damaged: a bool array holds the byte {bits.max()}. "
            "Restore the file from a copy or save it again."
        )
    return bits.view(dtype).reshape(shape)


def by_value(bits: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The order that sorts bit patterns by the values they stand for."""
    if dtype.kind in "ub":
        return np.argsort(bits, kind="stable")
    sign = bits.dtype.type(1 << (8 * bits.dtype.itemsize - 1))
    key = bits ^ sign
    if is_float(dtype):
        key = np.where(bits & sign, ~bits, key)
    return np.argsort(key, kind="stable")


def elements(shape: tuple[int, ...]) -> int:
    """Number of elements, counting empty dimensions as 1: bounds what is allocated."""
    return math.prod(max(size, 1) for size in shape)
