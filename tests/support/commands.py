"""The commands, run in this process on files of the user's own."""

import keras
import numpy as np
from typer.testing import CliRunner

from keras_dlopt.cli.app import app


def run(*arguments, code=0):
    """What a command says; it must end with this code."""
    found = CliRunner().invoke(app, [str(one) for one in arguments])
    assert found.exit_code == code, found.output
    return found.output


def own_files(place, digits, parts):
    """Writes a trained model and arrays of these parts into a folder."""
    keras.utils.set_random_seed(0)
    hidden = keras.layers.Dense(32, "relu", name="hidden")
    layers = [keras.layers.Flatten(), hidden, keras.layers.Dense(10, "softmax")]
    model = keras.Sequential([keras.Input((8, 8, 1)), *layers])
    model.compile(keras.optimizers.Adam(5e-3), "sparse_categorical_crossentropy")
    model.fit(*digits.train, epochs=10, verbose=0)
    model.save(place / "model.keras")
    arrays = {
        f"{x}_{part}": getattr(digits, f"{x}_{part}") for part in parts for x in "xy"
    }
    np.savez(place / "own.npz", **arrays)
    return place
