"""Copies have the live state of a model, not only what its config holds."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_dlopt as dlopt
from keras_dlopt import _compat
from keras_dlopt.errors import ModelError
from keras_dlopt.graph.copying import copy_model
from keras_dlopt.graph.walk import walk

X = np.random.default_rng(0).normal(size=(3, 4)).astype("float32")
OFFSET = 0.25


class Net(keras.Model):
    """A subclassed model with layers in a list, a number and a dict."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.stem = layers.Dense(4)
        self.norm = layers.BatchNormalization()
        self.cells = [layers.Dense(4), layers.Dense(2)]
        self.scale, self._shift, self.options = 1.0, 0.0, {"a": [1, 2]}

    def call(self, x):
        for cell in self.cells:
            x = cell(x if cell is not self.cells[0] else self.norm(self.stem(x)))
        return x * self.scale + self._shift


def _net():
    net = Net()
    net(X)
    return net


def _nested():
    return keras.Sequential([keras.Input((4,)), layers.Dense(4), _net()])


def test_what_was_set_after_construction_is_in_the_copy():
    net = _net()
    net.scale, net._shift = 5.0, OFFSET
    net.options["b"] = np.arange(3)
    net.note, net.stem.activation = "seen", keras.activations.relu
    twin = copy_model(net)
    np.testing.assert_array_equal(twin(X), net(X))
    assert (twin.scale, twin._shift, twin.note) == (5.0, OFFSET, "seen")
    assert list(twin.options) == ["a", "b"]
    twin.options["a"].append(3)
    assert net.options["a"] == [1, 2]


@pytest.mark.parametrize("build", [_net, _nested])
@pytest.mark.parametrize("part", ["model", "layer", "list", "variable"])
def test_what_is_frozen_stays_frozen(build, part):
    model = build()
    net = model if build is _net else model.layers[-1]
    if part == "model":
        model.trainable = False
    elif part == "layer":
        net.stem.trainable = net.norm.trainable = False
    elif part == "list":
        net.cells[0].trainable = False
    else:
        net.stem.kernel.trainable = False
    twin = copy_model(model)
    frozen = [[v.trainable for v in one.variables] for one in (model, twin)]
    assert frozen[0] == frozen[1]
    assert not all(frozen[0])
    flags = [[layer.trainable for _, layer, _ in walk(m)] for m in (model, twin)]
    assert flags[0] == flags[1]


def test_functions_of_this_process_are_the_same_in_the_copy():
    factor = 2.0

    def local(x):
        return keras.ops.tanh(x) * factor

    model = keras.Sequential(
        [
            keras.Input((4,)),
            layers.Lambda(lambda x: x * factor + OFFSET),
            layers.Dense(3, activation=lambda x: local(x) + np.pi),
            layers.Dense(2, activation=local),
        ]
    )
    before = [vars(layer).get("function") for layer in model.layers]
    twin = copy_model(model)
    np.testing.assert_array_equal(twin(X), model(X))
    for old, new in zip(model.layers[1:], twin.layers[1:], strict=True):
        assert new.activation is old.activation
    assert twin.layers[0].function is model.layers[0].function
    assert before == [vars(layer).get("function") for layer in model.layers]
    recipe = dlopt.Recipe([(dlopt.named("kernel"), dlopt.Prune(0.5))])
    assert dlopt.finalize(dlopt.transform(model, recipe))(X).shape == (3, 2)


def test_a_layer_that_was_replaced_is_named():
    class Other(layers.Dense):
        pass

    class Odd(keras.Model):
        kind = Other

        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.stem = self.kind(4, name="stem")

        def call(self, x):
            return self.stem(x)

    net = Odd()
    net(X)
    Odd.kind = layers.Dense
    with pytest.raises(ModelError, match="The layer 'stem' of .*is a Other, and its c"):
        copy_model(net)


def test_a_built_layer_takes_functions_and_plain_data():
    net = _net()
    for name, value in (("f", len), ("data", {"a": [1]}), ("scale", 2.0)):
        _compat.set_attribute(net, name, value)
        assert getattr(net, name) == value, "see set_attribute in _compat/calls.py"
