"""Learned sparsity: variational dropout and L0 gates against their papers' formulas."""

import math

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import keras_dlopt as dlopt
from keras_dlopt.errors import ConfigError
from keras_dlopt.graph.targets import Target
from keras_dlopt.transforms import Context
from keras_dlopt.transforms.prune import Blocks, Columns, Rows
from keras_dlopt.transforms.prune.variational import divergence
from reference import prune as twin

KERNELS = dlopt.named("kernel")
TARGET = Target("dense/kernel")


class _Losses:
    """A training context that keeps the losses it is given."""

    def __init__(self, seed=0):
        self.found = []
        seed = keras.random.SeedGenerator(seed)
        self.context = Context(
            TARGET, training=True, seed=seed, add_loss=self.found.append
        )


@given(st.floats(-7.9, 7.9))
def test_divergence_is_the_papers(log_alpha):
    # float32 against float64
    assert float(divergence(np.float32(log_alpha))) == pytest.approx(
        twin.divergence(log_alpha), abs=2e-6
    )


def test_divergence_vanishes_for_pure_noise():
    assert float(divergence(np.float32(30.0))) == pytest.approx(0, abs=1e-6)


def test_variational_dropout_in_training_and_after():
    transform = dlopt.VariationalDropout(100, threshold=3.0)
    w = np.array([[1.0, -0.01], [0.5, 0.001]], "float32")
    state = {
        "log_sigma2": np.full((2, 2), -4.0, "float32"),
        "factor": np.float32(0.5),
    }
    losses = _Losses()
    samples = np.stack(
        [np.asarray(transform.apply(w, state, losses.context)) for _ in range(2000)]
    )
    # Standard errors of mean and deviation over 2,000 samples, four times.
    sigma = math.exp(-2.0)
    np.testing.assert_allclose(samples.mean(0), w, atol=4 * sigma / 2000**0.5)
    np.testing.assert_allclose(samples.std(0), sigma, rtol=4 / 4000**0.5)
    log_alpha = [
        min(max(-4.0 - math.log(v * v + 1e-8), -8.0), 8.0)
        for v in w.astype("float64").ravel()
    ]
    expected = 0.5 * sum(map(twin.divergence, log_alpha)) / 100
    assert float(losses.found[0]) == pytest.approx(expected, rel=1e-5)
    keep = np.array(log_alpha).reshape(2, 2) < 3.0
    assert keep.tolist() == [[True, False], [True, False]]
    final, hint = transform.finalize(TARGET, w, state)
    np.testing.assert_array_equal(final, np.where(keep, w, 0))
    np.testing.assert_array_equal(transform.evaluate(TARGET, w, state), final)
    assert hint is None


def _noise_task(transform, *, epochs):
    """Ten inputs of which one matters."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(256, 10)).astype("float32")
    y = x[:, :1] * 2
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((10,)), keras.layers.Dense(1, use_bias=False)]
    )
    small = dlopt.transform(model, dlopt.Recipe([(KERNELS, transform)]))
    small.compile(keras.optimizers.Adam(0.02), "mse")
    small.fit(x, y, batch_size=32, epochs=epochs, verbose=0)
    return dlopt.finalize(small).weights[0].numpy().ravel()


def test_variational_dropout_finds_the_input_that_matters():
    found = _noise_task(
        dlopt.VariationalDropout(30, warm_up=80, initial=-6.0, frequency=20), epochs=60
    )
    assert found[0] == pytest.approx(2, abs=0.2)
    assert not found[1:].any()


def test_l0_finds_the_input_that_matters():
    found = _noise_task(dlopt.L0(0.02, closed=0.5), epochs=80)
    assert found[0] == pytest.approx(2, abs=0.2)
    assert (found[1:] == 0).sum() >= 8


def test_the_factor_warms_up_inside_fit():
    transform = dlopt.VariationalDropout(100, begin=2, warm_up=6, frequency=2)
    assert [transform.factor(t) for t in (0, 2, 4, 6, 9)] == [0, 0, 0.5, 1, 1]
    due, step = [], -1
    while (step := transform.next_due(step)) is not None:
        due.append(step)
    assert due == [2, 4, 6]
    model = keras.Sequential([keras.Input((10,)), keras.layers.Dense(1)])
    small = dlopt.transform(model, dlopt.Recipe([(KERNELS, transform)]))
    small.compile("sgd", "mse")
    x = np.zeros((16, 10), "float32")
    small.fit(x, x[:, :1], batch_size=4, verbose=0)
    assert float(small.groups[0].slots[0].state["factor"].numpy()) == 0.5
    with pytest.warns(UserWarning, match="counts 0.5 of what it will at step 6"):
        dlopt.finalize(small)
    small.fit(x, x[:, :1], batch_size=4, verbose=0)
    assert float(small.groups[0].slots[0].state["factor"].numpy()) == 1
    assert dlopt.finalize(small)


def test_without_a_warm_up_the_factor_is_one_at_once():
    transform = dlopt.VariationalDropout(100)
    assert transform.init(TARGET, np.ones((2, 2)))["factor"].value == 1
    assert transform.next_due(-1) is None
    assert transform.remaining(0) is None


@given(st.floats(-6, 6), st.floats(0.001, 0.999))
def test_gates_are_the_papers(a, u):
    from keras_dlopt.transforms.prune import gates

    logit = math.log(u) - math.log(1 - u)
    sample = gates._stretched(1 / (1 + math.exp(-(logit + a) / gates.BETA)), np)
    assert float(sample) == pytest.approx(twin.hard_concrete(a, u), abs=1e-12)
    state = {"gate": np.array([[a]], "float32")}
    final, _ = dlopt.L0(1.0).finalize(TARGET, np.ones((1, 1), "float32"), state)
    assert float(final[0, 0]) == pytest.approx(twin.hard_concrete(a), abs=1e-6)


def test_gates_and_their_price():
    w = np.random.default_rng(0).normal(size=(3, 4)).astype("float32")
    for pattern, shape, each in ((Columns(), (1, 4), 3), (Rows(), (3, 1), 4)):
        transform = dlopt.L0(0.1, pattern=pattern, closed=0.3)
        state = {k: s.value for k, s in transform.init(TARGET, w).items()}
        assert state["gate"].shape == shape
        # Normal with a deviation of 0.01.
        np.testing.assert_allclose(
            state["gate"], math.log(0.7) - math.log(0.3), atol=0.06
        )
        losses = _Losses()
        out = np.asarray(transform.apply(w, state, losses.context)) / w
        np.testing.assert_allclose(
            out,
            np.broadcast_to(out[:, :1] if each == 4 else out[:1], w.shape),
            rtol=1e-5,
        )
        assert 0 <= out.min() <= out.max() <= 1.0 + 1e-6
        price = 0.1 * each * sum(map(twin.open_probability, state["gate"].ravel()))
        assert float(losses.found[0]) == pytest.approx(price, rel=1e-5)
        np.testing.assert_allclose(
            transform.evaluate(TARGET, w, state),
            transform.finalize(TARGET, w, state)[0],
            rtol=1e-6,
        )


def test_arguments():
    with pytest.raises(
        ConfigError, match="examples must be a whole number, 1 or greater"
    ):
        dlopt.VariationalDropout(0)
    with pytest.raises(
        ConfigError,
        match="begin <= warm_up must hold.*begin=5, warm_up=3.*begins to count",
    ):
        dlopt.VariationalDropout(10, begin=5, warm_up=3)
    with pytest.raises(ConfigError, match="frequency must be a whole number"):
        dlopt.VariationalDropout(10, frequency=0)
    with pytest.raises(ConfigError, match="penalty must be a number, 0 or greater"):
        dlopt.L0(-1)
    with pytest.raises(ConfigError, match="Gates stand for single weights or.*Blocks"):
        dlopt.L0(0.1, pattern=Blocks((2, 2)))
    with pytest.raises(ConfigError, match=r"closed must be a number in \(0, 1\)"):
        dlopt.L0(0.1, closed=1.0)
    with pytest.raises(ConfigError, match="rank 2 or more"):
        dlopt.L0(0.1, pattern=Columns()).init(Target("bias"), np.ones(3))
