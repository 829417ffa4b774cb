"""Values that are wrong or contradict each other, and what the texts say."""

import keras
import numpy as np
import pytest

import keras_dlopt as dlopt
from keras_dlopt.errors import ConfigError, ModelError
from keras_dlopt.graph.targets import Target
from keras_dlopt.schedules import (
    ConstantSparsity,
    LotterySparsity,
    OneShotSparsity,
    PolynomialSparsity,
    RegrowSparsity,
)
from keras_dlopt.transforms.prune import (
    ERK,
    Blocks,
    BySensitivity,
    Distribution,
    Filters,
    Global,
    Movement,
    NofM,
    Random,
    Rows,
    Score,
    Taylor,
    Unstructured,
)
from keras_dlopt.transforms.prune.distribution import Units
from keras_dlopt.transforms.prune.pattern import Slices

KERNELS = dlopt.named("kernel")


def _refused(text, make):
    with pytest.raises(ConfigError, match=text):
        make()


@pytest.mark.parametrize(
    ("text", "make"),
    [
        (r"NofM\(n=2, m=4.*fixes|means a sparsity of 0.5. Received: sparsity=0.9",
         lambda: dlopt.Prune(0.9, pattern=NofM(2, 4))),
        ("means a sparsity of 0.5.*end the schedule at 0.5",
         lambda: dlopt.Prune(PolynomialSparsity(0.9, end=9), pattern=NofM(2, 4))),
        ("in every weight, which contradicts Global",
         lambda: dlopt.Prune(pattern=NofM(2, 4), distribution=Global())),
        ("cannot be combined with RegrowSparsity.*break the groups",
         lambda: dlopt.Prune(RegrowSparsity(0.5, end=9), pattern=NofM(2, 4))),
        ("learns its scores during training.*at step 0",
         lambda: dlopt.Prune(0.9, score=Movement())),
        ("learns its scores during training",
         lambda: dlopt.Prune(ConstantSparsity(0.5), score=Movement())),
        ("brings weights back by a rule of its own.*regrow=True",
         lambda: dlopt.Prune(RegrowSparsity(0.5, end=9), regrow=True)),
        (r"brings weights back.*Movement\(\). Use one",
         lambda: dlopt.Prune(RegrowSparsity(0.5, begin=2, end=9), score=Movement())),
        ("sparsity must be a number.*Received: None. Only NofM",
         lambda: dlopt.Prune()),
        ("sparsity must be a number",
         lambda: dlopt.Prune(distribution=BySensitivity({"a": [(0, 0), (1, 1)]}))),
        (r"score must be a Score, such as Magnitude\(\). Received: 'magnitude'",
         lambda: dlopt.Prune(0.5, score="magnitude")),
        (r"pattern must be a Pattern, such as NofM\(2, 4\)",
         lambda: dlopt.Prune(0.5, pattern=(2, 4))),
        (r"distribution must be a Distribution, such as Global\(\)",
         lambda: dlopt.Prune(0.5, distribution="global")),
    ],
)  # fmt: skip
def test_contradictions(text, make):
    _refused(text, make)


@pytest.mark.parametrize(
    ("text", "make"),
    [
        ("n < m must hold. Received: n=4, m=4", lambda: NofM(4, 4)),
        ("n must be a whole number, 1 or greater. Received: 0.5", lambda: NofM(0.5, 4)),
        ("ties must be 'index' or 'keep'", lambda: Unstructured(ties="first")),
        (r"shape\[0\] must be a whole number, 1 or greater", lambda: Blocks((0, 2))),
        (r"shape must be a tuple. Received: 4. It is as in Blocks\(\(4",
         lambda: Blocks(4)),
        ("pooling must be 'mean' or 'max'. Received: 'sum'",
         lambda: Blocks((2,), pooling="sum")),
        ("pooling must be 'mean' or 'max'", lambda: Rows("sum")),
        ("seed must be a whole number, 0 or greater", lambda: Random(-1)),
        (r"limit must be a number in \(0, 1\]. Received: 0", lambda: Global(0)),
        (r"limit must be a number in", lambda: BySensitivity({"a": 0.5}, limit=2)),
        ("of must map paths of weights to shares", lambda: BySensitivity({})),
        ("shares for all weights, or curves for all",
         lambda: BySensitivity({"a": 0.5, "b": [(0, 0), (1, 1)]})),
        (r"sensitivity of 'a' must be a share of zeros in \[0, 1\), or pairs",
         lambda: BySensitivity({"a": 1.5})),
        ("that rise in both", lambda: BySensitivity({"a": [(0, 1), (0.5, 0)]})),
        ("at must be a whole number, 0 or greater",
         lambda: OneShotSparsity(0.5, at=-1)),
        ("fraction must be a number in .0, 1.. Received: 1.*share of the kept",
         lambda: RegrowSparsity(0.5, end=9, fraction=1)),
        ("grow must be 'gradient' or 'random'",
         lambda: RegrowSparsity(0.5, end=9, grow="up")),
        ("begin <= end must hold", lambda: RegrowSparsity(0.5, end=9, begin=10)),
        ("rounds must be a whole number, 1 or greater",
         lambda: LotterySparsity(0.5, rounds=0, every=9)),
        ("every must be a whole number",
         lambda: LotterySparsity(0.5, rounds=1, every=0)),
        ("begin must be a whole number",
         lambda: LotterySparsity(0.5, rounds=1, every=1, begin=-1)),
    ],
)  # fmt: skip
def test_arguments(text, make):
    _refused(text, make)


def _transform(rule, selector=KERNELS, units=6):
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(units, name="d")])
    return dlopt.transform(model, dlopt.Recipe([(selector, rule)]))


@pytest.mark.parametrize(
    ("text", "rule", "selector"),
    [
        (r"of 'd/kernel' to be a multiple of 4. It has length 6, shape \(6, 6\)",
         dlopt.Prune(pattern=NofM(2, 4)), KERNELS),
        (r"'d/bias' has shape \(6,\), so it has no axis -2",
         dlopt.Prune(pattern=NofM(2, 4)), dlopt.named("bias")),
        (r"needs a weight of rank 2 or more. 'd/bias' has shape",
         dlopt.Prune(0.5, pattern=Blocks((2, 2))), dlopt.everything()),
        (r"Filters\(\) needs weights of rank 2 or more. 'd/bias'",
         dlopt.Prune(0.5, pattern=Filters()), dlopt.everything()),
        ("BySensitivity says nothing about 'd/kernel'. It knows: .'other'",
         dlopt.Prune(0.5, distribution=BySensitivity({"other": 0.5})), KERNELS),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit(text, rule, selector):
    _refused(text, lambda: _transform(rule, selector))


def test_what_replaces_the_weight_comes_first_in_a_chain():
    lottery = dlopt.Prune(LotterySparsity(0.5, rounds=1, every=2))
    assert (lottery >> dlopt.FakeQuant(bits=8)).sets_weight
    _refused(
        "LotterySparsity.* replaces the trained weight itself, so it must be the first",
        lambda: dlopt.Cluster(4) >> lottery,
    )


def test_a_score_of_gradients_that_never_ran():
    small = _transform(dlopt.Prune(0.5, score=Taylor()))
    with pytest.raises(ModelError, match=r"Prune\(.*score=Taylor\(\)\) fol"):
        dlopt.finalize(small)


def test_a_member_without_what_a_chain_needs_is_told():
    rule = dlopt.Prune(0.5, score=Taylor()) >> dlopt.FakeQuant(bits=8)
    assert rule.statistics == ("gradient",)
    small = _transform(rule)
    _refused("needs the gradient of", lambda: small.update_transforms(0))


@pytest.mark.parametrize(
    ("rule", "steps", "text"),
    [
        (dlopt.Prune(OneShotSparsity(0.5, at=3)), (), None),
        (dlopt.Prune(RegrowSparsity(0.5, end=9, frequency=2, grow="random")), (0, 2),
         "pruned weights are exchanged until step 9"),
        (dlopt.Prune(LotterySparsity(0.75, rounds=2, every=4)), (0, 4),
         "round 1 of 2 is over, at sparsity 0.5 of 0.75, due at step 8"),
        (dlopt.Prune(PolynomialSparsity(0.5, end=9), distribution=ERK()), (0,),
         "pruning is at sparsity 0 of 0.5, due at step 9"),
    ],
)  # fmt: skip
def test_finalizing_early_says_what_remains(rule, steps, text):
    small = _transform(rule)
    for step in steps:
        small.update_transforms(step)
    if text is None:
        with pytest.raises(ModelError, match="was never updated"):
            dlopt.finalize(small)
    else:
        with pytest.warns(UserWarning, match=text):
            dlopt.finalize(small)


def test_finalizing_at_the_end_is_silent():
    for schedule, steps in (
        (OneShotSparsity(0.5, at=3), (3,)),
        (RegrowSparsity(0.5, end=4, frequency=2, grow="random"), (0, 2, 4)),
        (RegrowSparsity(0.5, end=3, frequency=2, grow="random"), (0, 2)),
        (LotterySparsity(0.75, rounds=2, every=4), (0, 4, 8)),
    ):
        small = _transform(dlopt.Prune(schedule))
        for step in steps:
            small.update_transforms(step)
        assert (dlopt.finalize(small).weights[0].numpy() == 0).mean() >= 0.5


def test_what_a_subclass_must_write():
    units = Units(Target("a"), (2,), np.ones(2))
    for missing, call in (
        ("Score must define __call__", lambda: Score()(None)),
        (
            "Distribution must define shares",
            lambda: Distribution().shares([units], 0.5),
        ),
        (r"Slices must define axes", lambda: Slices().axes(Target("a"), 2)),
    ):
        with pytest.raises(TypeError, match=missing):
            call()
