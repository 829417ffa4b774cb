"""Writes `keras2_saved_model/`: a SavedModel of Keras 2 and what it computes.

    TF_USE_LEGACY_KERAS=1 python tests/golden/make_keras2_saved_model.py

Made with tf_keras 2.21 and TensorFlow 2.21.
"""

import pathlib

import numpy as np
import tf_keras
from tf_keras import layers

HERE = pathlib.Path(__file__).parent


def main():
    """Writes the folder."""
    tf_keras.utils.set_random_seed(0)
    inner = tf_keras.Sequential(
        [tf_keras.Input((6, 6, 4)), layers.Conv2D(3, 3), layers.BatchNormalization()],
        name="inner",
    )
    x = tf_keras.Input((6, 6, 2), name="image")
    y = layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2)(x)
    y = layers.GlobalAveragePooling2D()(inner(layers.ReLU()(y)))
    model = tf_keras.Model(x, layers.Dense(2, activation="softmax", name="end")(y))
    rng = np.random.default_rng(0)
    for weight in model.weights:
        weight.assign(rng.uniform(0.1, 1.0, weight.shape))
    folder = HERE / "keras2_saved_model"
    model.save(folder, save_format="tf")
    given = rng.normal(size=(4, 6, 6, 2)).astype("float32")
    np.savez(HERE / "keras2_saved_model.npz", x=given, y=model(given).numpy())


if __name__ == "__main__":
    main()
