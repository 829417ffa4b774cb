"""What happens over the steps: once, exchange, rewind, movement, and in a chain."""

import json
import pathlib

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import keras_dlopt as dlopt
from keras_dlopt.graph.targets import Target
from keras_dlopt.schedules import (
    LotterySparsity,
    OneShotSparsity,
    PolynomialSparsity,
    RegrowSparsity,
)
from keras_dlopt.transforms import Member
from keras_dlopt.transforms.prune import (
    ERK,
    Columns,
    Movement,
    NofM,
    Random,
    Unstructured,
)
from keras_dlopt.transforms.prune.rules import exchange
from reference import prune as twin

KERNELS = dlopt.named("kernel")
GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "tfmot_masks.json"


def _data(n=48):
    rng = np.random.default_rng(0)
    return (
        rng.normal(size=(n, 6)).astype("float32"),
        rng.normal(size=(n, 4)).astype("float32"),
    )


def _small(transform, layers=1):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((6,)), *(keras.layers.Dense(4) for _ in range(layers))]
    )
    small = dlopt.transform(model, dlopt.Recipe([(KERNELS, transform)]))
    small.compile(keras.optimizers.SGD(0.05), "mse")
    return small


def _fit(small, *callbacks, epochs=1):
    small.fit(
        *_data(),
        batch_size=4,
        epochs=epochs,
        shuffle=False,
        verbose=0,
        callbacks=list(callbacks),
    )
    return small


def _state(small, name="mask", slot=0):
    return small.groups[0].slots[slot].state[name].numpy()


class _Watch(keras.callbacks.Callback):
    """What every step starts with: the state, and the latent kernel."""

    def __init__(self, small):
        super().__init__()
        self.small, self.masks, self.kernels = small, [], []

    def on_train_batch_begin(self, batch, logs=None):
        slot = self.small.groups[0].slots[0]
        self.masks.append(slot.state["mask"].numpy())
        self.kernels.append(slot.target.variable.numpy())


def test_one_shot_prunes_once():
    small = _small(dlopt.Prune(OneShotSparsity(0.5, at=3)))
    watch = _Watch(small)
    _fit(small, watch)
    zeros = [(m == 0).sum() for m in watch.masks]
    assert zeros == [0, 0, 0] + [12] * 9
    np.testing.assert_array_equal(
        watch.masks[3], twin.lowest(np.abs(watch.kernels[3]), 12)
    )
    assert OneShotSparsity(0.5, at=3).next_due(3) is None
    assert float(OneShotSparsity(0.5, at=3)(2)) == 0
    assert float(OneShotSparsity(0.5, at=3)(3)) == 0.5


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.floats(0.1, 0.9), st.floats(0.05, 0.9))
def test_exchange_is_the_papers(seed, sparsity, fraction):
    rng = np.random.default_rng(seed)
    weight = rng.integers(-4, 5, (5, 7)).astype("float32")  # with ties
    gradient = rng.integers(-4, 5, (5, 7)).astype("float64")
    mask = twin.lowest(rng.random((5, 7)), round(35 * sparsity)).astype("float32")
    schedule = RegrowSparsity(sparsity, end=100, fraction=fraction)
    member = Member(Target("w"), weight, {"mask": mask}, {"gradient": gradient})
    change = exchange(member, schedule, 30, Unstructured())
    share = fraction / 2 * (1 + np.cos(np.pi * 0.3))
    moved = min(round(share * int(mask.sum())), int((mask == 0).sum()))
    if moved == 0:
        assert change == {}
        return
    new, value = twin.regrow(weight, gradient, mask, moved)
    np.testing.assert_array_equal(change["mask"], new)
    np.testing.assert_array_equal(change["weight"], value)
    assert change["mask"].sum() == mask.sum()


def test_regrowth_in_fit_keeps_the_sparsity_and_moves_the_mask():
    schedule = RegrowSparsity(0.5, end=10, begin=2, frequency=2, fraction=0.5)
    small = _small(dlopt.Prune(schedule, score=Random(), distribution=ERK()))
    watch = _Watch(small)
    _fit(small, watch)
    assert [(m == 0).sum() for m in watch.masks] == [0] * 2 + [12] * 10
    changed = [
        bool((a != b).any())
        for a, b in zip(watch.masks[2:], watch.masks[3:], strict=False)
    ]
    # Updates before steps 4, 6, 8; at 10 the share is 0.
    assert all(not c for i, c in enumerate(changed, 3) if i % 2 or i > 8)
    assert any(changed)
    # A weight that comes back starts at zero.
    fresh = (watch.masks[4] == 1) & (watch.masks[3] == 0)
    assert fresh.any()
    assert not watch.kernels[4][fresh].any()
    assert dlopt.finalize(small)


def test_regrowth_at_random_moves_whole_columns():
    schedule = RegrowSparsity(0.5, end=10, frequency=2, fraction=0.5, grow="random")
    small = _small(dlopt.Prune(schedule, pattern=Columns()))
    watch = _Watch(small)
    _fit(small, watch)
    for mask in watch.masks:
        assert sorted(mask.mean(0)) == [0, 0, 1, 1]
    assert any((m != watch.masks[0]).any() for m in watch.masks)


def test_lottery_rewinds_and_prunes_in_rounds():
    schedule = LotterySparsity(0.75, rounds=2, every=4, begin=2)
    small = _small(dlopt.Prune(schedule))
    watch = _Watch(small)
    _fit(small, watch)
    assert [(m == 0).sum() for m in watch.masks] == [0] * 6 + [12] * 4 + [18] * 2
    early = watch.kernels[2]
    for step in (6, 10):
        np.testing.assert_array_equal(watch.kernels[step], early)
        assert (watch.masks[step] <= watch.masks[step - 1]).all()
    assert (watch.kernels[5] != early).any()
    # The mask of round 1 is chosen by the trained values.
    again = _small(dlopt.Prune(LotterySparsity(0.75, rounds=2, every=400, begin=2)))
    final = _Watch(again)
    _fit(again, final)
    np.testing.assert_array_equal(
        watch.masks[6], twin.lowest(np.abs(final.kernels[6]), 12)
    )


@pytest.mark.parametrize("rounds", [1, 3, 7])
def test_lottery_removes_the_same_share_each_round(rounds):
    schedule = LotterySparsity(0.9, rounds=rounds, every=10, begin=5)
    kept = [1 - schedule.value(5 + 10 * r) for r in range(rounds + 1)]
    ratios = np.array(kept[1:]) / np.array(kept[:-1])
    np.testing.assert_allclose(ratios, 0.1 ** (1 / rounds))
    for step in (0, 4, 5, 14, 15, 1000):
        assert float(schedule(step)) == pytest.approx(schedule.value(step), abs=1e-6)
    due, step = [], -1
    while (step := schedule.next_due(step)) is not None:
        due.append(step)
    assert due == [5 + 10 * r for r in range(rounds + 1)]


def test_movement_follows_straight_through_gradient_descent():
    schedule = PolynomialSparsity(0.5, end=8, begin=4, frequency=4)
    small = _small(dlopt.Prune(schedule, score=Movement()))
    layer = small.model.layers[0]
    w, b = (v.numpy().astype("float64") for v in (layer.kernel, layer.bias))
    score, mask = np.zeros_like(w), np.ones_like(w)
    x, y = (v.astype("float64") for v in _data())
    for step in range(12):
        if step in (4, 8):
            zeros = round(schedule.value(step) * w.size)
            mask = twin.lowest(score, zeros)
        xs, ys = x[4 * step : 4 * step + 4], y[4 * step : 4 * step + 4]
        slope = 2 * (xs @ (w * mask) + b - ys) / ys.size
        g = xs.T @ slope
        w, score = w - 0.05 * g * mask, score - 0.05 * g * w
        b = b - 0.05 * slope.sum(0)
    _fit(small)
    np.testing.assert_array_equal(_state(small), mask)
    # float32 against float64 over twelve steps
    np.testing.assert_allclose(_state(small, "score"), score, atol=1e-6)
    np.testing.assert_allclose(layer.kernel.numpy(), w, atol=1e-6)


def test_regrow_trains_hidden_weights_and_lets_them_back():
    schedule = PolynomialSparsity(0.5, end=8, initial=0.5, frequency=4)
    small = _small(dlopt.Prune(schedule, regrow=True))
    layer = small.model.layers[0]
    w, b = (v.numpy().astype("float64") for v in (layer.kernel, layer.bias))
    x, y = (v.astype("float64") for v in _data())
    for step in range(12):
        if step in (0, 4, 8):
            mask = twin.lowest(np.abs(w), 12)
        xs, ys = x[4 * step : 4 * step + 4], y[4 * step : 4 * step + 4]
        slope = 2 * (xs @ (w * mask) + b - ys) / ys.size
        w, b = w - 0.05 * (xs.T @ slope), b - 0.05 * slope.sum(0)
    _fit(small)
    np.testing.assert_array_equal(_state(small), mask)
    np.testing.assert_allclose(layer.kernel.numpy(), w, atol=1e-6)


def test_n_of_m_is_reached_step_by_step():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(3)])
    schedule = PolynomialSparsity(0.5, end=4, frequency=2, power=1)
    rule = dlopt.Prune(schedule, pattern=NofM(2, 4))
    small = dlopt.transform(model, dlopt.Recipe([(KERNELS, rule)]))
    kept = []
    for step in range(5):
        small.update_transforms(step)
        kept.append(_state(small).reshape(2, 4, 3).sum(1).ravel().tolist())
    assert kept == [[4] * 6] * 2 + [[3] * 6] * 2 + [[2] * 6]


def test_a_chain_sees_the_zeros_of_a_number_and_of_a_schedule():
    rule = dlopt.Prune(0.5, distribution=ERK()) >> dlopt.Cluster(4)
    small = _small(rule, layers=2)
    assert (dlopt.finalize(small).weights[0].numpy() == 0).sum() > 0
    state = small.groups[0].slots[0].arrays()
    np.testing.assert_array_equal(state["1_index"] == 0, state["0_mask"] == 0)


def test_masks_are_those_of_tfmot_on_the_same_weights():
    golden = json.loads(GOLDEN.read_text())
    schedule = PolynomialSparsity(**golden["schedule"])
    rule = dlopt.Prune(schedule, pattern=Unstructured(ties="keep"), regrow=True)
    assert len(golden["updates"]) == 6
    for update in golden["updates"]:
        step = update["step"]
        group = [
            Member(Target(name), np.float32(w), {"mask": np.ones(np.shape(w))})
            for name, w in zip("ab", update["weights"], strict=True)
        ]
        for change, mask in zip(rule.update(group, step), update["masks"], strict=True):
            np.testing.assert_array_equal(change["mask"], mask)
        for member, mask in zip(group, update["masks"], strict=True):
            expected = twin.tfmot_mask(member.weight, schedule.value(step))
            np.testing.assert_array_equal(expected, mask)


@pytest.mark.parametrize(
    "rule",
    [
        dlopt.Prune(LotterySparsity(0.75, rounds=3, every=4, begin=1)),
        dlopt.Prune(PolynomialSparsity(0.6, end=20, frequency=3), score=Movement()),
        dlopt.Prune(PolynomialSparsity(0.6, end=20, frequency=3), regrow=True),
    ],
    ids=["lottery", "movement", "regrow"],
)
def test_a_resumed_run_repeats_the_unbroken_one(tmp_path, rule):
    class Kill(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                raise KeyboardInterrupt

    def backup():
        return keras.callbacks.BackupAndRestore(str(tmp_path / "backup"))

    whole = _fit(_small(rule), epochs=2)
    with pytest.raises(KeyboardInterrupt):
        _fit(_small(rule), backup(), Kill(), epochs=2)
    resumed = _fit(_small(rule), backup(), epochs=2)
    for a, b in zip(whole.weights, resumed.weights, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())
