"""Grid, gradient, start and observer combined by hand, against float64 twins."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from keras_dlopt import transforms as t
from keras_dlopt.codecs.grid import holds
from keras_dlopt.codecs.hints import Codebook
from keras_dlopt.errors import ConfigError
from keras_dlopt.graph.targets import Target
from keras_dlopt.transforms import Context
from keras_dlopt.transforms import quantize as q
from keras_dlopt.transforms.quantize import grids
from reference import quantize as twin

DENSE = Target("d/kernel", layer=keras.layers.Dense(1))
HERE = Target("r/output", kind="activation")


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def states(transform, weight=None, target=DENSE):
    return {k: v.value for k, v in transform.init(target, weight).items()}


def exact(hint, value):
    if isinstance(hint, Codebook):
        return np.array_equal(hint.values[hint.indices], value)
    return holds(hint, value)


def gradients(transform, x, upstream, state, target=DENSE, **context):
    """Value, gradient of x, gradients of the state by name."""
    x, state = tf.constant(x), {k: tf.constant(v, "float32") for k, v in state.items()}
    with tf.GradientTape() as tape:
        tape.watch([x, state])
        y = transform.apply(x, state, Context(target, **context))
        loss = tf.reduce_sum(y * upstream)
    d_x, d_state = tape.gradient(loss, [x, state])
    return np.asarray(y), np.asarray(d_x), d_state


def everything(transform, weight):
    """State, value, gradient and what is kept."""
    state = states(transform, weight)
    y, d_x, d_state = gradients(transform, weight, 1 + weight**2, state)
    value, hint = transform.finalize(DENSE, weight, state)
    given = {k: v for k, v in d_state.items() if v is not None}
    return [state, y, d_x, given, value, dataclasses.asdict(hint)]


@pytest.mark.parametrize(
    ("named", "combined"),
    [
        (t.FakeQuant(bits=4), t.Quantizer(q.IntegerGrid(4))),
        (
            t.FakeQuant(bits=3, symmetric=False, observer="mse", clip_gradient=0.5),
            t.Quantizer(
                q.IntegerGrid(3, symmetric=False),
                gradient=q.StraightThrough(clip_gradient=0.5),
                observer="mse",
            ),
        ),
        (
            t.LSQ(bits=3),
            t.Quantizer(
                q.IntegerGrid(3, narrow=False),
                gradient=q.LearnedStep(),
                per_channel=False,
            ),
        ),
        (t.Binary(), t.Quantizer(q.BinaryGrid(), gradient=q.ThroughScale())),
        (t.Ternary(per_channel=True), t.Quantizer(q.TernaryGrid())),
        (t.PowerOfTwo(), t.Quantizer(q.PowerOfTwoGrid(), per_channel=False)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_names_are_combinations(named, combined):
    want, got = (everything(each, normal(12, 3)) for each in (named, combined))
    tf.nest.map_structure(np.testing.assert_array_equal, got, want)


def test_an_offset_may_be_learned_for_weights():
    weight, upstream = normal(20, 3) + 1, normal(20, 3, seed=1)
    transform = t.Quantizer(
        q.IntegerGrid(3, symmetric=False), gradient=q.LearnedStep(offset=True)
    )
    state = states(transform, weight)
    assert list(state) == ["step", "offset"]
    low, high = (f(weight, axis=0, keepdims=True, initial=0) for f in (np.min, np.max))
    np.testing.assert_allclose(state["step"], (high - low) / 7, rtol=1e-6)
    np.testing.assert_array_equal(state["offset"], low)
    # Away from the start, where the ends lie on the border of what is clipped.
    state["step"] *= np.float32(0.9)
    y, d_w, d = gradients(transform, weight, upstream, state)
    value, hint = transform.finalize(DENSE, weight, state)
    np.testing.assert_allclose(value, y, rtol=1e-5, atol=1e-6)
    assert exact(hint, value)
    g = 1 / (20 * 7) ** 0.5
    for j in range(3):
        step, offset = (float(state[name][0, j]) for name in ("step", "offset"))
        # The lowest weight is the offset itself, in float32 and in float64.
        want = twin.lsq(weight[:, j], upstream[:, j], step, offset, 0, 7, g)
        found = y[:, j], d_w[:, j], d["step"][0, j], d["offset"][0, j]
        for a, b in zip(found, want, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("narrow", [True, False])
def test_weights_may_be_clipped_at_a_learned_level(narrow):
    weight, upstream = normal(20, 2), normal(20, 2, seed=1)
    transform = t.Quantizer(
        q.IntegerGrid(3, narrow=narrow),
        gradient=q.LearnedLevel(decay=0.5),
        start=q.GivenRange(-1, 1.25),
    )
    losses = []
    state = states(transform, weight)
    np.testing.assert_array_equal(state["level"], [[1.25, 1.25]])
    y, d_w, d = gradients(
        transform, weight, upstream, state, training=True, add_loss=losses.append
    )
    assert [float(v) for v in losses] == [0.5 * 2 * 1.25**2]
    low, high = transform.codes
    for j in range(2):
        w = weight[:, j].astype("float64")
        want = twin.clipped(w, upstream[:, j], 1.25, low, high)
        for a, b in zip((y[:, j], d_w[:, j], d["level"][0, j]), want, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    value, hint = transform.finalize(DENSE, weight, state)
    np.testing.assert_allclose(value, y, atol=1e-6)
    assert exact(hint, value)


def test_ternary_weights_may_have_the_gradient_of_their_scale():
    weight, upstream = normal(30, 2), normal(30, 2, seed=1)
    transform = t.Quantizer(q.TernaryGrid(), gradient=q.ThroughScale())
    y, d_w, _ = gradients(transform, weight, upstream, {})
    for j in range(2):
        np.testing.assert_allclose(y[:, j], twin.ternary(weight[:, j]), rtol=1e-5)
        want = twin.through_scale(weight[:, j], upstream[:, j], y[:, j])
        np.testing.assert_allclose(d_w[:, j], want, rtol=1e-4, atol=1e-5)


def test_trained_levels_may_be_one_pair_a_channel():
    weight, upstream = normal(30, 2), normal(30, 2, seed=1)
    transform = t.Quantizer(q.TernaryGrid(0.2, of="max"), gradient=q.LearnedLevels())
    state = states(transform, weight)
    y, d_w, d = gradients(transform, weight, upstream, state)
    for j in range(2):
        p, n = (float(state[k][0, j]) for k in ("positive", "negative"))
        w = weight[:, j]
        assert p == pytest.approx(w[w > 0.2 * np.abs(w).max()].mean())
        want = twin.trained_ternary(w, upstream[:, j], p, n, 0.2)
        found = y[:, j], d_w[:, j], d["positive"][0, j], d["negative"][0, j]
        for a, b in zip(found, want, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5)
    value, hint = transform.finalize(DENSE, weight, state)
    np.testing.assert_array_equal(value, y)
    assert isinstance(hint, Codebook)
    assert exact(hint, value)


def test_a_learned_step_may_start_at_the_least_error():
    weight = np.append(normal(60), np.float32(9))[:, None]
    transform = t.Quantizer(
        q.IntegerGrid(3),
        gradient=q.LearnedStep(),
        start=q.FromRange(),
        observer=q.MSE(50),
    )
    share = twin.best_share(weight.ravel().tolist(), 3, q.MSE(50).shares())
    assert float(states(transform, weight)["step"][0, 0]) == pytest.approx(
        9 * share / 3
    )
    assert share < 0.8


def test_powers_of_two_may_be_placed_a_channel_by_any_observer():
    weight = normal(40, 2) * np.array([1, 100], "float32")
    value, hint = t.Quantizer(q.PowerOfTwoGrid(4)).finalize(DENSE, weight, {})
    for j in range(2):
        np.testing.assert_array_equal(value[:, j], twin.power_of_two(weight[:, j], 4))
    assert exact(hint, value)
    clipped = t.Quantizer(q.PowerOfTwoGrid(4), observer=q.Percentile(60.0))
    state = states(clipped, weight)
    value, _ = clipped.finalize(DENSE, weight, state)
    np.testing.assert_array_equal(clipped.evaluate(DENSE, weight, state), value)
    assert np.abs(value).max() < np.abs(weight).max() / 2


def test_one_bit_may_follow_another_scale():
    weight = np.append(normal(60), np.float32(3))[:, None]
    transform = t.Quantizer(q.BinaryGrid(), observer="mse")
    state = states(transform, weight)
    value, hint = transform.finalize(DENSE, weight, state)
    assert exact(hint, value)
    scale = float(hint.scale.ravel()[0])
    # The best scale of a sign is the mean magnitude; the search is in steps of 3/100.
    assert scale == pytest.approx(np.abs(weight).mean(), abs=0.03)
    np.testing.assert_allclose(transform.evaluate(DENSE, weight, state), value)


@pytest.mark.parametrize("bits", [3, 8])
def test_a_wide_symmetric_grid_keeps_what_training_saw(bits):
    weight = np.array([[-1.0], [0.3], [0.77]], "float32")
    transform = t.FakeQuant(bits=bits, narrow_range=False)
    value, _ = transform.finalize(DENSE, weight, {})
    np.testing.assert_allclose(transform.evaluate(DENSE, weight, {}), value, rtol=1e-6)


def test_activations_may_be_rounded_at_random():
    transform = t.ActivationQuantizer(
        q.IntegerGrid(3),
        gradient=q.StraightThrough(stochastic=True, clip_gradient=0.5),
        start=q.GivenRange(-3, 3, hold=True),
    )
    assert transform.random
    x = np.array([0.1, 0.5, -0.77, 9.0], "float32")
    state = states(transform)
    seed = keras.random.SeedGenerator(1)
    context = Context(HERE, training=True, seed=seed)
    drawn = np.stack([transform.apply(x, state, context) for _ in range(600)])
    # A step is 1: the standard error of the mean is at most 0.5 / sqrt(600).
    np.testing.assert_allclose(drawn.mean(0), np.minimum(x, 3), atol=0.08)
    still, d_x, _ = gradients(transform, x, 1 + x, state, HERE)
    np.testing.assert_array_equal(still, [0, 0, -1, 3])
    np.testing.assert_allclose(d_x, [0.5, 0.5, 0.23, 0], rtol=1e-6)


def test_activations_on_powers_of_two_have_an_averaged_range():
    transform = t.ActivationQuantizer(q.PowerOfTwoGrid(3), momentum=0.5)
    x = np.array([[4.0, -1.0, 0.2, 0.0]], "float32")
    state = {k: tf.constant(v) for k, v in states(transform).items()}
    np.testing.assert_array_equal(transform.apply(x, state, Context(HERE)), x)
    for scale in (1, 3):
        context = Context(HERE, training=True, write=state.__setitem__)
        transform.apply(scale * x, state, context)
    assert [float(state[k]) for k in ("low", "high")] == [-2, 8]
    # From 4/3 of 8 the powers are 8 and 4: halfway and less to 4 is 0.
    got = transform.apply(2 * x, state, Context(HERE))
    np.testing.assert_array_equal(got, twin.power_of_two(2 * x, 3))


def test_levels_of_activations_start_where_batches_end():
    transform = t.ActivationQuantizer(
        q.IntegerGrid(2, symmetric=False),
        gradient=q.LearnedLevel(),
        observer=q.Percentile(75.0),
        begin=2,
    )
    assert list(states(transform)) == ["level", "low", "high", "seen", "on"]
    x = np.linspace(-1, 3, 8, dtype="float32")[None]
    state = {k: tf.constant(v) for k, v in states(transform).items()}
    for scale in (1, 3):
        context = Context(HERE, training=True, write=state.__setitem__)
        got = transform.apply(scale * x, state, context)
        np.testing.assert_array_equal(got, scale * x)
    member = t.Member(HERE, None, {k: v.numpy() for k, v in state.items()})
    assert transform.update([member], 1) == [{}]
    (change,) = transform.update([member], 2)
    assert change["level"] == pytest.approx(2 * np.quantile(x, 0.75))
    assert change["on"] == 1
    assert transform.calibrated(-1, 5, 0.5) == {"level": 5, "on": 1}


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: t.Quantizer(8), "grid must be a QuantizationGrid. Received: 8"),
        (lambda: t.Quantizer(gradient="ste"), "gradient must be a Gradient"),
        (
            lambda: t.Quantizer(gradient=q.LearnedStep(), start=1),
            "start must be a ScaleStart",
        ),
        (
            lambda: t.Quantizer(q.BinaryGrid(), gradient=q.LearnedStep()),
            r"LearnedStep\(.*\) needs a IntegerGrid. Received: BinaryGrid",
        ),
        (
            lambda: t.Quantizer(gradient=q.ThroughScale()),
            "needs a BinaryGrid or TernaryGrid",
        ),
        (
            lambda: t.Quantizer(
                q.MinMaxGrid(), gradient=q.StraightThrough(stochastic=True)
            ),
            "needs a IntegerGrid. Received: MinMaxGrid",
        ),
        (
            lambda: t.Quantizer(gradient=q.LearnedStep(), start=q.FromMeans()),
            r"FromMeans\(\) needs a TernaryGrid",
        ),
        (
            lambda: t.Quantizer(q.BinaryGrid(), observer="kl"),
            "KL.* needs a IntegerGrid",
        ),
        (lambda: t.Quantizer(start=q.FromRange()), "trains nothing. Leave it out"),
        (
            lambda: t.ActivationQuantizer(
                gradient=q.LearnedStep(), start=q.GivenRange(0, 1, hold=True)
            ),
            "stays, and LearnedStep.* trains it",
        ),
        (lambda: t.Quantizer(q.TernaryGrid(), freeze=5), "freeze=5 is for grids that"),
        (
            lambda: t.Quantizer(gradient=q.LearnedStep(), observer="mse"),
            r"MSE\(\) is for grids that a range places",
        ),
        (lambda: t.ActivationQuantizer(q.TernaryGrid()), "change with every batch"),
        (lambda: q.GivenRange(1, 2), "low <= 0 <= high"),
        (lambda: q.TernaryGrid(of="median"), "of must be 'mean' or 'max'"),
        (lambda: q.LearnedLevel(decay=-1.0), "decay must be a number, 0 or greater"),
    ],
)
def test_values_that_contradict_each_other(make, text):
    with pytest.raises(ConfigError, match=text):
        make()


@given(st.floats(-1e3, 0), st.floats(0, 1e3))
def test_every_range_has_a_width(low, high):
    top = float(grids.wide(low, high))
    if high - low < 1e-12:
        assert top == low + 1  # a grid of codes for what may come
    else:
        assert top == max(high, low + 1e-6)
    scale, lowest, highest = q.IntegerGrid(8, symmetric=False).fit(low, high)
    assert scale > 0
    assert lowest <= 0 <= highest
