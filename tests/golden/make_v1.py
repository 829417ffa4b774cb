"""Wrote the golden files of format version 1. Kept to show what is in them.

They are never written again: `python make_v1.py` only adds missing ones.
"""

import pathlib

import keras
import ml_dtypes
import numpy as np
from keras import layers

from keras_dlopt.codecs import Gaps, Grid, Huffman, Tensor
from keras_dlopt.storage import save_compressed

HERE = pathlib.Path(__file__).parent


# RandomState's streams are frozen by NumPy's compatibility policy.
SCALE = (1 + np.arange(40)).astype(np.float32) / 64


def codes() -> dict[str, np.ndarray]:
    """Integer codes of the two grids."""
    rng = np.random.RandomState(1)
    dense = rng.randint(-7, 8, (30, 40))
    sparse = rng.randint(-127, 128, (30, 40)) * (rng.randint(0, 10, (30, 40)) == 0)
    return {"grid": dense, "sparse_grid": sparse}


def arrays() -> dict[str, np.ndarray]:
    """One array for every tensor method, and several dtypes."""
    rng = np.random.RandomState(0)
    mask = rng.randint(0, 12, (30, 40)) == 0
    noise = rng.randint(0, 2**31, (30, 40)).astype(np.int64)
    steps = np.arange(1200).reshape(30, 40)
    found = {
        "raw": (noise[0, :6] % 251).astype(np.uint8),
        "constant": np.full((3, 4), 2.5, np.float32),
        "empty": np.zeros((0, 3), np.float32),
        "scalar": np.float64(-0.0),
        "planes": (steps // 100).astype(np.float32),
        "codebook": (noise % 7).astype(np.float32) / 4,
        "packed_codebook": rng.randint(0, 300, (60, 80)).astype(np.uint32) * 3,
        "sparse_raw": (noise % 251 * mask)[:1].astype(np.uint8),
        "sparse_planes": (steps * mask + 2**20 * mask).astype(np.float32),
        "sparse_constant": mask,
        "sparse_codebook": ((noise % 5 + 1) * mask).astype(np.float16),
        "bfloat16": ((noise % 7) * mask).astype(ml_dtypes.bfloat16),
        "special": np.array([0, -0.0, np.inf, -np.inf, np.nan, 1e-45], np.float32),
        "integers": noise,
    }
    for name, grid in codes().items():
        found[name] = (grid * SCALE).astype(np.float32)
    return found


def model() -> keras.Model:
    """Functional, with an operation, BatchNorm and Dropout; weights from integers."""
    inputs = keras.Input((8, 8, 1), name="image")
    x = layers.Conv2D(4, 3, activation="relu", name="conv")(inputs)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.Dropout(0.5, seed=7, name="drop")(x)
    x = keras.ops.relu(x) * 2
    x = layers.Flatten(name="flat")(x)
    net = keras.Model(inputs, layers.Dense(3, name="out")(x), name="golden")
    for n, v in enumerate(net.weights):
        rng = np.random.RandomState(n)
        values = rng.randint(-4, 5, v.shape) * (rng.randint(0, 3, v.shape) == 0)
        v.assign((np.abs(values) if n in (2, 5) else values) / 8)
    return net


def main() -> None:
    """Writes what is missing."""
    found = {f"tensor_{n}": Tensor().encode(a) for n, a in arrays().items()}
    for name, grid in codes().items():
        hint = Grid(grid, SCALE)
        found[f"tensor_{name}"] = Tensor().encode(arrays()[name], hint=hint)
    found["huffman"] = Huffman().encode(np.arange(600) % 17 * (np.arange(600) % 3))
    found["gaps"] = Gaps(limit=16).encode(np.arange(40) ** 2)
    for name, data in found.items():
        path = HERE / f"v1_{name}.bin"
        if not path.exists():
            path.write_bytes(data)
    if not (HERE / "v1_model.dlopt").exists():
        save_compressed(model(), HERE / "v1_model.dlopt")


if __name__ == "__main__":
    main()
