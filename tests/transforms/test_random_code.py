"""Minimal random coding, against the formulas of the paper cell by cell."""

import math
import os

import keras
import numpy as np
import pytest
from scipy import stats

import keras_dlopt as dlopt
from keras_dlopt.codecs import candidates
from keras_dlopt.errors import ConfigError
from keras_dlopt.graph.targets import Target
from keras_dlopt.storage import ledger_of
from keras_dlopt.transforms import Context, MinimalRandomCode
from keras_dlopt.transforms.base import Member
from keras_dlopt.transforms.random_code import CODED, CUT, FALLEN, FASTER, LESS, NARROW

TARGET = Target("dense/kernel")
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def state_of(transform, weight, **changed):
    made = {k: s.value for k, s in transform.init(TARGET, weight).items()}
    return made | {k: np.asarray(v, "float32") for k, v in changed.items()}


def divergence(mean, sigma, prior):
    """Bits, by numerical integration of q log q / p."""
    x = np.linspace(mean - 9 * sigma, mean + 9 * sigma, 20_001)
    q = stats.norm.pdf(x, mean, sigma)
    ratio = stats.norm.logpdf(x, mean, sigma) - stats.norm.logpdf(x, 0, prior)
    return np.trapezoid(q * ratio, x) / math.log(2)


def test_the_loss_is_the_price_of_the_divergence():
    transform = MinimalRandomCode(100, end=10)
    w = np.array([[0.2, -0.7], [1.6, 0.0]], "float32")
    sigma = np.array([[0.1, 0.3], [0.5, 0.9]])
    state = state_of(
        transform,
        w,
        log_sigma=np.log(sigma) / FASTER,
        prior=0.8,
        price=0.01,
        factor=[[1.0, 2.0], [3.0, 4.0]],
        written=[[0.0, 0.0], [0.0, 1.0]],
        value=[[0.0, 0.0], [0.0, 0.25]],
    )
    losses, seed = [], keras.random.SeedGenerator(1)
    context = Context(TARGET, training=True, seed=seed, add_loss=losses.append)
    found = np.asarray(transform.apply(w, state, context))
    bits = [divergence(w.flat[i], sigma.flat[i], 0.8) * (i + 1) for i in range(3)]
    assert float(losses[0]) == pytest.approx(0.01 * sum(bits), rel=1e-4)
    noise = keras.random.normal((2, 2), seed=keras.random.SeedGenerator(1))
    expected = w + sigma * np.asarray(noise)
    expected[1, 1] = 0.25  # what is written stays and costs nothing more
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    plain = np.asarray(transform.apply(w, state, Context(TARGET)))
    np.testing.assert_allclose(plain, [[0.2, -0.7], [1.6, 0.25]])
    assert len(losses) == 1


def members(transform, weights, **changed):
    targets = [Target(f"layer_{i}/kernel") for i in range(len(weights))]
    states = transform.init_group(targets, weights)
    made = []
    for target, weight, state in zip(targets, weights, states, strict=True):
        values = {k: s.value for k, s in state.items()} | changed
        made.append(Member(target, weight, values))
    return made


def test_the_goal_comes_down_and_the_price_follows():
    transform = MinimalRandomCode(100, begin=100, end=1_100)
    goals = [transform.goal_at(f, first=6_400) for f in (0, FALLEN / 2, FALLEN, 1)]
    np.testing.assert_allclose(goals, [6_400, 800, 100, 100])
    assert [transform.next_due(s) for s in (-1, 100, 1_095, 1_100)] == [
        *(100, 110, 1_100),
        None,
    ]
    weights = [np.random.default_rng(0).normal(size=(40, 30)).astype("float32")]
    group = members(transform, weights)
    assert transform.update(group, 99) == [{}]
    first = transform.update(group, 100)[0]
    # The prior that costs the fewest bits, and what all would take in a file.
    spread = math.sqrt(np.mean(weights[0] ** 2) * (1 + NARROW**2))
    assert first["prior"] == pytest.approx(spread, rel=2**-8)
    sigma = NARROW * float(group[0].state["prior"])
    bits = sum(divergence(w, sigma, float(first["prior"])) for w in weights[0].flat)
    size = bits / 8 * transform.bits / (transform.bits - LESS)
    assert float(first["first"]) == pytest.approx(size, rel=1e-3)
    # Later the same is above the goal, so that bits cost more.
    group[0].state.update(first)
    price = float(transform.update(group, 400)[0]["price"])
    assert price == pytest.approx(float(first["price"]) * math.exp(0.2), rel=1e-5)


def test_blocks_are_cut_by_their_bits_and_written_in_turn():
    transform = MinimalRandomCode(100, end=1_000, bits=8)
    weights = [np.random.default_rng(0).normal(size=(24, 10)).astype("float32")]
    group = members(transform, weights)
    at = round(1_000 * (CUT + (CODED - CUT) / 3))
    made = transform.update(group, at)[0]
    state = group[0].state | made
    prior = float(state["prior"])
    sigma = NARROW * float(group[0].state["prior"])
    bits = np.array([divergence(w, sigma, prior) for w in weights[0].flat])
    length = math.ceil(240 / (bits.sum() / (8 - LESS)))
    blocks = -(-240 // length)
    assert int(state["length"]) == length
    chosen = math.ceil(blocks * (at / 1_000 - CUT) / (CODED - CUT))
    assert int(state["chosen"]) == chosen
    order = candidates.scattered(240)
    assert np.array_equal(
        np.flatnonzero(state["written"].reshape(-1)),
        np.sort(order[: chosen * length]),
    )
    # What is written are candidates, and what comes after has a price for its bits.
    codes = state["value"].reshape(-1)[order] * candidates.DEVIATION / prior
    for block in range(chosen):
        places = np.arange(block * length, (block + 1) * length)
        every = candidates.of(np.arange(256)[:, None], places)
        assert np.any(np.all(every == np.rint(codes[places]), axis=1))
    sums = np.add.reduceat(bits[order], np.arange(0, 240, length))
    change = np.exp(np.clip(0.3 * np.log(sums / (8 - LESS)), -0.1, 0.1))
    np.testing.assert_allclose(
        state["factor"].reshape(-1)[order], np.repeat(change, length)[:240], rtol=1e-3
    )
    # A third of the way further on, the values that are there stay.
    later = transform.update([Member(group[0].target, weights[0], state)], at + 100)[0]
    same = state["written"] > 0
    np.testing.assert_array_equal(later["value"][same], state["value"][same])
    assert int(later["chosen"]) > chosen


def test_candidates_are_chosen_with_probability_q_over_p():
    # One block of two weights, many seeds: how often each candidate is chosen.
    w = np.array([0.6, -0.3], "float32")
    counts = np.zeros(16)
    for seed in range(600):
        transform = MinimalRandomCode(10, end=10, bits=4, seed=seed)
        log_sigma = np.log([0.5, 0.7]) / FASTER
        state = state_of(transform, w, log_sigma=log_sigma, length=4, prior=0.96)
        value, grid = transform.finalize(TARGET, w, state)
        assert np.array_equal(value, (grid.codes * grid.scale).astype("float32"))
        order = candidates.scattered(2)
        every = candidates.of(np.arange(16)[:, None], np.arange(2))
        found = np.flatnonzero(np.all(every == grid.codes[order], axis=1))
        counts[found] += 1 / found.size
    x = every * float(grid.scale)
    mean, sigma = w[order], np.array([0.5, 0.7])[order]
    ratio = stats.norm.logpdf(x, mean, sigma) - stats.norm.logpdf(x, 0, 0.96)
    expected = np.exp(ratio.sum(1))
    expected *= 600 / expected.sum()
    some = expected > 5
    rest = [counts[~some].sum()], [expected[~some].sum()]
    found, wanted = np.r_[counts[some], rest[0]], np.r_[expected[some], rest[1]]
    assert stats.chisquare(found, wanted).pvalue > 1e-3


@pytest.fixture(scope="module")
def trained():
    """A network on the digits."""
    digits = dlopt.data.load("digits")
    keras.utils.set_random_seed(0)
    net = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten()])
    net.add(keras.layers.Dense(32, "relu"))
    net.add(keras.layers.Dense(10))
    net.compile(keras.optimizers.Adam(5e-3), LOSS, metrics=["accuracy"])
    net.fit(*digits.train, epochs=15, verbose=0)
    return net, digits


@pytest.mark.parametrize("hashed", [False, True])
def test_a_network_of_few_bytes(trained, hashed, tmp_path):
    net, digits = trained
    if hashed:
        hashed = dlopt.transform(net, dlopt.hashed_recipe(net, ratio=0.5))
        hashed.compile(keras.optimizers.Adam(3e-3), LOSS)
        hashed.fit(*digits.train, epochs=5, verbose=0)
        net = dlopt.hashed_layers(hashed)
    steps = 30 * -(-len(digits.x_train) // 32)
    transform = MinimalRandomCode(500, end=steps, bits=8)
    small = dlopt.transform(net, dlopt.Recipe([(dlopt.rank(1, 2, 4), transform)]))
    small.compile(keras.optimizers.Adam(3e-3), LOSS, metrics=["accuracy"])
    small.fit(*digits.train, epochs=31, verbose=0)
    plain = dlopt.finalize(small)
    plain.compile(loss=LOSS, metrics=["accuracy"])
    assert plain.evaluate(*digits.test, verbose=0)[1] > 0.9
    path = tmp_path / "small.dlopt"
    ledger = dlopt.save_compressed(plain, path)
    assert {row.method for row in ledger.rows} <= {"random code", "grid"}
    blocks = sum(row.bits for row in ledger.rows if row.method == "random code") / 8
    assert 350 < blocks < 600
    assert ledger_of(path).file_bytes == os.path.getsize(path)
    loaded = dlopt.load_compressed(path)
    for one, other in zip(loaded.weights, plain.weights, strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


def test_what_is_finalized_early_is_written_then(trained, tmp_path):
    net, _ = trained
    transform = MinimalRandomCode(500, end=1_000, bits=6)
    small = dlopt.transform(net, dlopt.Recipe([(dlopt.rank(2), transform)]))
    small.update_transforms(0)
    with pytest.warns(UserWarning, match="MinimalRandomCode is 0% on its way"):
        plain = dlopt.finalize(small)
    ledger = dlopt.save_compressed(plain, tmp_path / "early.dlopt")
    methods = [row.method for row in ledger.rows if row.path.endswith("kernel")]
    assert methods == ["random code"] * 2


@pytest.mark.parametrize("bits", [4, 5, 10, 12])
@pytest.mark.parametrize("spread", [1e-4, 1.0, 1e3])
def test_blocks_are_such_that_a_file_has_them(bits, spread, tmp_path):
    # Very sure, as it was trained, and indifferent: short blocks, and one for all.
    net = keras.Sequential([keras.Input((64,)), keras.layers.Dense(50, name="d")])
    transform = MinimalRandomCode(100, end=10, bits=bits)
    small = dlopt.transform(net, dlopt.Recipe([(dlopt.rank(2), transform)]))
    log_sigma = small.groups[0].slots[0].state["log_sigma"]
    small.update_transforms(0)
    log_sigma.assign(log_sigma + math.log(spread) / FASTER)
    with pytest.warns(UserWarning, match="on its way"):
        plain = dlopt.finalize(small)
    row = dlopt.save_compressed(plain, tmp_path / "one.dlopt").rows[0]
    assert row.method == "random code"
    assert row.bits <= 5 * 3_200 + 200


def test_a_chain_does_not_lose_what_came_before():
    with pytest.raises(ConfigError, match="must be the first of its chain"):
        dlopt.Prune(0.5) >> MinimalRandomCode(100, end=10)


@pytest.mark.advice("transforms/random_code.py", "hashed_layers()")
def test_a_weight_that_no_file_could_hold_is_refused(monkeypatch):
    monkeypatch.setattr(candidates, "PLACES", 50)
    net = keras.Sequential([keras.Input((8,)), keras.layers.Dense(8, name="wide")])
    net.add(keras.layers.Dense(2))
    transform = MinimalRandomCode(100, end=10, bits=4)
    with pytest.raises(ConfigError, match="'wide/kernel' has 64 .* at most 50.* hash"):
        dlopt.transform(net, dlopt.Recipe([(dlopt.rank(2), transform)]))
    # What the message says to do.
    rest = dlopt.rank(2) & ~dlopt.at("wide/kernel")
    dlopt.transform(net, dlopt.Recipe([(rest, transform)]))
    recipe = dlopt.hashed_recipe(net, ratio=0.5)
    hashed = dlopt.hashed_layers(dlopt.transform(net, recipe))
    dlopt.transform(hashed, dlopt.Recipe([(dlopt.rank(1, 2), transform)]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"goal": 0}, "goal must be"),
        ({"bits": 3}, "bits must be a whole number in"),
        ({"bits": 17}, "bits must be a whole number in"),
        ({"begin": 10}, "begin"),
        ({"frequency": 0}, "frequency"),
        ({"seed": -1}, "seed"),
    ],
)
def test_arguments(arguments, message):
    with pytest.raises(ConfigError, match=message):
        MinimalRandomCode(**{"goal": 100, "end": 10, **arguments})
