"""Weight quantizers against float64 twins, and the properties of their grids."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

import keras_dlopt as dlopt
from keras_dlopt import transforms as t
from keras_dlopt.codecs.grid import holds
from keras_dlopt.codecs.hints import Codebook, Grid
from keras_dlopt.errors import ConfigError, ModelError
from keras_dlopt.graph.targets import Target
from keras_dlopt.transforms import Context
from reference import quantize as twin

DENSE = Target("d/kernel", layer=keras.layers.Dense(1))


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def states(transform, weight, target=DENSE):
    return {k: v.value for k, v in transform.init(target, weight).items()}


def gradients(transform, weight, upstream, target=DENSE, **change):
    """Value, gradient of the weight, gradients of the state by name."""
    state = {
        k: tf.constant(change.get(k, v), "float32")
        for k, v in states(transform, weight, target).items()
    }
    w = tf.constant(weight)
    with tf.GradientTape() as tape:
        tape.watch([w, state])
        y = transform.apply(w, state, Context(target))
        loss = tf.reduce_sum(y * upstream)
    d_w, d_state = tape.gradient(loss, [w, state])
    return np.asarray(y), np.asarray(d_w), d_state


@pytest.mark.parametrize("bits", [2, 3, 8, 16])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("narrow", [True, False])
def test_integer_grids_equal_the_twin(bits, symmetric, narrow):
    weight = normal(40) + 0.3
    transform = t.FakeQuant(
        bits=bits, symmetric=symmetric, narrow_range=narrow, per_channel=False
    )
    want = twin.affine(weight, bits, symmetric=symmetric, narrow=narrow)
    got = transform.evaluate(DENSE, weight, {})
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    assert np.unique(got).size <= 2**bits


@pytest.mark.parametrize("narrow", [True, False])
@pytest.mark.parametrize("symmetric", [True, False])
def test_int8_equals_tensorflows_op(symmetric, narrow):
    weight = normal(6, 5, seed=1)
    low, high = weight.min(0), weight.max(0)
    if symmetric:
        high = np.abs(weight).max(0)
        low = -high
    op = tf.quantization.fake_quant_with_min_max_vars_per_channel(
        weight, low, high, num_bits=8, narrow_range=narrow
    )
    if symmetric and not narrow:
        # The op puts 255 steps between -m and m; a symmetric grid puts 254.
        op = tf.quantization.fake_quant_with_min_max_vars_per_channel(
            weight, low, high, num_bits=8, narrow_range=True
        )
    transform = t.FakeQuant(symmetric=symmetric, narrow_range=narrow)
    np.testing.assert_allclose(transform.evaluate(DENSE, weight, {}), op, atol=1e-6)
    whole = t.FakeQuant(per_channel=False)
    largest = float(np.abs(weight).max())
    op = tf.quantization.fake_quant_with_min_max_args(
        weight, -largest, largest, num_bits=8, narrow_range=True
    )
    np.testing.assert_allclose(whole.evaluate(DENSE, weight, {}), op, atol=1e-6)


GRIDS = st.builds(
    t.FakeQuant,
    bits=st.integers(2, 10),
    per_channel=st.booleans(),
    symmetric=st.booleans(),
    observer=st.sampled_from(["min_max", "mse", t.Percentile(95.0)]),
)


@settings(max_examples=40, deadline=None)
@given(GRIDS, st.integers(0, 10_000), st.floats(0.125, 8, width=32))
def test_grids_are_idempotent_bounded_and_monotone(transform, seed, size):
    weight = size * normal(24, 3, seed=seed)
    state = states(transform, weight)
    value, hint = transform.finalize(DENSE, weight, state)
    assert holds(hint, value)
    # On the grid of the first rounding nothing moves any more.
    scale, low, high = transform.grid_of(DENSE, weight, state)
    again = np.clip(np.rint(value / scale), low, high) * scale
    np.testing.assert_allclose(again, value, rtol=1e-6, atol=1e-7)
    assert np.all((hint.codes >= low) & (hint.codes <= high))
    order = np.argsort(weight, axis=0)
    assert np.all(np.diff(np.take_along_axis(value, order, 0), axis=0) >= 0)
    zero, _ = transform.finalize(DENSE, np.zeros_like(weight), state)
    assert not zero.any()


@pytest.mark.parametrize("observer", ["mse", "percentile", t.MovingAverage(0.5)])
def test_what_training_sees_is_what_finalize_keeps(observer):
    weight = normal(30, 4)
    transform = t.FakeQuant(bits=4, observer=observer, symmetric=False)
    state = states(transform, weight)
    value, _ = transform.finalize(DENSE, weight, state)
    np.testing.assert_allclose(
        transform.evaluate(DENSE, weight, state), value, rtol=1e-5, atol=1e-6
    )


def test_groups_have_a_scale_each():
    weight = normal(8, 3) * np.repeat([1.0, 100.0], 4)[:, None].astype("float32")
    transform = t.FakeQuant(bits=8, group_size=4)
    value, hint = transform.finalize(DENSE, weight, {})
    for rows in (slice(0, 4), slice(4, 8)):
        part, _ = t.FakeQuant(bits=8).finalize(DENSE, weight[rows], {})
        np.testing.assert_array_equal(value[rows], part)
    assert holds(hint, value)
    np.testing.assert_allclose(transform.evaluate(DENSE, weight, {}), value, rtol=3e-7)
    conv = Target("c/kernel", layer=keras.layers.Conv2D(1, 1))
    kernel = normal(3, 3, 8, 2)
    value, _ = transform.finalize(conv, kernel, {})
    part, _ = t.FakeQuant().finalize(conv, kernel[:, :, 4:], {})
    np.testing.assert_array_equal(value[:, :, 4:], part)
    depthwise = Target("w/kernel", layer=keras.layers.DepthwiseConv2D(1))
    one, _ = transform.finalize(depthwise, kernel, {})
    np.testing.assert_array_equal(one, t.FakeQuant().finalize(depthwise, kernel, {})[0])


def test_an_axis_may_be_chosen():
    weight = normal(4, 6)
    value, hint = t.FakeQuant(axis=0).finalize(DENSE, weight, {})
    assert hint.scale.shape == (4, 1)
    other, _ = t.FakeQuant().finalize(DENSE, weight.T.copy(), {})
    np.testing.assert_array_equal(value, other.T)


def test_clipped_weights_have_no_gradient_and_the_rest_is_bounded():
    weight = np.array([0.1, 0.2, 5.0], "float32")
    upstream = np.array([3.0, -0.25, 1.0], "float32")
    transform = t.FakeQuant(bits=4, observer="mse", clip_gradient=0.5)
    state = {"low": np.array([-0.2]), "high": np.array([0.2])}
    y, d_w, _ = gradients(transform, weight, upstream, **state)
    np.testing.assert_array_equal(d_w, [0.5, -0.25, 0.0])
    assert y[2] == pytest.approx(0.2)
    straight = t.FakeQuant(bits=4, clip_gradient=0.5)
    np.testing.assert_array_equal(
        gradients(straight, weight, upstream)[1], [0.5, -0.25, 0.5]
    )


def test_mse_finds_the_twins_range():
    weight = np.append(normal(60), np.float32(9.0))
    observer = t.MSE(50)
    grid = t.FakeQuant(bits=3, per_channel=False, observer=observer)
    share = twin.best_share(weight.tolist(), 3, observer.shares())
    state = states(grid, weight)
    assert float(state["high"][0]) == pytest.approx(9.0 * share)
    assert share < 0.8


def test_kl_clips_rare_outliers_and_nothing_of_little_data():
    rng = np.random.default_rng(0)
    many = np.append(rng.normal(size=200_000), 60.0)[None]
    grid = t.FakeQuant(bits=8).grid
    low, high = t.KL().find(many, None, grid)
    assert 3 < high[0] < 15
    assert low[0] == pytest.approx(many.min())
    few = many[:, -500:]
    assert t.KL().find(few, None, grid)[1][0] == 60.0
    assert t.KL().find(np.zeros((1, 9)), None, grid)[1][0] == 0.0


def test_histograms_give_nearly_the_range_of_the_values():
    values = np.random.default_rng(0).normal(size=(1, 20_000))
    counts, edges = np.histogram(values, 2048)
    centers = ((edges[1:] + edges[:-1]) / 2)[None]
    grid = t.FakeQuant(bits=4).grid
    for observer in (t.MSE(), t.Percentile(99.0), t.MinMax(), t.KL()):
        exact = np.ravel(observer.find(values, None, grid))
        binned = np.ravel(observer.find(centers, counts[None].astype(float), grid))
        np.testing.assert_allclose(binned, exact, rtol=0.08)


def test_ranges_follow_begin_and_freeze():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="d")])
    transform = t.FakeQuant(bits=3, begin=2, freeze=4)
    small = dlopt.transform(model, dlopt.Recipe([(dlopt.named("kernel"), transform)]))
    kernel = small.model.get_layer("d").kernel
    x = np.eye(3, dtype="float32")
    small.update_transforms(0)
    np.testing.assert_allclose(small(x), kernel.numpy(), rtol=1e-6)
    with pytest.raises(ModelError, match="follows a schedule and was never updated"):
        dlopt.finalize(small)
    assert transform.remaining(1) == "quantization begins at step 2"
    small.update_transforms(2)
    assert not np.allclose(small(x), kernel.numpy(), rtol=1e-3)
    small(x, training=True)
    high = small.groups[0].slots[0].state["high"].numpy()
    np.testing.assert_allclose(high, np.abs(kernel.numpy()).max(0, keepdims=True))
    small.update_transforms(4)
    kernel.assign(10 * kernel)
    small(x, training=True)
    np.testing.assert_array_equal(small.groups[0].slots[0].state["high"].numpy(), high)
    assert np.abs(np.asarray(small(x))).max() <= high.max() * 1.001


def test_host_observers_look_again_now_and_then():
    transform = t.FakeQuant(observer="mse", frequency=10, freeze=25)
    assert [transform.next_due(s) for s in (-1, 0, 10, 20, 25)] == [0, 10, 20, 25, None]
    weight = normal(5, 2)
    state = states(transform, weight)
    member = t.Member(DENSE, 2 * weight, state)
    (change,) = transform.update([member], 10)
    np.testing.assert_allclose(change["high"], 2 * state["high"], rtol=1e-6)
    frozen = t.Member(DENSE, weight, state | {"frozen": np.ones((), "float32")})
    assert "high" not in transform.update([frozen], 30)[0]


def test_stochastic_rounding_is_right_on_average():
    transform = t.FakeQuant(bits=3, per_channel=False, stochastic=True)
    assert transform.random
    weight = np.array([0.1, 0.5, -0.77, 3.0], "float32")
    seed = keras.random.SeedGenerator(1)
    context = Context(DENSE, training=True, seed=seed)
    drawn = np.stack([transform.apply(weight, {}, context) for _ in range(600)])
    # A step is 1: the standard error of the mean is at most 0.5 / sqrt(600).
    np.testing.assert_allclose(drawn.mean(0), weight, atol=0.08)
    np.testing.assert_array_equal(np.unique(drawn), [-1, 0, 1, 3])
    inference = transform.apply(weight, {}, Context(DENSE, seed=seed))
    np.testing.assert_array_equal(np.asarray(inference), [0, 0, -1, 3])


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("narrow", [False, True])
def test_lsq_equals_its_paper(per_channel, narrow):
    weight, upstream = normal(20, 3), normal(20, 3, seed=1)
    transform = t.LSQ(bits=3, per_channel=per_channel, narrow_range=narrow)
    low, high = transform.codes
    y, d_w, d_state = gradients(transform, weight, upstream)
    step = states(transform, weight)["step"]
    columns = range(3) if per_channel else [slice(None)]
    for j, s, d in zip(columns, np.ravel(step), np.ravel(d_state["step"]), strict=True):
        w = weight[:, j].astype("float64")
        assert s == pytest.approx(2 * np.abs(w).mean() / high**0.5, rel=1e-6)
        out, d_x, d_s, _ = twin.lsq(
            w, upstream[:, j], float(s), 0.0, low, high, 1 / (w.size * high) ** 0.5
        )
        np.testing.assert_allclose(y[:, j], out, rtol=1e-5)
        np.testing.assert_allclose(d_w[:, j], d_x, rtol=1e-5)
        assert d == pytest.approx(d_s, rel=1e-4)
    value, hint = transform.finalize(DENSE, weight, {"step": step})
    np.testing.assert_allclose(value, y, rtol=1e-6)
    assert holds(hint, value)


def test_a_step_below_zero_counts_as_a_small_one():
    weight = normal(4, 2)
    transform = t.LSQ(bits=2)
    y, _, d = gradients(transform, weight, np.ones_like(weight), step=[[-0.5]])
    assert np.isfinite(y).all()
    assert np.isfinite(np.asarray(d["step"])).all()


def test_binary_equals_xnor_net():
    weight, upstream = 1.5 * normal(12, 2), normal(12, 2, seed=1)
    y, d_w, _ = gradients(t.Binary(), weight, upstream)
    for j in range(2):
        out, slope = twin.binary(weight[:, j].tolist(), upstream[:, j].tolist())
        np.testing.assert_allclose(y[:, j], out, rtol=1e-5)
        np.testing.assert_allclose(d_w[:, j], slope, rtol=1e-4, atol=1e-5)
    value, hint = t.Binary().finalize(DENSE, weight, {})
    np.testing.assert_allclose(value, y, rtol=1e-6)
    assert set(np.unique(hint.codes)) == {-1, 1}
    assert holds(hint, value)


def test_ternary_equals_its_paper():
    weight, upstream = normal(30, 2), normal(30, 2, seed=1)
    y, d_w, _ = gradients(t.Ternary(clip_gradient=1.0), weight, upstream)
    np.testing.assert_allclose(y, twin.ternary(weight), rtol=1e-5)
    np.testing.assert_array_equal(d_w, np.clip(upstream, -1, 1))
    value, hint = t.Ternary().finalize(DENSE, weight, {})
    np.testing.assert_allclose(value, y, rtol=1e-6)
    assert set(np.unique(hint.codes)) == {-1, 0, 1}
    zeros = np.zeros((3, 2), "float32")
    assert not t.Ternary(per_channel=True).finalize(DENSE, zeros, {})[0].any()


def test_trained_ternary_equals_its_paper():
    weight, upstream = normal(30, 2), normal(30, 2, seed=1)
    transform = t.TrainedTernary(threshold=0.2)
    y, d_w, d = gradients(transform, weight, upstream, positive=0.5, negative=0.8)
    want = twin.trained_ternary(weight, upstream, 0.5, 0.8, 0.2)
    for got, expected in zip((y, d_w, d["positive"], d["negative"]), want, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5)
    state = {"positive": np.float32(0.5), "negative": np.float32(0.8)}
    value, hint = transform.finalize(DENSE, weight, state)
    np.testing.assert_array_equal(value, y)
    assert isinstance(hint, Codebook)
    np.testing.assert_array_equal(hint.values[hint.indices], value)
    start = states(transform, weight)
    limit = 0.2 * np.abs(weight).max()
    assert start["positive"] == pytest.approx(weight[weight > limit].mean())
    assert states(transform, np.zeros((2, 2), "float32"))["negative"] == 1.0


@settings(max_examples=30, deadline=None)
@given(st.integers(3, 6), st.integers(0, 1000), st.floats(0.0625, 16, width=32))
def test_powers_of_two_equal_the_twin(bits, seed, size):
    weight = size * normal(40, seed=seed)
    value, hint = t.PowerOfTwo(bits=bits).finalize(DENSE, weight, {})
    np.testing.assert_array_equal(value, twin.power_of_two(weight, bits))
    np.testing.assert_array_equal(hint.values[hint.indices], value)
    got = t.PowerOfTwo(bits=bits).evaluate(DENSE, weight, {})
    np.testing.assert_array_equal(got, value)
    assert np.unique(value).size <= 2 ** (bits - 1) + 1
    assert not np.any(np.signbit(value[value == 0]))


def test_between_two_powers_the_nearer_one_is_taken():
    weight = np.array([[1.0, 0.76, 0.74, 0.374, -0.376]], "float32")
    value, _ = t.PowerOfTwo(bits=5).finalize(DENSE, weight, {})
    np.testing.assert_array_equal(value, [[1.0, 1.0, 0.5, 0.25, -0.5]])


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.integers(0, 1000))
def test_plain_integers_equal_the_textbook(bits, seed):
    weight = normal(50, seed=seed)
    transform = t.MinMaxInteger(bits=bits)
    codes, back = twin.min_max_integers(weight, bits)
    value, hint = transform.finalize(DENSE, weight, {})
    # float32 may put a weight that is on an edge to either side of it.
    assert np.abs(transform.integers(weight) - codes).max() <= 1
    same = transform.integers(weight) == codes
    assert same.mean() > 0.9
    np.testing.assert_allclose(value[same], back[same], rtol=1e-4, atol=1e-5)
    assert (transform.integers(weight).min(), transform.integers(weight).max()) == (
        1,
        2**bits,
    )
    np.testing.assert_array_equal(hint.values[hint.indices], value)
    np.testing.assert_allclose(
        transform.evaluate(DENSE, weight, {})[same], value[same], atol=1e-5
    )


def test_plain_integers_clip_the_gradient_and_may_round_to_the_nearest():
    weight, upstream = normal(9), 4 * normal(9, seed=1)
    _, d_w, _ = gradients(t.MinMaxInteger(bits=3), weight, upstream)
    np.testing.assert_array_equal(d_w, np.clip(upstream, -1, 1))
    nearest = t.MinMaxInteger(bits=3, nearest=True)
    step = (weight.max() - weight.min()) / 7
    error = nearest.finalize(DENSE, weight, {})[0] - weight
    assert np.abs(error).max() <= step * 0.501
    down = t.MinMaxInteger(bits=3).finalize(DENSE, weight, {})[0] - weight
    assert down.max() <= 1e-6
    flat = np.ones(3, "float32")
    np.testing.assert_array_equal(nearest.finalize(DENSE, flat, {})[0], flat)


def test_codes_are_state_and_soft_rounding_learns_them():
    weight = normal(6, 2)
    grid = t.FakeQuant(bits=3)
    codes = t.IntegerCodes(grid)
    state = states(codes, weight)
    nearest, _ = grid.finalize(DENSE, weight, {})
    np.testing.assert_allclose(codes.evaluate(DENSE, weight, state), nearest)
    state["codes"] = state["codes"] * 0 + 1
    value, hint = codes.finalize(DENSE, weight, state)
    assert isinstance(hint, Grid)
    np.testing.assert_array_equal(value, np.broadcast_to(state["scale"], weight.shape))
    _, d_w, _ = gradients(codes, weight, np.ones_like(weight))
    assert not d_w.any()

    soft = t.SoftRounding(grid, steps=10)
    state = states(soft, weight)
    # It starts at the weight itself, and rounds it to the nearest in inference.
    context = Context(DENSE, training=True)
    got = soft.apply(weight, state, context)
    np.testing.assert_allclose(got, weight, atol=2e-3)
    np.testing.assert_allclose(soft.evaluate(DENSE, weight, state), nearest, rtol=1e-5)
    np.testing.assert_array_equal(soft.finalize(DENSE, weight, state)[0], nearest)
    state["v"] = normal(6, 2, seed=5)
    scale = np.broadcast_to(state["scale"], weight.shape)
    for j in range(2):
        want = twin.soft_rounding(
            weight[:, j], state["v"][:, j], float(scale[0, j]), -3, 3
        )
        got = np.asarray(soft.apply(weight, state, context))[:, j]
        clipped = np.abs(weight[:, j] / scale[0, j]) > 2.999
        np.testing.assert_allclose(got[~clipped], want[~clipped], rtol=1e-4, atol=1e-5)


def test_soft_rounding_must_decide_more_and_more():
    soft = t.SoftRounding(t.FakeQuant(bits=3), steps=10, strength=2.0)
    weight = normal(6, 2)
    state = states(soft, weight)
    losses = []
    for step in (0, 1, 2, 6, 10):
        state["step"] = np.float32(step)
        soft.apply(weight, state, Context(DENSE, training=True, add_loss=losses.append))
    losses = [float(v) for v in losses]
    assert losses[:2] == [0.0, 0.0]
    h = np.clip(1.2 / (1 + np.exp(-state["v"].astype("float64"))) - 0.1, 0, 1)
    assert losses[-1] == pytest.approx(2 * np.sum(1 - np.abs(2 * h - 1) ** 2), rel=1e-4)
    assert losses[2] > losses[3] > losses[4]


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: t.FakeQuant(bits=1), r"in \[2, 16\].*Binary"),
        (
            lambda: t.FakeQuant(bits=1, symmetric=False, narrow_range=True),
            "One bit has",
        ),
        (lambda: t.FakeQuant(per_channel=1), "per_channel must be True or False"),
        (
            lambda: t.FakeQuant(axis=1.5),
            "axis must be a whole number, or None.*a scale each",
        ),
        (lambda: t.FakeQuant(axis=0, per_channel=False), "Leave one of the two"),
        (
            lambda: t.FakeQuant(group_size=0),
            "group_size must be a whole number, 1 or greater",
        ),
        (
            lambda: t.FakeQuant(group_size=4, per_channel=False),
            "group_size=4 divides the scales of per_channel=True",
        ),
        (lambda: t.FakeQuant(begin=5, freeze=3), "freeze must be.*after begin=5"),
        (
            lambda: t.FakeQuant(frequency=0),
            "frequency must be a whole number, 1 or greater",
        ),
        (
            lambda: t.FakeQuant(clip_gradient=0.0),
            "clip_gradient must be a positive number",
        ),
        (lambda: t.FakeQuant(observer="max"), "An observer is one of"),
        (lambda: t.Percentile(40.0), r"percentile must be a number in \(50, 100\]"),
        (lambda: t.MovingAverage(1.0), r"momentum must be a number in \[0, 1\)"),
        (lambda: t.MSE(2), "steps must be a whole number, 5 or greater"),
        (lambda: t.KL(5), "bins must be a whole number, 128 or greater"),
        (lambda: t.LSQ(bits=1), r"in \[2, 16\]"),
        (lambda: t.Ternary(threshold=0.0), r"threshold must be a number in \(0, 4"),
        (
            lambda: t.TrainedTernary(threshold=1.0),
            r"threshold must be a number in \(0, 1",
        ),
        (
            lambda: t.PowerOfTwo(bits=2),
            r"bits must be a whole number in \[3, 8\].*Ternary",
        ),
        (lambda: t.MinMaxInteger(bits=0), r"in \[1, 16\]"),
        (
            lambda: t.SoftRounding(t.FakeQuant(), steps=0),
            "steps must be a whole number, 1 or greater",
        ),
    ],
)
def test_bad_arguments(make, text):
    with pytest.raises(ConfigError, match=text):
        make()


def test_weights_that_do_not_fit():
    with pytest.raises(ConfigError, match="groups of 3 do not divide.*divisor"):
        t.FakeQuant(group_size=3).evaluate(DENSE, normal(8, 2), {})
    with pytest.raises(ConfigError, match="no axis 3"):
        t.FakeQuant(axis=3).evaluate(DENSE, normal(8, 2), {})


def test_base_classes_say_what_is_missing():
    from keras_dlopt.transforms.quantize.observers import Observer
    from keras_dlopt.transforms.quantize.starts import ScaleStart

    with pytest.raises(TypeError, match="does not define find"):
        Observer().find(np.zeros((1, 1)), None, t.FakeQuant().grid)
    with pytest.raises(TypeError, match="does not define range"):
        ScaleStart().range({}, t.FakeQuant().grid)
