"""Gradients for scores: their values, their data, and what they leave alone."""

import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_dlopt as dlopt
from keras_dlopt.errors import ConfigError
from keras_dlopt.schedules import OneShotSparsity, PolynomialSparsity, RegrowSparsity
from keras_dlopt.select import at
from keras_dlopt.transforms import SoftWeightSharing
from keras_dlopt.transforms.batches import DrawnBatches, fit_data
from keras_dlopt.transforms.prune import Global, Taylor

KERNELS = dlopt.named("kernel")


def _data(n=32):
    rng = np.random.default_rng(0)
    return (
        rng.normal(size=(n, 6)).astype("float32"),
        rng.normal(size=(n, 3)).astype("float32"),
    )


def _small(transform, *, extra=()):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(8, name="a", kernel_regularizer="l2"),
            *extra,
            keras.layers.Dense(3, name="b"),
        ]
    )
    return dlopt.transform(model, dlopt.Recipe([(KERNELS, transform)]))


def _compiled(small, **kwargs):
    small.compile(keras.optimizers.SGD(0.05, momentum=0.9), "mse", **kwargs)
    return small


def _masks(small):
    return [slot.state["mask"].numpy() for slot in small.groups[0].slots]


def _hand_gradients(small, x, y):
    """Of the mean squared error of two dense layers and an L2 term, in float64.

    The term is that of the weights the layer sees, 0.01 (w1 m1)^2.
    """
    w1, b1, w2, b2 = (v.numpy().astype("float64") for v in small.model.weights)
    m1, m2 = (m.astype("float64") for m in _masks(small))
    hidden = x @ (w1 * m1) + b1
    slope = 2 * (hidden @ (w2 * m2) + b2 - y) / y.size
    decay = 2 * 0.01 * (w1 * m1)
    return x.T @ (slope @ (w2 * m2).T) + decay, hidden.T @ slope


def test_gradients_are_those_at_the_masked_weights_also_where_masked():
    small = _compiled(_small(dlopt.Prune(0.5)))
    x, y = _data()
    statistics = dlopt.Statistics(small, (x, y), batches=4, batch_size=8)
    rows = np.random.default_rng([0, 7]).permutation(32).reshape(4, 8)
    each = [_hand_gradients(small, x[r], y[r]) for r in rows]
    for place, slot in enumerate(small.groups[0].slots):
        variable = slot.target.variable
        got = statistics(variable, "gradient", 7)
        square = statistics(variable, "squared_gradient", 7)
        wanted = [g[place] for g in each]
        # float32 against float64
        np.testing.assert_allclose(got, np.mean(wanted, 0), atol=2e-7)
        np.testing.assert_allclose(square, np.mean(np.square(wanted), 0), atol=2e-7)
        assert np.abs(got[_masks(small)[place] == 0]).max() > 0


def test_where_all_examples_are_alike_the_mean_square_is_the_square_of_the_mean():
    small = _compiled(_small(dlopt.Prune(0.5)))
    x, y = (np.repeat(values[:1], 32, axis=0) for values in _data())
    statistics = dlopt.Statistics(small, (x, y), batches=4, batch_size=8)
    for slot in small.groups[0].slots:
        mean, square = (
            statistics(slot.target.variable, name, 0)
            for name in ("gradient", "squared_gradient")
        )
        np.testing.assert_allclose(square, np.square(mean), rtol=1e-5)


def test_measuring_changes_nothing():
    extra = [keras.layers.BatchNormalization(), keras.layers.Dropout(0.5, seed=1)]
    small = _compiled(_small(dlopt.Prune(0.5), extra=extra), metrics=["mae"])
    x, y = _data()
    small.evaluate(x, y, verbose=0)
    before = [v.numpy() for v in (*small.variables, *small.metrics_variables)]
    kernel = small.groups[0].slots[0].target.variable
    assert np.any(dlopt.Statistics(small, (x, y))(kernel, "gradient", 0))
    after = [v.numpy() for v in (*small.variables, *small.metrics_variables)]
    for a, b in zip(before, after, strict=True):
        np.testing.assert_array_equal(a, b)


class _Counted(keras.utils.PyDataset):
    def __init__(self, x, y, **kwargs):
        super().__init__(**kwargs)
        self.x, self.y, self.read = x, y, []

    def __len__(self):
        return 4

    def __getitem__(self, i):
        self.read.append(i)
        return self.x[8 * i : 8 * i + 8], self.y[8 * i : 8 * i + 8]


def test_batches_depend_on_the_step_alone():
    x, y = _data()
    draw = DrawnBatches((x, y), count=2, batch_size=8)
    first, again, later = draw.at(3), draw.at(3), draw.at(4)
    np.testing.assert_array_equal(first[0][0], again[0][0])
    assert not np.array_equal(first[0][0], later[0][0])
    assert len({tuple(row) for xs, _, _ in first for row in xs}) == 16
    # An example's label stays its own.
    place = [np.flatnonzero((x == row).all(1))[0] for row in first[1][0]]
    np.testing.assert_array_equal(y[place], first[1][1])


def test_batches_of_every_kind_of_data():
    x, y = _data()
    dictionary = DrawnBatches(({"x": x}, [y, y]), count=1, batch_size=4).at(0)[0]
    assert dictionary[0]["x"].shape == (4, 6)
    assert dictionary[1][1].shape == (4, 3)
    assert dictionary[2] is None
    assert len(DrawnBatches((x[:5], y[:5]), count=9, batch_size=64).at(0)[0][0]) == 5
    weighted = DrawnBatches((x, y, np.ones(32)), count=1, batch_size=4).at(0)[0]
    assert weighted[2].shape == (4,)
    assert fit_data([x, x], None, None, 0.0)[0][1] is x
    alone = DrawnBatches(fit_data([x, x], None, None, 0.0), count=1, batch_size=4).at(
        0
    )[0]
    assert [a.shape for a in alone[0]] == [(4, 6)] * 2
    assert alone[1] is None
    source = _Counted(x, y)
    assert fit_data(source, None, None, 0.0) is source
    assert len(DrawnBatches(source, count=2, batch_size=1).at(0)) == 2
    assert len(source.read) == 2
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(32).batch(8)
    draw = DrawnBatches(dataset, count=2, batch_size=1)
    np.testing.assert_array_equal(draw.at(0)[1][0], draw.at(5)[1][0])


@pytest.mark.parametrize("kind", ["arrays", "dataset", "pydataset", "weighted"])
def test_fit_hands_its_data_on(kind):
    x, y = _data()
    small = _compiled(_small(dlopt.Prune(0.5, score=Taylor(), distribution=Global())))
    if kind == "arrays":
        small.fit(x, y, batch_size=8, validation_split=0.25, verbose=0)
    elif kind == "weighted":
        small.fit(x, y, sample_weight=np.ones(32), batch_size=8, verbose=0)
    elif kind == "dataset":
        dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
        small.fit(dataset, shuffle=False, verbose=0)
    else:
        small.fit(_Counted(x, y), verbose=0)
    zeros = sum((m == 0).sum() for m in _masks(small))
    assert zeros == 36
    assert dlopt.finalize(small)(x).shape == (32, 3)


def test_a_chain_is_pruned_before_the_first_step_too():
    x, y = _data()
    small = _compiled(
        _small(dlopt.Prune(0.5, score=Taylor()) >> dlopt.FakeQuant(bits=8))
    )
    small.fit(x, y, batch_size=8, verbose=0)
    state = small.groups[0].slots[0].state
    assert (state["0_mask"].numpy() == 0).sum() == 24
    assert (dlopt.finalize(small).weights[0].numpy() == 0).sum() >= 24


def test_the_callback_is_plain_data_but_for_the_data():
    update = dlopt.UpdateTransforms(_data(), batches=3, batch_size=5, seed=7)
    config = {"data": None, "batches": 3, "batch_size": 5, "seed": 7}
    assert update.get_config() == config
    assert dlopt.UpdateTransforms.from_config(config).get_config() == config


def test_the_split_off_validation_data_are_not_measured_on():
    x, y = _data()
    x[24:] = np.nan
    small = _compiled(_small(dlopt.Prune(0.5, score=Taylor())))
    update = dlopt.UpdateTransforms(batches=3)
    small.fit(x, y, batch_size=8, validation_split=0.25, verbose=0, callbacks=update)
    assert all(np.isfinite(v.numpy()).all() for v in small.model.weights)
    assert all((m == 0).sum() == m.size // 2 for m in _masks(small))


def test_masks_follow_from_gradients_of_the_step():
    x, y = _data()
    small = _compiled(_small(dlopt.Prune(OneShotSparsity(0.5, at=2), score=Taylor())))
    twin = _compiled(_small(dlopt.Prune(OneShotSparsity(0.5, at=9))))
    update = dlopt.UpdateTransforms(batches=2, batch_size=16)
    small.fit(x, y, batch_size=8, shuffle=False, verbose=0, callbacks=[update])
    twin.fit(x[:16], y[:16], batch_size=8, shuffle=False, verbose=0)
    _compare_masks(_masks(small), twin, x, y)


def _compare_masks(masks, twin, x, y):
    rows = np.random.default_rng([0, 2]).permutation(32).reshape(2, 16)
    gradients = [_hand_gradients(twin, x[r], y[r]) for r in rows]
    kernels = [twin.model.weights[0].numpy(), twin.model.weights[2].numpy()]
    for place, mask in enumerate(masks):
        score = np.abs(np.mean([g[place] for g in gradients], 0) * kernels[place])
        zeros = np.sort(score.ravel())[: mask.size // 2]
        np.testing.assert_array_equal(mask, score > zeros[-1])


@pytest.mark.parametrize("spe", [1, 2])
def test_a_resumed_run_repeats_the_unbroken_one(tmp_path, spe):
    x, y = _data()
    rule = dlopt.Prune(RegrowSparsity(0.6, end=12, frequency=2))

    class Kill(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    def fit(small, *callbacks):
        small.fit(
            x, y, batch_size=8, epochs=4, shuffle=False, verbose=0, callbacks=callbacks
        )
        return small

    def new():
        return _compiled(_small(rule), steps_per_execution=spe)

    def backup():
        return keras.callbacks.BackupAndRestore(str(tmp_path / "backup"))

    whole = fit(new())
    with pytest.raises(KeyboardInterrupt):
        fit(new(), backup(), Kill())
    resumed = fit(new(), backup())
    for a, b in zip(whole.weights, resumed.weights, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())


def test_nothing_is_measured_on_other_steps(monkeypatch):
    from keras_dlopt.transforms import statistics

    steps = []
    measure = statistics.Statistics._measure
    monkeypatch.setattr(
        statistics.Statistics,
        "_measure",
        lambda self, step: steps.append(step) or measure(self, step),
    )
    x, y = _data()
    small = _compiled(_small(dlopt.Prune(RegrowSparsity(0.5, end=6, frequency=3))))
    small.fit(x, y, batch_size=4, verbose=0)
    # The first mask needs no gradient, the last exchange moves no weight.
    assert steps == [3]


def test_a_model_by_hand_needs_data_of_its_own():
    x, y = _data()
    recipe = dlopt.Recipe([(KERNELS, dlopt.Prune(0.5, score=Taylor()))])
    layer = dlopt.TransformedLayer(keras.layers.Dense(3), recipe)
    model = keras.Sequential([keras.Input((6,)), layer])
    model.compile("sgd", "mse")
    with pytest.raises(ConfigError, match="need gradient on training data.*Pass Upd"):
        model.fit(x, y, verbose=0, callbacks=[dlopt.UpdateTransforms()])
    model.fit(x, y, verbose=0, callbacks=[dlopt.UpdateTransforms((x, y))])
    assert (layer.groups[0].slots[0].state["mask"].numpy() == 0).sum() == 9


def test_generators_are_refused_unless_there_is_a_sample():
    x, y = _data()

    def batches():
        while True:
            yield x, y

    small = _compiled(_small(dlopt.Prune(0.5, score=Taylor())))
    with pytest.raises(ConfigError, match=r"a generator.*UpdateTransforms\(data="):
        small.fit(batches(), steps_per_epoch=1, shuffle=False, verbose=0)
    update = dlopt.UpdateTransforms(data=(x, y))
    small.fit(
        batches(), steps_per_epoch=1, shuffle=False, verbose=0, callbacks=[update]
    )
    assert (_masks(small)[0] == 0).sum() == 24


def test_generators_do_where_no_gradient_is_needed():
    x, y = _data()
    small = _compiled(_small(dlopt.Prune(PolynomialSparsity(0.5, end=1))))
    batches = ((x, y) for _ in range(2))
    small.fit(batches, steps_per_epoch=1, shuffle=False, verbose=0)
    assert (_masks(small)[0] == 0).sum() == 24


def test_a_custom_loop_passes_them_in():
    x, y = _data()
    small = _compiled(_small(dlopt.Prune(0.5, score=Taylor())))
    with pytest.raises(ConfigError, match="at step 0 needs the gradient of .*Statis"):
        small.update_transforms(0)
    small.update_transforms(0, statistics=dlopt.Statistics(small, (x, y)))
    assert (_masks(small)[0] == 0).sum() == 24


def test_beside_a_transform_that_returns_the_weight_itself():
    x, y = _data()
    net = keras.Sequential(
        [keras.Input((6,)), keras.layers.Dense(8, name="a"), keras.layers.Dense(3)]
    )
    recipe = dlopt.Recipe(
        [
            (at("a/kernel"), dlopt.Prune(0.5, score=Taylor())),
            (KERNELS, SoftWeightSharing(2)),
        ]
    )
    small = _compiled(dlopt.transform(net, recipe))
    statistics = dlopt.Statistics(small, (x, y), batches=1, batch_size=32)
    small.update_transforms(0, statistics=statistics)
    assert (_masks(small)[0] == 0).sum() == 24
    w1, b1, w2, b2 = (v.numpy().astype("float64") for v in small.model.weights)
    hidden = x @ w1 + b1
    wanted = hidden.T @ (2 * (hidden @ w2 + b2 - y) / y.size)
    got = statistics(small.groups[1].slots[0].target.variable, "gradient", 0)
    # float32 against float64
    np.testing.assert_allclose(got, wanted, atol=2e-7)


def test_what_cannot_be_measured_on():
    x, y = _data()
    small = _small(dlopt.Prune(0.5))
    with pytest.raises(ConfigError, match="need its loss. Call compile"):
        dlopt.Statistics(small, (x, y))
    _compiled(small)
    kernel = small.groups[0].slots[0].target.variable
    with pytest.raises(ConfigError, match="gradients are empty"):
        dlopt.Statistics(small, [])(kernel, "gradient", 0)
    with pytest.raises(
        ConfigError, match="batches must be a whole number, 1 or greater"
    ):
        dlopt.UpdateTransforms(batches=0)
    with pytest.raises(ConfigError, match="batch_size must be a whole number"):
        dlopt.UpdateTransforms(batch_size=-1)


def test_other_backends_are_refused(monkeypatch):
    small = _compiled(_small(dlopt.Prune(0.5)))
    monkeypatch.setattr(keras.backend, "backend", lambda: "numpy")
    with pytest.raises(ConfigError, match="on the TensorFlow and JAX backends"):
        dlopt.Statistics(small, _data())


def test_mixed_precision():
    keras.config.set_dtype_policy("mixed_bfloat16")
    x, y = _data()
    small = _compiled(_small(dlopt.Prune(0.5)))
    statistics = dlopt.Statistics(small, (x, y), batches=1, batch_size=32)
    wanted = _hand_gradients(small, x.astype("float64"), y)
    for slot, gradient in zip(small.groups[0].slots, wanted, strict=True):
        got = statistics(slot.target.variable, "gradient", 0)
        # bfloat16 has eight bits.
        assert np.abs(got - gradient).max() < 0.05 * np.abs(gradient).max()


_TWO = """
import keras, numpy as np, tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(
    cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import keras_dlopt as dlopt
from keras_dlopt.transforms.prune import ERK

def masks(strategy):
    keras.utils.set_random_seed(0)
    with strategy.scope():
        net = keras.Sequential([keras.Input((6,)), keras.layers.Dense(8),
                                keras.layers.Dense(3)])
        rule = dlopt.Prune(
            dlopt.schedules.RegrowSparsity(0.5, end=9, frequency=2),
            distribution=ERK())
        small = dlopt.transform(net, dlopt.Recipe([(dlopt.named("kernel"), rule)]))
        small.compile(keras.optimizers.SGD(0.05), "mse")
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(32, 6)), rng.normal(size=(32, 3))
    small.fit(x, y, batch_size=4, shuffle=False, verbose=0)
    found = [slot.state["mask"].value for slot in small.groups[0].slots]
    return [[np.asarray(v) for v in strategy.experimental_local_results(m)]
            for m in found]

alone = masks(tf.distribute.get_strategy())
both = masks(tf.distribute.MirroredStrategy(
    ["CPU:0", "CPU:1"], tf.distribute.HierarchicalCopyAllReduce()))
for one, two in zip(alone, both, strict=True):
    assert len(two) == 2
    for mask in two:
        np.testing.assert_array_equal(mask, one[0])
print("equal")
"""


@pytest.mark.dist
def test_masks_are_the_same_on_every_replica():
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _TWO],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.stdout.strip().endswith("equal"), done.stderr[-3000:]
