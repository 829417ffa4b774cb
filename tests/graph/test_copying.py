"""Copies have the live state of a model, not only what its config holds."""

import dataclasses
import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
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


@dataclasses.dataclass
class Setting:
    """What a user keeps the numbers of a model in."""

    scale: float = 1.0
    more: dict = dataclasses.field(default_factory=dict)


class Live(keras.Model):
    """A model whose results hang on attributes of many kinds."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.one, self.two = layers.Dense(4), layers.Dense(4)
        self.function, self.setting = None, Setting()
        self.tensor, self.variable = tf.constant(1.0), tf.Variable(1.0)
        self.way = self.short

    def short(self, x):
        return self.one(x)

    def long(self, x):
        return self.two(self.one(x))

    def build(self, input_shape):
        self.one.build(input_shape)
        self.two.build(input_shape)

    def call(self, x):
        y = self.way(x) * self.setting.scale * self.tensor * self.variable
        return y if self.function is None else self.function(y)


def _partial(net):
    net.function = functools.partial(keras.ops.leaky_relu, negative_slope=0.3)


def _mutated(net):
    net.setting.scale = 3.0
    net.setting.more["a"] = [1]


CHANGES = {
    "partial": _partial,
    "ufunc": lambda net: setattr(net, "function", np.abs),
    "object": lambda net: setattr(net, "setting", Setting(3.0)),
    "object changed": _mutated,
    "tensor": lambda net: setattr(net, "tensor", tf.constant(2.0)),
    "variable": lambda net: net.variable.assign(2.0),
    "method": lambda net: setattr(net, "way", net.long),
    "activation": lambda net: setattr(net.one, "activation", np.tanh),
}


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("change", sorted(CHANGES))
def test_live_state_of_every_kind_is_in_the_copy(change, nested):
    net = Live()
    net(X)
    model = keras.Sequential([keras.Input((4,)), layers.Dense(4), net])
    model = model if nested else net
    before = np.asarray(model(X))
    CHANGES[change](net)
    assert not np.allclose(model(X), before)
    twin = copy_model(model)
    np.testing.assert_array_equal(twin(X), model(X))
    for variable in twin.variables:
        variable.assign(2 * variable)  # nothing of the original is in it
    np.testing.assert_array_equal(copy_model(model)(X), model(X))


def _strings():
    lookup = layers.StringLookup()
    lookup.adapt(tf.constant(["a", "b", "c"]))
    return lookup, tf.constant([["a"], ["c"]])


def _texts():
    vectors = layers.TextVectorization(output_sequence_length=3)
    vectors.adapt(tf.constant(["a b", "c d"]))
    return vectors, tf.constant([["a d"], ["c"]])


@pytest.mark.parametrize("build", [_strings, _texts])
def test_vocabularies_are_in_the_copy(build):
    layer, x = build()
    inputs = keras.Input((1,), dtype="string")
    model = keras.Model(inputs, layers.Dense(2)(layers.Embedding(9, 2)(layer(inputs))))
    np.testing.assert_array_equal(copy_model(model)(x), model(x))
    small = dlopt.transform(
        model, dlopt.Recipe([(dlopt.named("kernel"), dlopt.FakeQuant(bits=4))])
    )
    np.testing.assert_array_equal(dlopt.finalize(small)(x), small(x))


def test_adapted_statistics_and_models_quantized_to_float8_are_in_the_copy():
    norm = layers.Normalization()
    norm.adapt(5 * X + 3)
    model = keras.Sequential([keras.Input((4,)), norm, layers.Dense(8)])
    np.testing.assert_array_equal(copy_model(model)(X), model(X))
    model = keras.Sequential([keras.Input((4,)), layers.Dense(8), layers.Dense(3)])
    for layer in model.layers:
        layer.quantize("float8")
    model.layers[0].kernel.trainable = False
    twin = copy_model(model)
    np.testing.assert_array_equal(twin(X), model(X))
    frozen = [
        {v.path.split("/")[-1] for v in m.trainable_variables} for m in (twin, model)
    ]
    assert frozen[0] == frozen[1]


def test_a_regularizer_taken_off_stays_off():
    dense = layers.Dense(3, kernel_regularizer="l2")
    model = keras.Sequential([keras.Input((4,)), dense])
    dense.kernel.regularizer = None
    assert copy_model(model).losses == []


def test_layers_and_variables_that_keras_does_not_track_are_refused():
    class Part:
        def __init__(self):
            self.dense = layers.Dense(4)

    class Holds(keras.Model):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.part, self.end = Part(), layers.Dense(4)

        def call(self, x):
            return self.end(self.part.dense(x))

    net = Holds()
    net(X)
    with pytest.raises(ModelError, match="'part' of 'holds', a Part, holds layers"):
        copy_model(net)
    recipe = dlopt.Recipe([(dlopt.named("kernel"), dlopt.Prune(0.5))])
    dlopt.transform(net, recipe, copy=False)
    net = Live()
    net(X)
    net.late = tf.Variable(1.0)
    with pytest.raises(ModelError, match="has a tf.Variable 'late' that its constr"):
        copy_model(net)
