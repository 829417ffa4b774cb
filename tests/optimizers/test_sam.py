"""SAM and ASAM: the second gradient is taken where the paper says."""

import keras
import numpy as np
import pytest

from keras_dlopt import optimizers
from keras_dlopt.errors import ModelError


def _data(seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(16, 3)).astype("float32"), rng.normal(size=(16, 1)).astype(
        "float32"
    )


def _gradient(w, x, y):
    return 2 * x.T @ (x @ w - y) / len(x)


@pytest.mark.parametrize("adaptive", [False, True])
def test_step_uses_the_gradient_at_the_perturbed_weights(adaptive):
    x, y = _data()
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1, use_bias=False)])
    w = model.get_weights()[0].astype("float64")
    cls = optimizers.ASAM if adaptive else optimizers.SAM
    sam = cls(model, radius=0.3)
    sam.compile(optimizer=optimizers.SGD(0.1), loss="mse")
    history = sam.fit(x, y, batch_size=16, epochs=3, verbose=0, shuffle=False)
    losses = []
    for _ in range(3):
        losses.append(np.mean((x @ w - y) ** 2))
        g = _gradient(w, x, y)
        t = np.abs(w) if adaptive else np.ones_like(w)
        move = 0.3 * t**2 * g / np.linalg.norm(t * g)
        w = w - 0.1 * _gradient(w + move, x, y)
    np.testing.assert_allclose(model.get_weights()[0], w, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(history.history["loss"], losses, rtol=1e-5)


def test_normalization_statistics_come_from_the_first_pass():
    x, y = _data()
    layers = [keras.Input((3,)), keras.layers.BatchNormalization(momentum=0.5)]
    model = keras.Sequential([*layers, keras.layers.Dense(1)])
    sam = optimizers.SAM(model)
    sam.compile(optimizer="sgd", loss="mse", metrics=["mae"])
    sam.fit(x, y, batch_size=16, verbose=0)
    mean = model.layers[0].moving_mean.numpy()
    np.testing.assert_allclose(mean, 0.5 * x.mean(axis=0), rtol=1e-4, atol=1e-5)


def test_a_weight_without_gradient_is_named():
    class Idle(keras.Model):
        def __init__(self):
            super().__init__()
            self.used, self.idle = keras.layers.Dense(1), keras.layers.Dense(1)

        def build(self, input_shape):
            self.used.build(input_shape)
            self.idle.build(input_shape)
            self.built = True

        def call(self, x):
            return self.used(x)

    sam = optimizers.SAM(Idle())
    sam.compile(optimizer="sgd", loss="mse", run_eagerly=True)
    x, y = _data()
    with pytest.raises(ModelError, match="does not depend on these weights"):
        sam.fit(x, y, verbose=0)


def test_other_backends_are_refused(monkeypatch):
    from keras_dlopt import runtime

    sam = optimizers.SAM(keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)]))
    monkeypatch.setattr(runtime, "on_tensorflow", lambda: False)
    with pytest.raises(ModelError, match="TensorFlow backend only"):
        sam.train_step(_data())


def test_several_replicas_are_refused(monkeypatch):
    from keras_dlopt import runtime

    sam = optimizers.SAM(keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)]))
    monkeypatch.setattr(runtime, "replica_count", lambda: 2)
    with pytest.raises(ModelError, match="the strategy in force has 2 replicas"):
        sam.train_step(_data())
