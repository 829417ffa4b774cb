"""Weights in float64: state and arithmetic follow, nothing mixes widths."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from catalogue import cases_of

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
