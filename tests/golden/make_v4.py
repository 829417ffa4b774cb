"""Wrote the golden file of format version 4. Kept to show what is in it.

It is never written again: `python make_v4.py` only adds a missing one.
"""

import pathlib

import keras
import numpy as np
from keras import layers

from keras_dlopt.storage import save_compressed

PATH = pathlib.Path(__file__).parent / "v4.dlopt"


def model() -> keras.Model:
    """With a branch, a seed, settings that are no defaults; weights from integers."""
    inputs = keras.Input((8, 8, 1), name="image")
    x = layers.Conv2D(4, 3, padding="same", use_bias=False, name="conv")(inputs)
    y = layers.BatchNormalization(name="norm", momentum=0.9)(x)
    x = layers.Add(name="sum")([x, y])
    x = layers.Flatten(name="flat")(layers.Activation("relu", name="relu")(x))
    x = layers.Dropout(0.25, seed=7, name="drop")(x)
    net = keras.Model(inputs, layers.Dense(3, name="out")(x), name="golden")
    for n, v in enumerate(net.weights):
        rng = np.random.RandomState(n)
        values = rng.randint(-4, 5, v.shape) * (rng.randint(0, 3, v.shape) == 0)
        v.assign((np.abs(values) if v.name == "moving_variance" else values) / 8)
    return net


if __name__ == "__main__" and not PATH.exists():
    save_compressed(model(), PATH)
