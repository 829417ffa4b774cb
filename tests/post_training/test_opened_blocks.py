"""Blocks written as one layer are opened where int8 has more for what is inside."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_dlopt as dlopt
from keras_dlopt import post_training


def network(block, shape):
    keras.utils.set_random_seed(0)
    x = keras.Input(shape)
    y = block(layers.Dense(shape[-1], name="first")(x))
    model = keras.Model(x, layers.Dense(3, name="last")(y))
    given = np.random.default_rng(0).normal(size=(64, *shape)).astype("float32")
    return model, given


BLOCKS = {
    "ConvNeXt": (lambda: dlopt.layers.ConvNeXtBlock(8, kernel_size=3), (6, 6, 8)),
    "transformer": (lambda: dlopt.layers.TransformerBlock(8, heads=2), (6, 8)),
}


@pytest.mark.parametrize("name", sorted(BLOCKS))
def test_normalization_and_attention_inside_run_in_int8(name, tmp_path):
    make, shape = BLOCKS[name]
    model, x = network(make(), shape)
    small = post_training.quantize(model, x)
    report = dlopt.export.litert(small, tmp_path / "m.tflite", data=x)
    assert report.islands == ()
    assert report.agreement.largest_lsb <= 3
    off = small.predict(x, verbose=0) - model.predict(x, verbose=0)
    assert np.sqrt(np.mean(off**2)) < 0.1 * np.std(model.predict(x, verbose=0))


def test_a_block_without_gain_stays():
    model, x = network(dlopt.layers.BasicBlock(8), (6, 6, 8))
    small = post_training.quantize(model, x)
    kinds = [type(layer).__name__ for layer in small.model.layers]
    assert "BasicBlock" in kinds


class Odd(layers.Layer):
    """Does something else in training, and so cannot be opened."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.norm = layers.LayerNormalization()

    def build(self, input_shape=None):
        self.norm.build(input_shape)

    def call(self, inputs, training=False):
        return inputs if training else self.norm(inputs)


@pytest.mark.filterwarnings("ignore:'functional")
def test_a_block_that_cannot_be_opened_stays_in_float(tmp_path):
    model, x = network(Odd(), (8,))
    small = post_training.quantize(model, x)
    report = dlopt.export.litert(small, tmp_path / "m.tflite", data=x)
    assert any("RSQRT from 'odd" in island for island in report.islands)
