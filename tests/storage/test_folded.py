"""Folded before they are saved: the same outputs, the same codes, fewer bytes."""

import keras
import numpy as np
import pytest
from keras import layers

from keras_dlopt.codecs import Grid, find_grid
from keras_dlopt.errors import ConfigError, ModelError
from keras_dlopt.storage import load_compressed, save_compressed


def quantized(axis=None):
    """Kernels on grids of 8 bits, and statistics as training leaves them."""
    x = inputs = keras.Input((12, 12, 3))
    for filters in (8, 16):
        x = layers.Conv2D(filters, 3, use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
        x = layers.DepthwiseConv2D(3, padding="same")(x)
        x = layers.ReLU()(layers.BatchNormalization(scale=False)(x))
    x = layers.Dense(20)(layers.GlobalAveragePooling2D()(x))
    model = keras.Model(inputs, layers.Dense(4)(layers.BatchNormalization()(x)))
    rng = np.random.default_rng(0)
    for v in model.weights:
        if v.name == "kernel":
            codes = np.rint(rng.normal(0, 20, v.shape)).clip(-127, 127).astype(int)
            scale = np.float32(
                rng.uniform(0.001, 0.002, () if axis is None else axis(v))
            )
            v.assign((codes * scale.astype("float64")).astype("float32"))
        elif v.name in ("gamma", "moving_variance"):
            v.assign(
                rng.uniform(0.5, 1.5, v.shape)
                * rng.choice([1, -1][: 1 + ("g" in v.name[:1])], v.shape)
            )
        else:
            v.assign(rng.normal(0, 0.1, v.shape))
    return model


@pytest.mark.parametrize(
    "axis", [None, lambda v: (1,) * (len(v.shape) - 1) + v.shape[-1:]]
)
def test_outputs_codes_and_bytes(axis, tmp_path):
    model = quantized(axis)
    x = np.random.default_rng(1).normal(size=(5, 12, 12, 3)).astype("float32")
    before = [v.numpy().copy() for v in model.weights]
    plain = save_compressed(model, tmp_path / "plain.dlopt")
    small = save_compressed(model, tmp_path / "small.dlopt", fold=True)
    loaded = load_compressed(tmp_path / "small.dlopt")
    assert not any(isinstance(x, layers.BatchNormalization) for x in loaded.layers)
    one, other = np.asarray(model(x), "float64"), np.asarray(loaded(x), "float64")
    assert np.abs(one - other).max() < 1e-5 * np.abs(one).max()
    for a, b in zip(before, model.weights, strict=True):
        assert np.array_equal(a, b)
    kernels = {v.path: v.numpy() for v in model.weights if v.name == "kernel"}
    for v in loaded.weights:
        if v.name == "kernel":
            old, new = find_grid(kernels[v.path]), find_grid(v.numpy())
            # A channel whose codes have a divisor is found without it.
            axes = tuple(range(max(v.numpy().ndim - 2, 1)))
            one, other = np.abs(old.codes), np.abs(new.codes)
            most = (codes.max(axis=axes, keepdims=True) for codes in (other, one))
            assert np.array_equal(one * next(most), other * next(most))
    assert small.file_bytes < plain.file_bytes


def test_float_kernels_are_folded_as_they_are(tmp_path):
    model = keras.Sequential(
        [keras.Input((6,)), layers.Dense(5), layers.BatchNormalization()]
    )
    rng = np.random.default_rng(0)
    for v in model.weights:
        v.assign(rng.uniform(0.5, 1.5, v.shape))
    save_compressed(model, tmp_path / "m.dlopt", fold=True)
    loaded = load_compressed(tmp_path / "m.dlopt")
    w, b, gamma, beta, mean, variance = (v.numpy() for v in model.weights)
    factor = gamma / np.sqrt(variance + 1e-3)
    kernel, bias = (v.numpy() for v in loaded.weights)
    np.testing.assert_allclose(kernel, w * factor, rtol=1e-6)
    np.testing.assert_allclose(bias, beta + (b - mean) * factor, rtol=1e-5, atol=1e-6)


class Own(keras.Model):
    def __init__(self):
        super().__init__(name="own")
        self.dense, self.norm = layers.Dense(3), layers.BatchNormalization()

    def call(self, x):
        return self.norm(self.dense(x))


def test_refusals(tmp_path):
    path = tmp_path / "m.dlopt"
    first = keras.Sequential(
        [keras.Input((6,)), layers.BatchNormalization(), layers.Dense(2)], name="first"
    )
    with pytest.raises(ModelError, match="'first' has 1 Batch.* Save it with fold=F"):
        save_compressed(first, path, fold=True)
    own = Own()
    own(np.zeros((1, 4), "float32"))
    with pytest.raises(
        ModelError, match="takes built Sequential and Functional models. Received: Own"
    ):
        save_compressed(own, path, fold=True)
    hint = {0: Grid(np.zeros((6, 2), int), np.float32(1))}
    with pytest.raises(ConfigError, match=r"hints for \[0\]. Pass one of the two"):
        save_compressed(first, path, hints=hint, fold=True)
    assert not path.exists()
