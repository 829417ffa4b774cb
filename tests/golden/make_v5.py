"""Wrote the golden file of format version 5. Kept to show what is in it.

It is never written again: `python make_v5.py` only adds a missing one.
"""

import pathlib

import numpy as np

from keras_dlopt.storage.contents import SavedState, write_contents

PATH = pathlib.Path(__file__).parent / "v5.dlopt"


def base() -> list[np.ndarray]:
    """Floats of two sizes and integers."""
    n = np.arange(600)
    floats = (n * 7919 % 1000 - 500) / 256
    return [
        floats.astype("float32").reshape(30, 20),
        np.sqrt(n).astype("float32").reshape(20, 30),
        (n * 40503 % 65536).astype("uint16"),
        floats.astype("float16"),
    ]


def own() -> list[np.ndarray]:
    """One as it is, one in steps of the last place, one in other bits, one new."""
    n, (same, near, bits, _) = np.arange(600), base()
    steps = (n * 31 % 13 - 6).astype("int32").reshape(20, 30)
    return [
        same,
        (near.view("int32") + steps).view("float32"),
        bits ^ np.uint16(0x8001) * (n % 5 == 0),
        np.arange(5, dtype="float64") ** 0.5,
    ]


if __name__ == "__main__" and not PATH.exists():
    state = SavedState(["a", "b", "c", "e"], own(), 4, 4)
    known = ["a", "b", "c", "d"], base()
    PATH.write_bytes(write_contents({"golden": 5}, state, {}.get, known))
