"""Wrote the golden file of format version 6. Kept to show what is in it.

It is never written again: `python make_v6.py` only adds a missing one.
"""

import pathlib
import sys

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from keras_dlopt.storage.contents import SavedState, write_contents
from reference import random_code

PATH = pathlib.Path(__file__).parent / "v6.dlopt"


def coded(shape: tuple[int, ...], length: int, bits: int) -> np.ndarray:
    """Candidates of a number a block."""
    count = int(np.prod(shape))
    codes = np.zeros(count)
    for place in range(count):
        number = (place // length * 2654435761 + 12345) % 2**bits
        element = random_code.element(place, count)
        codes[element] = random_code.candidate(number, place)
    return (codes.reshape(shape) / 1024).astype("float32")


def arrays() -> list[np.ndarray]:
    """Many blocks, one block, few elements, and an array that is none."""
    return [
        coded((30, 20), 64, 12),
        coded((3, 3, 2, 5), 90, 7),
        coded((10,), 4, 9),
        (np.arange(40) % 7 - 3).astype("float32"),
    ]


if __name__ == "__main__" and not PATH.exists():
    state = SavedState(["a", "b", "c", "d"], arrays(), 4, 4)
    PATH.write_bytes(write_contents({"golden": 6}, state, {}.get))
