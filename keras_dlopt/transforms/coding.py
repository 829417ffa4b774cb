"""What the codecs can tell of a model's weights."""

import keras

from keras_dlopt.codecs.hints import Grid
from keras_dlopt.codecs.lattice import find_grid
from keras_dlopt.runtime.values import to_numpy


def coding_hints(model: keras.Model) -> dict[int, Grid]:
    """The grids that weights of a model lie on.

    They are found from the weights themselves, to the bit, so a model that was saved,
    copied or made elsewhere has them too.

    Returns:
        Position in `model.weights` -> the grid.
    """
    found = ((i, find_grid(to_numpy(v))) for i, v in enumerate(model.weights))
    return {i: grid for i, grid in found if grid is not None}
