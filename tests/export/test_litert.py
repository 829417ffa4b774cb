"""Files are written, read back, and equal what was trained."""

import os

import keras
import pytest
from keras import layers
from sklearn.datasets import load_digits

import keras_dlopt as dlopt
from keras_dlopt import export
from keras_dlopt.transforms import int8_recipe


@pytest.fixture(scope="module")
def digits():
    data = load_digits()
    return (data.images[..., None] / 16).astype("float32"), data.target


def train(model, digits, *, recipe=None, logits=True, epochs=2):
    x, y = digits
    small = dlopt.transform(model, recipe or int8_recipe(model))
    small.compile(
        keras.optimizers.Adam(3e-3),
        keras.losses.SparseCategoricalCrossentropy(from_logits=logits),
    )
    small.fit(x, y, epochs=epochs, batch_size=64, verbose=0)
    return small


def residual_net():
    def conv(x, name, relu=True):
        x = layers.Conv2D(8, 3, padding="same", use_bias=False, name=name)(x)
        x = layers.BatchNormalization(momentum=0.9, name=f"{name}_bn")(x)
        return layers.ReLU(name=f"{name}_relu")(x) if relu else x

    inputs = keras.Input((8, 8, 1), name="image")
    x = conv(inputs, "stem")
    y = conv(conv(x, "a"), "b", relu=False)
    x = layers.ReLU(name="relu")(layers.Add(name="add")([x, y]))
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(inputs, layers.Dense(10, name="logits")(x), name="residual")


def same(agreement):
    assert agreement.top1_clear == 1.0
    assert agreement.top1 > 0.99
    # Each rounds once more than the other at most twice in a row: add and output.
    assert agreement.largest_lsb <= 2


def test_residual_network_is_exact_with_float_and_int8_ends(digits, tmp_path, capfd):
    small = train(residual_net(), digits)
    x, _ = digits
    path = tmp_path / "model.tflite"
    report = export.litert(small, path, data=x[:400])
    assert report.quantized
    assert report.verified
    assert report.codes == 8 * 9 + 2 * 8 * 8 * 9 + 80
    assert report.ranges == 7  # input, 2 ReLUs, branch, sum, pool, logits
    assert report.size == path.stat().st_size
    same(report.agreement)

    whole = export.litert(small, path, io="int8", data=x[:400])
    same(whole.agreement)
    assert whole.size < report.size
    assert os.listdir(tmp_path) == ["model.tflite"]
    assert capfd.readouterr() == ("", "")
