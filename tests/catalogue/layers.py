import keras

from catalogue import Case
from keras_dlopt import layers

IMAGE = (8, 8, 4)


def _dense(units):
    return keras.layers.Dense(units, activation="tanh")


CASES = [
    Case("Residual", "layer", lambda: layers.Residual([_dense(16), _dense(8)])),
    Case(
        "Residual-projection-loss",
        "layer",
        lambda: layers.Residual(_dense(6), shortcut_loss=0.1),
    ),
    Case(
        "Residual-pad-cosine-rezero",
        "layer",
        lambda: layers.Residual(
            keras.layers.Conv2D(6, 3, strides=2, padding="same"),
            shortcut="pad",
            shortcut_loss=0.1,
            distance="cosine",
            scale="rezero",
        ),
        input_shape=IMAGE,
    ),
    Case(
        "Residual-survival",
        "layer",
        lambda: layers.Residual(_dense(8), survival=0.5, scale="layerscale", seed=1),
        random=True,
    ),
    Case(
        "StochasticDepth",
        "layer",
        lambda: layers.StochasticDepth(0.5, seed=1),
        random=True,
    ),
    Case("LayerScale", "layer", lambda: layers.LayerScale(0.1)),
    Case("ReZero", "layer", layers.ReZero),
]
