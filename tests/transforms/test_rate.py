"""Training towards few bits, against code lengths counted one by one."""

import math

import keras
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

import keras_dlopt as dlopt
from keras_dlopt.errors import ConfigError
from keras_dlopt.graph.targets import Target
from keras_dlopt.transforms import Context, RateAware
from keras_dlopt.transforms.rate import FALLEN, KEPT, _codes, counted
from keras_dlopt.transforms.towards_bytes import PRICES, steered

TARGET = Target("dense/kernel")
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def reference(codes):
    """Code length in bits, and the bits of becoming non-zero, cell by cell."""
    q = np.asarray(codes, float)
    q = q.reshape(-1, q.shape[-1]) if q.ndim > 1 else q.reshape(1, -1)
    rows, columns = q.shape
    density = min(max((q != 0).sum() / q.size, 1e-4), 0.995)

    def share(cells):
        found = sum(v != 0 for v in cells) + 10 * density
        return min(max(found / (len(cells) + 10), 1e-5), 0.995)

    def odds(p):
        return math.log(p / (1 - p))

    sizes = [abs(v) for v in q.ravel() if v]
    mean = max(sum(sizes) / len(sizes), 1.02) if sizes else 1.02
    go_on = 1 - 1 / mean
    first, more = 1 - math.log2(1 - go_on), -math.log2(go_on)
    bits, becoming = 0.0, np.zeros(q.shape)
    for i in range(rows):
        for j in range(columns):
            value = odds(share(q[i])) + odds(share(q[:, j])) - odds(density)
            p = min(max(1 / (1 + math.exp(-value)), 2e-4), 0.98)
            bits -= math.log2(p if q[i, j] else 1 - p)
            if q[i, j]:
                bits += first + (abs(q[i, j]) - 1) * more
            becoming[i, j] = max(math.log2((1 - p) / p) + first, 0.5)
    return bits, becoming.reshape(np.shape(codes)), more


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.floats(0, 1),
    st.sampled_from([(7,), (5, 4), (1, 9), (2, 2, 3, 4)]),
)
def test_code_lengths_are_those_of_each_cell(seed, density, shape):
    rng = np.random.default_rng(seed)
    codes = rng.integers(-4, 5, shape) * (rng.random(shape) < density)
    for one, other in zip(counted(codes), reference(codes), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-6)


def state_of(transform, weight, **changed):
    made = {k: s.value for k, s in transform.init(TARGET, weight).items()}
    return made | {k: np.asarray(v, "float32") for k, v in changed.items()}


def test_the_loss_is_the_price_of_bits_linear_between_whole_numbers():
    transform = RateAware(100, end=10)
    w = np.array([[0.2, -0.7], [1.6, 0.0]], "float32")
    state = state_of(
        transform,
        w,
        log_step=math.log(0.5),
        becoming=[[3.0, 4.0], [5.0, 6.0]],
        more=1.5,
        price=0.01,
        hard=1.0,
    )
    losses = []
    context = Context(TARGET, training=True, add_loss=losses.append)
    found = np.asarray(transform.apply(w, state, context))
    # phi: 0.4, -1.4, 3.2, 0
    np.testing.assert_allclose(found, [[0.0, -0.5], [1.5, 0.0]])
    bits = 3.0 * 0.4 + (4.0 + 1.5 * 0.4) + (5.0 + 1.5 * 2.2)
    assert float(losses[0]) == pytest.approx(0.01 * bits, rel=1e-5)
    # Half rounded on the way; outside of training nothing is added.
    half = {**state, "hard": np.float32(0.5)}
    np.testing.assert_allclose(
        np.asarray(transform.apply(w, half, Context(TARGET))),
        [[0.1, -0.6], [1.55, 0.0]],
        atol=1e-6,
    )
    assert len(losses) == 1


def test_gradients_pass_the_rounding_and_carry_the_price():
    import tensorflow as tf

    transform = RateAware(100, end=10)
    w = tf.Variable([[0.2, -0.7]])
    slopes = {"becoming": [[3.0, 4.0]], "more": 1.5, "price": 0.01, "hard": 1.0}
    state = state_of(transform, w.numpy(), log_step=math.log(0.5), **slopes)
    log_step = tf.Variable(state["log_step"])
    with tf.GradientTape() as tape:
        losses = []
        context = Context(TARGET, training=True, add_loss=losses.append)
        made = transform.apply(
            tf.convert_to_tensor(w),
            {**state, "log_step": tf.convert_to_tensor(log_step)},
            context,
        )
        total = ops.sum(made * [[1.0, 10.0]]) + losses[0]
    by_weight, by_step = tape.gradient(total, [w, log_step])
    expected = [[1.0 + 0.01 * 3.0 / 0.5, 10.0 - 0.01 * 1.5 / 0.5]]
    np.testing.assert_allclose(by_weight, expected, rtol=1e-5)
    # As LSQ: step * (round(phi) - phi); and larger steps take fewer bits.
    expected = 0.5 * (1.0 * (0 - 0.4) + 10.0 * (-1 + 1.4)) - 0.01 * (1.2 + 2.1)
    np.testing.assert_allclose(by_step, expected, rtol=1e-4)


def test_the_goal_comes_down_and_the_price_follows():
    transform = RateAware(1_000, begin=100, end=1_100)
    goals = [transform.goal_at(f, first=64_000) for f in (0, FALLEN / 2, FALLEN, 1)]
    np.testing.assert_allclose(goals, [64_000, 8_000, 1_000, 1_000])
    assert [transform.progress(s) for s in (0, 100, 600, 2_000)] == [0, 0, 0.5, 1]
    assert [transform.next_due(s) for s in (-1, 100, 1_095, 1_100)] == [
        *(100, 110, 1_100),
        None,
    ]
    assert steered(1e-6, 4.0) == pytest.approx(1e-6 * math.exp(0.1))
    assert steered(1e-6, 0.02) == pytest.approx(1e-6 * math.exp(0.01))
    # What comes nearer by itself is not priced higher.
    assert steered(1e-6, 0.1, 0.01) == pytest.approx(1e-6)
    assert steered(1e-6, 0.1, 0.05) == pytest.approx(1e-6 * math.exp(-0.1))
    assert (steered(1.0, 9.0), steered(0.0, 0.1)) == PRICES[::-1]


@pytest.fixture(scope="module")
def trained():
    """A small network at a tenth of the code length that it began with."""
    digits = dlopt.data.load("digits")
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Flatten(), keras.layers.Dense(48, "relu")]
    net = keras.Sequential([keras.Input((8, 8, 1)), *layers, keras.layers.Dense(10)])
    net.compile(keras.optimizers.Adam(3e-3), LOSS)
    net.fit(*digits.train, epochs=15, verbose=0)
    recipe = dlopt.Recipe([(dlopt.rank(1, 2), RateAware(500, end=1_200, frequency=5))])
    small = dlopt.transform(net, recipe)
    falling = keras.optimizers.schedules.CosineDecay(3e-3, 1_200)
    small.compile(keras.optimizers.Adam(falling), LOSS, steps_per_execution=5)
    seen = []

    class Zeros(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            seen.append(float(small.groups[0].slots[0].arrays()["mask"].mean()))

    small.fit(*digits.train, epochs=30, verbose=0, callbacks=[Zeros()])
    return net, small, digits, seen


def test_a_network_is_trained_to_the_bytes_and_coded_in_them(trained, tmp_path):
    net, small, digits, _ = trained
    final = dlopt.finalize(small)
    ledger = dlopt.save_compressed(final, tmp_path / "a.dlopt")
    codes = ledger.file_bytes - ledger.architecture_bytes
    assert codes < 900
    x, y = digits.test
    right = [(m.predict(x, verbose=0).argmax(-1) == y).mean() for m in (net, final)]
    assert right[1] > right[0] - 0.06
    # The entropy of the codes is what was trained for.
    slots = small.groups[0].slots
    total = sum(counted(_codes(s.weight(), s.arrays()))[0] for s in slots)
    assert total / 8 == pytest.approx(500, rel=0.2)
    again = dlopt.load_compressed(tmp_path / "a.dlopt")
    np.testing.assert_array_equal(again(x), final(x))
    np.testing.assert_allclose(small(x), final(x), atol=1e-4)


def test_steps_are_short_and_stay_at_the_end(trained):
    for slot in trained[1].groups[0].slots:
        state = slot.arrays()
        short = state["fixed"].astype(ml_dtypes.bfloat16)
        assert short == state["fixed"] > 0
        # It went on training in vain, from near there.
        assert np.exp(state["log_step"]) == pytest.approx(state["fixed"], rel=0.01)


def test_zeros_stay_at_the_end(trained):
    masks = trained[3]
    begin = math.ceil(KEPT * len(masks)) + 1
    assert masks[0] == 1.0
    assert masks[-1] < 0.3
    assert all(b <= a for a, b in zip(masks[begin:], masks[begin + 1 :], strict=False))


def test_wrong_arguments_are_refused():
    for options, text in (
        ({"goal": 0, "end": 10}, "goal must be"),
        ({"goal": 5, "begin": 10, "end": 10}, "begin"),
        ({"goal": 5, "end": 10, "frequency": 0}, "frequency must be"),
    ):
        with pytest.raises(ConfigError, match=text):
            RateAware(**options)
    assert RateAware(9, end=10).remaining(5) == (
        "RateAware is 50% on its way, until step 10"
    )
