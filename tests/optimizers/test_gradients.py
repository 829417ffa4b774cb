"""What is done to gradients before a rule sees them, against NumPy in float64."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from keras_dlopt.optimizers._gradients import (
    all_finite,
    centralize,
    clip_adaptively,
    clip_each,
    clip_together,
    clip_values,
)

SHAPES = st.lists(
    st.sampled_from([(3,), (4, 2), (2, 3, 4), (3, 1, 2, 5)]), min_size=1, max_size=3
)
SEEDS, LIMITS = st.integers(0, 999), st.sampled_from([1e-3, 0.5, 2.0, 100.0])


def drawn(shapes, seed):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=s).astype("float32") for s in shapes]


@settings(max_examples=40, deadline=None)
@given(SHAPES, SEEDS, LIMITS)
def test_norms_and_values_are_limited_as_the_formulas_say(shapes, seed, limit):
    grads = drawn(shapes, seed)
    wide = [g.astype("float64") for g in grads]
    joint = np.sqrt(sum((g**2).sum() for g in wide))
    each, together, values = (
        clip([ops.convert_to_tensor(g) for g in grads], limit)
        for clip in (clip_each, clip_together, clip_values)
    )
    for i, g in enumerate(wide):
        own = np.sqrt((g**2).sum())
        np.testing.assert_allclose(each[i], g * min(1, limit / own), rtol=1e-5)
        np.testing.assert_allclose(together[i], g * min(1, limit / joint), rtol=1e-5)
        np.testing.assert_allclose(values[i], np.clip(g, -limit, limit), rtol=1e-6)


@settings(max_examples=40, deadline=None)
@given(SHAPES, SEEDS, LIMITS)
def test_units_are_limited_and_centralized_one_by_one(shapes, seed, ratio):
    for g, w in zip(drawn(shapes, seed), drawn(shapes, seed + 1), strict=True):
        axes = tuple(range(g.ndim - 1))
        if axes:
            sizes = [
                np.sqrt((x.astype("float64") ** 2).sum(axes, keepdims=True))
                for x in (g, w)
            ]
            expected = g - g.mean(axes, keepdims=True)
        else:
            sizes, expected = [np.abs(g), np.abs(w)], g
        got = centralize(ops.convert_to_tensor(g))
        np.testing.assert_allclose(got, expected, atol=1e-6)
        factor = np.minimum(1, ratio * np.maximum(sizes[1], 1e-3) / sizes[0])
        got = clip_adaptively(ops.convert_to_tensor(g), ops.convert_to_tensor(w), ratio)
        np.testing.assert_allclose(got, g * factor, rtol=1e-5)


def test_of_two_gradients_the_longer_one_is_cut():
    grads = [ops.convert_to_tensor([3.0, 4.0]), ops.convert_to_tensor([0.3, 0.4])]
    each, together = clip_each(grads, 2.5), clip_together(grads, 2.5)
    np.testing.assert_allclose(each[0], [1.5, 2.0], rtol=1e-6)
    np.testing.assert_allclose(each[1], [0.3, 0.4], rtol=1e-6)
    scale = 2.5 / np.sqrt(25.25)
    np.testing.assert_allclose(together[0], [3 * scale, 4 * scale], rtol=1e-6)


def test_a_gradient_of_zeros_stays_one():
    zero = [ops.zeros((2, 2))]
    for got in (clip_each(zero, 0.5), clip_together(zero, 0.5)):
        np.testing.assert_array_equal(got[0], np.zeros((2, 2)))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_bad_entry_makes_all_unusable(bad):
    grads = [ops.ones((2,)), ops.convert_to_tensor(np.array([1.0, bad], "float32"))]
    assert not all_finite(grads)
    assert all_finite(grads[:1])
    for clipped in clip_together(grads, 1.0):
        assert np.isnan(np.asarray(clipped)).all()
