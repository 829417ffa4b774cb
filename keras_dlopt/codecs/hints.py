"""What a transform knows about the values it made, offered to the tensor codec.

A hint is checked bit by bit before it is used; one that does not hold is ignored.
"""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Codebook:
    """The weight is exactly `values[indices]`.

    Args:
        indices: integers of the weight's shape.
        values: 1-D, of the weight's dtype.
    """

    indices: np.ndarray
    values: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Grid:
    """The weight is exactly `(codes * scale).astype(dtype)`.

    The product is taken in float64, then rounded to the weight's dtype (through
    float32 if that dtype has 16 bits or fewer). For a float32 scale and codes below
    2**24 this equals the product in float32.

    Args:
        codes: integers of the weight's shape, spanning at most 65536 values.
        scale: array that broadcasts to the weight's shape.
    """

    codes: np.ndarray
    scale: np.ndarray


Hint = Codebook | Grid
