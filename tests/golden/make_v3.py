"""Wrote the golden files of format version 3. Kept to show what is in them.

They are never written again: `python make_v3.py` only adds missing ones.
"""

import pathlib

import ml_dtypes
import numpy as np

from keras_dlopt.codecs import Rans, Tensor, find_grid

HERE = pathlib.Path(__file__).parent


def arrays() -> dict[str, np.ndarray]:
    """One array for every method that came with version 3."""
    rng = np.random.RandomState(0)  # its streams are frozen by NumPy's policy
    rows, columns = rng.randint(1, 9, (60, 1)), rng.randint(1, 9, (1, 50))
    kept = rng.randint(0, 100, (60, 50)) < rows * columns // 2
    codes = (rng.binomial(12, 0.5, (60, 50)) - 6) * kept
    scale = (1 + np.arange(50)).astype(np.float32) / 64
    noise = rng.randint(-(2**23), 2**23, (50, 40)).astype(np.float32) / 2**25
    dense = rng.binomial(200, 0.5, (70, 70))
    return {
        "rans_codebook": dense.astype(np.int16) * 3,
        "rans_grid": (dense - 100) * np.float32(0.25) + np.zeros((70, 70), "f4"),
        "bytes_float32": noise,
        "bytes_bfloat16": (noise * rng.randint(1, 999, (50, 40))).astype(
            ml_dtypes.bfloat16
        ),
        "bytes_float64": noise.astype(np.float64) / 3,
        "context_codebook": codes.astype(np.int8),
        "context_grid": (codes * scale).astype(np.float32) + np.float32(0),
        "context_taps": codes.reshape(2, 6, 5, 50).astype(np.float32) / 8 + 0,
    }


def symbols() -> np.ndarray:
    """Of a stream with more than one lane."""
    return np.random.RandomState(1).binomial(60, 0.3, 40_000)


def main() -> None:
    """Writes what is missing."""
    found = {
        f"tensor_{name}": Tensor().encode(array, hint=find_grid(array))
        for name, array in arrays().items()
    }
    found["rans"] = Rans().encode(symbols())
    for name, data in found.items():
        path = HERE / f"v3_{name}.bin"
        if not path.exists():
            path.write_bytes(data)


if __name__ == "__main__":
    main()
