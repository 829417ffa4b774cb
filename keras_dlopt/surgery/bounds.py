"""Interval arithmetic on channels: what values layers can make of values.

The bounds hold for real numbers; where an activation is evaluated they are those of the
float32 function, so a sigmoid that is 1.0 in float32 counts as fixed.

Source: Moore et al., "Introduction to Interval Analysis" (2009), chapters 2 and 5.
"""

from typing import Any

import keras
import numpy as np

Interval = tuple[np.ndarray, np.ndarray]

# Functions of keras.activations that never fall, and their classes in keras.ops.
_MONOTONE = {
    "celu": "Celu",
    "elu": "Elu",
    "exponential": "Exp",
    "hard_shrink": "HardShrink",
    "hard_sigmoid": "HardSigmoid",
    "hard_tanh": "HardTanh",
    "leaky_relu": "LeakyRelu",
    "linear": "Identity",
    "log_sigmoid": "LogSigmoid",
    "relu": "Relu",
    "relu6": "Relu6",
    "selu": "Selu",
    "sigmoid": "Sigmoid",
    "soft_shrink": "SoftShrink",
    "softplus": "Softplus",
    "softsign": "Softsign",
    "sparse_plus": "SparsePlus",
    "sparse_sigmoid": "SparseSigmoid",
    "squareplus": "Squareplus",
    "tanh": "Tanh",
    "tanh_shrink": "TanhShrink",
}
# Those that fall to their least value, then rise: that value, rounded down.
_VALLEYS = {
    "silu": -0.2785,
    "swish": -0.2785,
    "gelu": -0.1701,
    "mish": -0.3089,
    "hard_silu": -0.3751,
    "hard_swish": -0.3751,
}
# Classes of keras.ops that act on single numbers: None where they are monotone, else
# the bottom of their valley.
ELEMENTWISE: dict[str, float | None] = {
    **dict.fromkeys([*_MONOTONE.values(), "Negative", "Clip", "Sqrt"]),
    "Silu": _VALLEYS["silu"],
    "Gelu": _VALLEYS["gelu"],
    "HardSilu": _VALLEYS["hard_silu"],
    "Square": 0.0,
    "Abs": 0.0,
    "Absolute": 0.0,
}


def is_elementwise(function: Any) -> bool:
    """Whether an activation is known to act on each number for itself."""
    return _bottom(function) is not False


def _bottom(function: Any) -> float | bool | None:
    """The bottom of its valley, None if it never falls, False if it is not known."""
    name = getattr(function, "__name__", "")
    if function is None:
        return None
    if getattr(keras.activations, name, None) is not function:
        return False
    return None if name in _MONOTONE else _VALLEYS.get(name, False)


def activated(function: Any, low: np.ndarray, high: np.ndarray) -> Interval:
    """The values of an activation that `is_elementwise`."""
    if function is None or function is keras.activations.linear:
        return low, high
    bottom = _bottom(function)
    return through(function, low, high, None if bottom is None else float(bottom))


def through(
    function: Any, low: np.ndarray, high: np.ndarray, bottom: float | None
) -> Interval:
    """The values of a function that rises or falls, or falls to a bottom and rises."""
    ends = np.stack([_values(function, low), _values(function, high)])
    least, most = ends.min(axis=0), ends.max(axis=0)
    if bottom is not None:
        least = np.where(low < high, np.minimum(bottom, least), least)
    # sqrt of a negative number: nothing is known.
    bad = ~(np.isfinite(least) & np.isfinite(most))
    return np.where(bad, -np.inf, least), np.where(bad, np.inf, most)


def _values(function: Any, x: np.ndarray) -> np.ndarray:
    given = keras.ops.convert_to_tensor(x.astype("float32"))
    return np.asarray(keras.ops.convert_to_numpy(function(given)), "float64")


def affine(kernel: np.ndarray, low: np.ndarray, high: np.ndarray) -> Interval:
    """The values of a sum of products.

    Args:
        kernel: (taps, groups, inputs, outputs).
        low: of the inputs, groups x inputs of them.
        high: of the same.

    Returns:
        Of the outputs, groups x outputs of them.
    """
    _, groups, inputs, _ = kernel.shape
    low, high = low.reshape(groups, inputs), high.reshape(groups, inputs)
    up = np.maximum(kernel, 0).sum(axis=0, dtype="float64")
    down = np.minimum(kernel, 0).sum(axis=0, dtype="float64")
    least = np.einsum("gio,gi->go", up, low) + np.einsum("gio,gi->go", down, high)
    most = np.einsum("gio,gi->go", up, high) + np.einsum("gio,gi->go", down, low)
    return least.ravel(), most.ravel()


def scaled(low: np.ndarray, high: np.ndarray, factor: Any, offset: Any) -> Interval:
    """The values of `x * factor + offset`."""
    ends = np.stack([low * factor, high * factor])
    return ends.min(axis=0) + offset, ends.max(axis=0) + offset


def product(one: Interval, other: Interval) -> Interval:
    """The values of products."""
    corners = np.stack([a * b for a in one for b in other])
    return corners.min(axis=0), corners.max(axis=0)


def with_zero(low: np.ndarray, high: np.ndarray) -> Interval:
    """The values, and the zeros that padding puts beside them."""
    return np.minimum(low, 0.0), np.maximum(high, 0.0)
