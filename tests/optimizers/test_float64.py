"""Weights in float64: state and arithmetic follow, nothing mixes widths."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from catalogue import cases_of
from keras_dlopt import optimizers

CASES = [case for case in cases_of("optimizers") if case.kind == "optimizer"]


@pytest.fixture
def float64():
    before = keras.config.floatx()
    keras.config.set_floatx("float64")
    yield
    keras.config.set_floatx(before)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_float64_weights_take_the_step_of_float32_ones(case, float64):
    rng = np.random.default_rng(0)
    starts = [rng.normal(size=(70, 80)), rng.normal(size=3)]
    grads = [rng.normal(size=start.shape) for start in starts]
    moved = {}
    for dtype in ("float32", "float64"):
        keras.utils.set_random_seed(0)
        keras.config.set_floatx(dtype)
        weights = [
            keras.Variable(w, dtype=dtype, name=f"w{i}") for i, w in enumerate(starts)
        ]
        optimizer = case.make()
        for _ in range(4):
            optimizer.apply([tf.constant(g, dtype) for g in grads], weights)
        moved[dtype] = [w.numpy() - s for w, s in zip(weights, starts, strict=True)]
    for narrow, wide in zip(moved["float32"], moved["float64"], strict=True):
        largest = np.abs(wide).max()
        assert largest > 0
        np.testing.assert_allclose(narrow, wide, rtol=1e-3, atol=5e-3 * largest)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("ema", [False, True])
def test_constants_are_not_rounded_to_float32(sparse, ema, float64):
    """0.05 and 0.9 in float32 are off by 2e-8 of themselves."""
    rate, momentum, keep, rows = 0.05, 0.9, 0.99, [1, 3, 5]
    weight = keras.Variable(np.linspace(-1, 1, 12).reshape(6, 2))
    w, m = weight.numpy(), np.zeros((6, 2))
    average = w
    sgd = optimizers.SGD(rate, momentum=momentum, use_ema=ema, ema_momentum=keep)
    rng = np.random.default_rng(0)
    for step in range(3):
        g = np.zeros((6, 2))
        g[rows] = rng.normal(size=(3, 2))
        given = tf.IndexedSlices(tf.constant(g[rows]), tf.constant(rows), (6, 2))
        sgd.apply([given if sparse else tf.constant(g)], [weight])
        m = momentum * m + rate * g
        w = w - m
        average = keep * average + (1 - keep) * w if step else w
    np.testing.assert_allclose(weight, w, rtol=0, atol=1e-15)
    if ema:
        np.testing.assert_allclose(sgd.averages()[0], average, rtol=0, atol=1e-15)
