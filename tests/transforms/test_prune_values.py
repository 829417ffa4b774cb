"""Scores, patterns and distributions against float64 twins and as properties."""

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import keras_dlopt as dlopt
from keras_dlopt.graph.targets import Target
from keras_dlopt.transforms import Member
from keras_dlopt.transforms.prune import (
    ERK,
    SNIP,
    Blocks,
    BySensitivity,
    Columns,
    Filters,
    Global,
    HessianDiagonal,
    Lamp,
    Magnitude,
    NofM,
    Random,
    Rows,
    Taylor,
    Uniform,
    Unstructured,
)
from keras_dlopt.transforms.prune.distribution import Units
from keras_dlopt.transforms.prune.rules import choose
from reference import prune as twin

KERNEL = Target("dense/kernel")
# Few different values, so that there are ties.
WEIGHTS = st.integers(-3, 3)


def _arrays(rank=3):
    shapes = hnp.array_shapes(min_dims=1, max_dims=rank, max_side=6)
    return hnp.arrays("float32", shapes, elements=WEIGHTS)


def _units(scores, path="w"):
    return Units(Target(path), np.shape(scores), np.asarray(scores))


def _member(weight, mask=None, **statistics):
    mask = np.ones(weight.shape, "float32") if mask is None else mask
    return Member(KERNEL, weight, {"mask": mask}, statistics)


@given(st.data(), st.integers(1, 3), st.integers(1, 3), st.sampled_from([0, -2, 2]))
def test_n_of_m_keeps_exactly_n_of_every_m(data, n, more, axis):
    m = n + more
    shape = [2, 3, 2]
    shape[axis] = m * data.draw(st.integers(1, 3))
    scores = data.draw(hnp.arrays("float32", shape, elements=WEIGHTS))
    pattern = NofM(n, m, axis)
    mask = pattern.mask(scores, -1, pattern.fixed)
    np.testing.assert_array_equal(mask, twin.n_of_m(scores, n, m, axis))
    groups = np.moveaxis(mask, axis, -1).reshape(-1, m)
    assert set(groups.sum(1)) == {n}


def test_n_of_m_on_the_way_removes_one_after_the_other():
    scores = np.arange(16.0).reshape(8, 2)
    kept = [NofM(1, 4).mask(scores, -1, s).sum() for s in (0, 0.2, 0.5, 0.7, 0.75)]
    assert kept == [16, 12, 8, 4, 4]
    assert NofM(2, 4).mask(scores, -1, 0.9).sum() == 8, "never fewer than n"


@given(_arrays(), st.data())
def test_blocks_pool_to_means_and_expand_to_whole_blocks(scores, data):
    rank = data.draw(st.integers(1, scores.ndim))
    block = tuple(data.draw(st.integers(1, 4)) for _ in range(rank))
    pattern = Blocks(block)
    pooled = pattern.pool(KERNEL, scores)
    # Sums in another order.
    np.testing.assert_allclose(pooled, twin.block_mean(scores, block), atol=1e-12)
    numbered = np.arange(pooled.size).reshape(pooled.shape)
    spread = pattern.expand(KERNEL, numbered, scores.shape)
    assert spread.shape == scores.shape
    np.testing.assert_array_equal(pattern.pool(KERNEL, spread), numbered)


def test_pooling_by_the_largest():
    scores = np.array([[1.0, 5.0, 2.0], [3.0, 0.0, 7.0]])
    pooled = Blocks((2, 2), pooling="max").pool(KERNEL, scores)
    np.testing.assert_array_equal(pooled, [[5.0, 7.0]])
    np.testing.assert_array_equal(Rows("max").pool(KERNEL, scores), [[5.0], [7.0]])


@pytest.mark.parametrize(
    ("pattern", "path", "layer", "axes"),
    [
        (Rows(), "d/kernel", keras.layers.Dense(2), (2,)),
        (Columns(), "d/kernel", keras.layers.Dense(2), (3,)),
        (Filters(), "c/kernel", keras.layers.Conv2D(2, 2), (3,)),
        (Filters(), "c/kernel", keras.layers.DepthwiseConv2D(2), (2, 3)),
        (Filters(), "c/kernel", keras.layers.Conv2DTranspose(2, 2), (2,)),
    ],
)
def test_slices_go_as_a_whole(pattern, path, layer, axes):
    target = Target(path, layer=layer)
    scores = np.random.default_rng(0).random((2, 3, 4, 5))
    units = pattern.pool(target, scores)
    other = tuple(a for a in range(4) if a not in axes)
    np.testing.assert_allclose(units, scores.mean(other, keepdims=True))
    mask = pattern.expand(target, pattern.mask(units, 2, 0.5), scores.shape)
    assert mask.shape == scores.shape
    slices = mask.mean(other)
    assert set(slices.ravel()) == {0.0, 1.0}
    assert (slices == 0).sum() == 2


@given(st.lists(_arrays(2), min_size=1, max_size=4), st.floats(0, 0.99))
def test_global_is_one_order_over_all_weights(weights, sparsity):
    group = [_member(w) for w in weights]
    masks = choose(
        group,
        sparsity,
        score=Magnitude(),
        pattern=Unstructured(),
        distribution=Global(),
    )
    expected = twin.global_masks([np.abs(w) for w in weights], sparsity)
    for mask, other in zip(masks, expected, strict=True):
        np.testing.assert_array_equal(mask, other)


def test_global_counts_units_by_their_weights():
    # Rows of 2 and of 10 weights: 12 of 24 are one large row and one small one.
    small, large = _units(np.zeros((2, 2))), _units(np.zeros((2, 10)))
    pools = [
        Units(u.target, u.shape, np.array(s)[:, None])
        for u, s in ((small, [1.0, 3.0]), (large, [2.0, 4.0]))
    ]
    assert Global().counts(pools, 0.5) == [1, 1]
    assert Global().counts(pools, 0.4) == [1, 0]


def test_global_leaves_something_of_every_weight():
    units = [_units(np.arange(10.0)), _units(100 + np.arange(10.0))]
    assert Global().counts(units, 0.5) == [10, 0]
    assert Global(limit=0.8).counts(units, 0.5) == [8, 2]


SHAPES = st.lists(
    st.lists(st.integers(1, 30), min_size=1, max_size=4).map(tuple),
    min_size=1,
    max_size=5,
)


@given(SHAPES, st.floats(0.0, 0.99))
def test_erk_is_the_papers_and_keeps_the_total(shapes, sparsity):
    units = [_units(np.zeros(s)) for s in shapes]
    shares = ERK().shares(units, sparsity)
    expected = twin.erk_density(shapes, 1 - sparsity)
    np.testing.assert_allclose(1 - np.array(shares), expected, atol=1e-9)
    counts = ERK().counts(units, sparsity)
    total = sum(u.size for u in units)
    # Each weight's number of zeros is rounded for itself.
    assert abs(sum(counts) - sparsity * total) <= 0.5 * len(units) + 1e-6


@given(
    st.lists(st.floats(0.05, 0.95), min_size=1, max_size=5),
    st.floats(0.0, 0.9),
    st.floats(0.9, 1.0),
)
def test_shares_by_sensitivity_are_scaled_to_the_total(given_, sparsity, limit):
    units = [_units(np.zeros(1000), f"layer{i}/kernel") for i in range(len(given_))]
    distribution = BySensitivity(
        {f"layer{i}": s for i, s in enumerate(given_)}, limit=limit
    )
    np.testing.assert_allclose(
        distribution.shares(units, None), np.minimum(given_, limit)
    )
    shares = np.array(distribution.shares(units, sparsity))
    assert shares.max() <= limit + 1e-9
    assert shares.mean() == pytest.approx(sparsity, abs=1e-9)
    free = shares < limit - 1e-9
    ratio = shares[free] / np.array(given_)[free]
    np.testing.assert_allclose(ratio, ratio[:1].repeat(len(ratio)), atol=1e-9)


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.floats(0.05, 0.9))
def test_curves_give_every_weight_the_same_loss(seed, sparsity):
    rng = np.random.default_rng(seed)
    grid = np.array([0.0, 0.3, 0.6, 0.9, 1.0])
    curves = {
        f"l{i}/kernel": np.stack([grid, np.cumsum(rng.random(5)) - 0.0], 1).tolist()
        for i in range(3)
    }
    units = [_units(np.zeros(500 * (i + 1)), f"l{i}/kernel") for i in range(3)]
    shares = BySensitivity(curves).shares(units, sparsity)
    sizes = np.array([500, 1000, 1500])
    losses = [
        np.interp(s, *np.array(c).T)
        for s, c in zip(shares, curves.values(), strict=True)
    ]
    inside = [loss for s, loss in zip(shares, losses, strict=True) if 0 < s < 1]
    if inside:
        assert max(inside) - min(inside) < 1e-9
    reachable = sum(
        n for n, c in zip(sizes, curves.values(), strict=True) if c[0][1] < max(losses)
    )
    if reachable == sizes.sum():
        assert np.dot(shares, sizes) / sizes.sum() == pytest.approx(sparsity, abs=1e-6)


def test_erk_of_two_layers_by_hand():
    # Raw densities (2 + 8) / 16 and (4 + 4) / 16; half of 32 weights are kept.
    units = [_units(np.zeros((2, 8))), _units(np.zeros((4, 4)))]
    np.testing.assert_allclose(ERK().shares(units, 0.5), [1 - 10 / 18, 1 - 8 / 18])


def test_lamp_of_three_weights_by_hand():
    scores = Lamp()(_member(np.array([3.0, -1.0, 2.0])))
    np.testing.assert_allclose(scores, [1.0, 1 / 14, 4 / 13])


@pytest.mark.parametrize(("sparsity", "zeros"), [(0.0, 0), (0.25, 2), (0.5, 4)])
def test_of_equal_weights_exactly_so_many_go(sparsity, zeros):
    (mask,) = choose(
        [_member(np.ones((2, 4), "float32"))],
        sparsity,
        score=Magnitude(),
        pattern=Unstructured(),
        distribution=Uniform(),
    )
    assert int((mask == 0).sum()) == zeros


def test_uniform_rounds_for_every_weight():
    assert Uniform().counts([_units(np.ones(7)), _units(np.ones((2, 5)))], 0.5) == [
        4,
        5,
    ]


@given(hnp.arrays("float32", (3, 4), elements=WEIGHTS))
def test_scores_are_their_formulas(weight):
    rng = np.random.default_rng(0)
    g, h = rng.normal(size=(3, 4)), rng.random((3, 4))
    member = _member(weight, gradient=g, squared_gradient=h)
    w = weight.astype("float64")
    np.testing.assert_array_equal(Magnitude()(member), np.abs(w))
    np.testing.assert_allclose(Taylor()(member), np.abs(g * w), rtol=1e-12)
    np.testing.assert_array_equal(SNIP()(member), Taylor()(member))
    np.testing.assert_allclose(HessianDiagonal()(member), h * w * w / 2, rtol=1e-12)
    np.testing.assert_allclose(Lamp()(member), twin.lamp(weight), rtol=1e-12)


def test_random_depends_on_seed_and_place():
    weight = np.ones((5, 5), "float32")
    here, there = Member(KERNEL, weight, {}), Member(KERNEL, weight, {}, place=1)
    np.testing.assert_array_equal(Random(1)(here), Random(1)(here))
    assert not np.array_equal(Random(1)(here), Random(2)(here))
    assert not np.array_equal(Random(1)(here), Random(1)(there))
    assert Random()(here).min() >= 0


def test_removed_weights_go_first_whatever_their_hidden_value():
    weight = np.array([9.0, 1.0, 2.0, 3.0], "float32")
    mask = np.array([0, 1, 1, 1], "float32")
    options = {
        "score": Magnitude(),
        "pattern": Unstructured(),
        "distribution": Uniform(),
    }
    (chosen,) = choose([_member(weight, mask)], 0.5, **options)
    np.testing.assert_array_equal(chosen, [0, 0, 1, 1])
    (chosen,) = choose([_member(weight, mask)], 0.5, **options, every=True)
    np.testing.assert_array_equal(chosen, [1, 0, 0, 1])


COMBINATIONS = [
    (score, pattern, distribution)
    for score in (Magnitude(), Taylor(), HessianDiagonal(), Random(), Lamp())
    for pattern in (Unstructured(), Blocks((2, 1)), Rows(), Columns(), NofM(2, 4))
    for distribution in (Uniform(), Global(), ERK(), BySensitivity({"dense": 0.5}))
    if not isinstance(pattern, NofM) or isinstance(distribution, Uniform)
]


@pytest.mark.parametrize(("score", "pattern", "distribution"), COMBINATIONS)
def test_all_combinations_reach_the_sparsity(score, pattern, distribution):
    prune = dlopt.Prune(0.5, score=score, pattern=pattern, distribution=distribution)
    rng = np.random.default_rng(0)
    group = [
        Member(
            Target(f"{name}/dense"),
            rng.normal(size=shape).astype("float32"),
            {"mask": np.ones(shape, "float32")},
            {"gradient": rng.normal(size=shape), "squared_gradient": rng.random(shape)},
        )
        for name, shape in {"a": (16, 20), "b": (20, 12)}.items()
    ]
    if score.statistics:
        masks = [change["mask"] for change in prune.update(group, 0)]
    else:
        states = prune.init_group([m.target for m in group], [m.weight for m in group])
        masks = [state["mask"].value for state in states]
    zeros = sum((m == 0).sum() for m in masks)
    # A whole slice of 20 weights is the coarsest unit.
    assert abs(zeros - 0.5 * (16 * 20 + 20 * 12)) <= 20
    again = dlopt.Prune.from_config(prune.get_config())
    assert again.get_config() == prune.get_config()
    assert repr(again) == repr(prune)
