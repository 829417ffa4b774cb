"""Optimizer state goes over: the smaller model trains on as the zeroed one would."""

import keras
import numpy as np
import pytest
from keras import layers as L

import keras_dlopt as dlopt
from keras_dlopt.errors import ModelError
from keras_dlopt.surgery import dependencies, prune_channels, remove_dead
from support.removing import randomized, relative


def net(optimizer, dead=(1, 4)):
    """Dead channels stay dead: ReLU hands no gradient on."""
    model = keras.Sequential(
        [
            keras.Input((6,)),
            L.Dense(7, activation="relu", name="a"),
            L.Dense(5, activation="tanh", name="b"),
            L.Dense(2, name="c"),
        ]
    )
    randomized(model)
    kernel, bias = model.get_layer("a").get_weights()
    kernel[:, list(dead)], bias[list(dead)] = 0.0, -1.0
    model.get_layer("a").set_weights([kernel, bias])
    model.compile(optimizer, "mse")
    return model


def data():
    rng = np.random.default_rng(1)
    return tuple(rng.normal(size=(32, n)).astype("float32") for n in (6, 2))


OPTIMIZERS = {
    "sgd": lambda: keras.optimizers.SGD(0.05, momentum=0.9),
    "adam": lambda: keras.optimizers.Adam(0.01),
    "ema": lambda: keras.optimizers.AdamW(0.01, use_ema=True, ema_momentum=0.5),
    "accumulating": lambda: keras.optimizers.RMSprop(
        0.01, gradient_accumulation_steps=2
    ),
    "ours": lambda: dlopt.optimizers.Adam(0.01),
    "scaled": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.01)),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_goes_on_as_if_nothing_had_left(name):
    model, (x, y) = net(OPTIMIZERS[name]()), data()
    for _ in range(3):
        model.train_on_batch(x, y)
    small, report = remove_dead(model, optimizer_state=True)
    plain, _ = remove_dead(model)
    assert report.channels_removed == 2
    for one in (model, small, plain):
        for _ in range(3):
            one.train_on_batch(x, y)
    assert relative(model(x), small(x)) < 1e-5
    assert relative(model(x), plain(x)) > 1e-4  # state matters
    assert int(small.optimizer.iterations) == int(model.optimizer.iterations)


def test_averages_of_weights_hold_the_constants_as_well():
    model, (x, y) = net(keras.optimizers.SGD(0.0, use_ema=True)), data()
    kernel, bias = model.get_layer("b").get_weights()
    kernel[:, 2] = 0.0
    model.get_layer("b").set_weights([kernel, bias])
    model.train_on_batch(x, y)
    small, report = remove_dead(model, optimizer_state=True)
    assert report.channels_removed == 3
    before = np.array(small(x))
    small.optimizer.finalize_variable_values(small.trainable_variables)
    np.testing.assert_allclose(small(x), before, rtol=1e-5, atol=1e-6)


def test_pruned_channels_take_their_state_with_them():
    model, (x, y) = net(keras.optimizers.SGD(0.1, momentum=0.9), dead=()), data()
    model.train_on_batch(x, y)
    small, report = prune_channels(
        model, parameters=0.7, multiple=1, optimizer_state=True
    )
    found = dependencies(model)
    stays = {path: np.arange(len(ids)) for path, ids in found.survey.made.items()}
    for one in report.removed:
        stays[one.path] = np.delete(stays[one.path], one.channels)
    slots = {v.path.split("/")[-1]: np.array(v) for v in model.optimizer.variables}
    cuts = {v.path.split("/")[-1]: np.array(v) for v in small.optimizer.variables}
    (name,) = [n for n in slots if "b_kernel" in n]
    wanted = slots[name][stays["a"]][:, stays["b"]]
    np.testing.assert_array_equal(cuts[name], wanted)
    assert wanted.size < slots[name].size


@pytest.mark.advice("surgery/carrying.py", "Compile and fit the model first, or leave")
def test_no_state():
    model, (x, y) = net("adam"), data()
    fresh = net("adam")
    text = "optimizer of 'sequential.*no state to carry over. Compile and fit"
    with pytest.raises(ModelError, match=text):
        remove_dead(fresh, optimizer_state=True)
    model.fit(x, y, verbose=0)
    remove_dead(model, optimizer_state=True)
    remove_dead(fresh)


@keras.saving.register_keras_serializable("dlopt_tests")
class OfAllWeights(keras.optimizers.SGD):
    """Keeps one number for each entry of all weights together."""

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        total = sum(int(np.prod(v.shape)) for v in variables)
        self.flat = self.add_variable((total,), name="flat")


@pytest.mark.advice("surgery/carrying.py", "Leave out optimizer_state, or use another")
def test_state_of_all_weights_together():
    model, (x, y) = net(OfAllWeights(0.1)), data()
    model.train_on_batch(x, y)
    with pytest.raises(ModelError, match="OfAllWeights keeps state.*Leave out"):
        remove_dead(model, optimizer_state=True)
    assert remove_dead(model)[0].count_params() < model.count_params()
