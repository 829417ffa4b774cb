"""Choices of examples: each against a plain reference, and its refusals."""

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from keras_dlopt.data import select
from keras_dlopt.errors import ConfigError, DataError, ModelError

RNG = np.random.default_rng(0)
L = keras.layers


class Twice(keras.Model):
    """A subclassed model whose last layer runs as often as it is told."""

    def __init__(self, times=1):
        super().__init__()
        self.times = times
        self.first, self.last = L.Dense(6, activation="relu"), L.Dense(6)

    def call(self, x):
        x = self.first(x)
        for _ in range(self.times):
            x = self.last(x)
        return x


def softmax(z):
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


@pytest.fixture(scope="module")
def networks():
    """Logits, and the same as probabilities."""
    plain = keras.Sequential([keras.Input((5,)), L.Dense(7), L.Dense(4)])
    return plain, keras.Sequential([plain, L.Softmax()])


@pytest.mark.parametrize("one_hot", [False, True])
def test_el2n_and_margin_are_those_of_the_formula(networks, one_hot):
    x, y = 3 * RNG.normal(size=(20, 5)), RNG.integers(0, 4, 20)
    plain, _ = networks
    kernels = [w.numpy().astype("float64") for w in plain.weights]
    p = softmax((x @ kernels[0] + kernels[1]) @ kernels[2] + kernels[3])
    onehot = np.eye(4)[y]
    wanted = np.sqrt(np.sum((p - onehot) ** 2, axis=1))
    others = np.where(onehot == 1, -np.inf, p).max(axis=1)
    labels = onehot if one_hot else y
    for network in networks:
        seen = select.scores_el2n(network, x, labels)
        np.testing.assert_allclose(seen, wanted, atol=1e-5)
        seen = select.margins([network] * 2, x, labels)
        np.testing.assert_allclose(seen, p[np.arange(20), y] - others, atol=1e-5)


def test_outputs_that_are_no_classes(networks):
    x, y = np.ones((3, 5)), np.array([0, 1, 4])
    with pytest.raises(DataError, match="4 classes for 3 examples. Received: 3 labels"):
        select.scores_el2n(networks[0], x, y)
    one = keras.Sequential([keras.Input((5,)), L.Dense(1)])
    with pytest.raises(DataError, match="for each of two or more classes. Received: "):
        select.margins(one, x, y)
    with pytest.raises(DataError, match="one Keras model or several. Received: none"):
        select.margins([], x, y)
    with pytest.raises(ModelError, match="must be a built keras.Model"):
        select.margins(keras.Sequential([L.Dense(4)]), x, y)
    for labels in (y - 1, y + 0.5, np.array(["a"] * 3), np.zeros((3, 2, 2))):
        with pytest.raises(DataError, match="Labels must be whole numbers from 0, or "):
            select.margins(networks[0], x, labels)
    with pytest.raises(DataError, match="There are 2 labels for 3 examples"):
        select.margins(networks[0], x, y[:2])


def test_features_are_what_the_last_layer_is_given(networks):
    x = RNG.normal(size=(9, 5)).astype("float32")
    plain, nested = networks
    wanted = plain.layers[0](x).numpy()
    np.testing.assert_allclose(select.features(plain, x, batch_size=4), wanted, 1e-5)
    np.testing.assert_allclose(select.features(nested, x), wanted, 1e-5)
    seen = select.features(plain, x, layer=plain.layers[1].name)
    np.testing.assert_allclose(seen, plain(x).numpy(), 1e-5)
    subclassed = Twice()
    wanted = subclassed(x) is not None and subclassed.first(x).numpy()
    np.testing.assert_allclose(select.features(subclassed, x), wanted, 1e-5)


def ranked(scores):
    """From hard to easy, of equals the earlier first, without NumPy's sort."""
    return sorted(range(len(scores)), key=lambda i: (-scores[i], i))


SCORES = st.lists(st.integers(-3, 3), min_size=4, max_size=40)


@settings(max_examples=60)
@given(SCORES, st.sampled_from([0.0, 0.1, 0.25]), st.integers(1, 3))
def test_hardest_is_a_stretch_of_the_ranking(scores, skip, count):
    first = round(skip * len(scores))
    wanted = sorted(ranked(scores)[first : first + count])
    assert select.hardest(scores, count, skip=skip).tolist() == wanted


def ccs_budgets(sizes, count):
    """Algorithm 1 of the paper: the smallest stratum first."""
    left, budgets = dict(enumerate(sizes)), {}
    while left:
        i = min(left, key=lambda i: left[i])
        budgets[i] = min(left[i], (count - sum(budgets.values())) // len(left))
        del left[i]
    return [budgets[i] for i in range(len(sizes))]


@settings(max_examples=60)
@given(SCORES, st.integers(1, 4), st.floats(0.2, 0.7), st.integers(0, 9))
def test_stratified_spreads_as_the_paper_says(scores, bins, keep, seed):
    skip = 0.1
    count = max(1, round(keep * len(scores)))
    chosen = select.stratified(scores, count, skip=skip, bins=bins, seed=seed)
    left = ranked(scores)[round(skip * len(scores)) :]
    assert len(chosen) == len(set(chosen.tolist())) == count
    assert set(chosen.tolist()) <= set(left)
    assert chosen.tolist() == sorted(chosen.tolist())
    low, high = min(scores[i] for i in left), max(scores[i] for i in left)
    width = (high - low) / bins

    def bin_of(i):
        where = int((scores[i] - low) / width + 1e-9) if width else bins - 1
        return min(where, bins - 1)

    sizes = [sum(bin_of(i) == b for i in left) for b in range(bins)]
    there = [b for b in range(bins) if sizes[b]]
    seen = [sum(bin_of(i) == b for i in chosen) for b in there]
    wanted = ccs_budgets([sizes[b] for b in there], count)
    # Bins of one size may change places.
    assert sorted(seen) == sorted(wanted)


def test_draws_follow_the_seed():
    scores = RNG.normal(size=200)
    for choose in (
        lambda seed: select.stratified(scores, 0.3, seed=seed),
        lambda seed: select.balanced(scores > 0, 0.3, seed=seed),
        lambda seed: select.k_center(scores[:, None], 0.3, seed=seed),
    ):
        np.testing.assert_array_equal(choose(3), choose(3))
        assert choose(3).tolist() != choose(4).tolist()


def test_balanced_takes_the_hardest_of_each_class():
    labels = np.array([0] * 10 + [1] * 3 + [2] * 7)
    scores = RNG.permutation(20).astype(float)
    chosen = select.balanced(labels, 12, scores=scores)
    assert np.bincount(labels[chosen]).tolist() == [5, 3, 4]
    for one, count in ((0, 5), (1, 3), (2, 4)):
        own = [i for i in ranked(scores) if labels[i] == one]
        assert sorted(own[:count]) == [i for i in chosen if labels[i] == one]
    drawn = select.balanced(np.eye(3)[labels], 12)
    assert np.bincount(labels[drawn]).tolist() == [5, 3, 4]


def test_moderate_is_near_the_middle_of_its_class():
    features = RNG.normal(size=(40, 3)).astype("float32")
    labels = np.repeat([0, 1], 20)
    chosen = select.moderate(features, labels, 10)
    for one in (0, 1):
        own = np.flatnonzero(labels == one)
        center = features[own].astype("float64").mean(axis=0)
        distance = np.sqrt(((features[own] - center) ** 2).sum(axis=1))
        order = np.argsort(np.abs(distance - np.median(distance)))
        assert sorted(own[order[:5]]) == [i for i in chosen if labels[i] == one]


def test_k_center_is_the_greedy_of_the_paper():
    features = RNG.normal(size=(60, 4)) + 100
    wanted = [7]
    while len(wanted) < 15:
        away = cdist(features, features[wanted]).min(axis=1)
        wanted.append(int(away.argmax()))
    chosen = select.k_center(features, 15, start=[7])
    assert chosen.tolist() == sorted(wanted)
    # Equal examples are not chosen twice.
    assert select.k_center(np.ones((5, 2)), 1.0).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("distance", [0.0, 0.4, 3.0])
def test_near_duplicates_leave_one_of_each(distance):
    features = RNG.normal(size=(80, 2)).round(1)
    features[50:] = features[:30]
    wanted: list[int] = []
    away = cdist(features, features)
    for i in range(80):
        kept = [j for j in range(i) if j not in wanted]
        if any(away[i, j] <= distance for j in kept):
            wanted.append(i)
    found = select.near_duplicates(features, distance=distance + 1e-6 * (distance > 0))
    assert found.tolist() == wanted
    assert set(range(50, 80)) <= set(found.tolist())


def test_what_cannot_be_chosen():
    scores = np.arange(10.0)
    for keep in (0, 11, -1):
        with pytest.raises(ConfigError, match="keep must be from 1 to the 10 examples"):
            select.hardest(scores, keep)
    with pytest.raises(ConfigError, match=r"keep must be a number in \(0, 1\]"):
        select.hardest(scores, 1.5)
    with pytest.raises(ConfigError, match="start must hold 1 to 2 indices below 10"):
        select.k_center(scores[:, None], 2, start=[3, 10])
    with pytest.raises(DataError, match="scores must hold one number an example"):
        select.hardest(scores[:, None], 2)
    with pytest.raises(DataError, match="scores must be finite. Received: 1 values"):
        select.stratified(np.where(scores == 3, np.nan, scores), 2)
    with pytest.raises(DataError, match="features must hold one row of numbers an ex"):
        select.k_center(scores, 2)
    with pytest.raises(DataError, match="features must be finite"):
        select.near_duplicates(np.full((3, 2), np.inf), distance=1)
