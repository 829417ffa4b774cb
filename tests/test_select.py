"""Selectors: what they select, how they combine, their plain-data form."""

import json

import keras
import numpy as np
import pytest

from keras_dlopt import at, everything, inside, matching, named, rank
from keras_dlopt.errors import ConfigError
from keras_dlopt.graph.targets import (
    activation_targets,
    variable_target,
    weight_targets,
)
from keras_dlopt.select import selector_from_dict


class Block(keras.layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = keras.layers.Dense(3, name="dense")
        self.scale = self.add_weight(shape=(3,), name="scale")

    def build(self, input_shape):
        self.dense.build(input_shape)

    def call(self, x):
        return self.dense(x) * self.scale


@pytest.fixture
def model():
    return keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            keras.layers.Conv2D(4, 3, name="conv"),
            keras.layers.BatchNormalization(name="bn"),
            keras.layers.Flatten(name="flat"),
            Block(name="block"),
            keras.layers.Dense(2, name="head"),
        ]
    )


def _paths(model, selector):
    return [t.path for t in weight_targets(model) if selector(t)]


def test_paths_are_layer_names_down_to_the_weight(model):
    assert _paths(model, everything()) == [
        "conv/kernel",
        "conv/bias",
        "bn/gamma",
        "bn/beta",
        "bn/moving_mean",
        "bn/moving_variance",
        "block/scale",
        "block/dense/kernel",
        "block/dense/bias",
        "head/kernel",
        "head/bias",
    ]


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        (named("kernel") & rank(4), ["conv/kernel"]),
        (inside(Block), ["block/scale", "block/dense/kernel", "block/dense/bias"]),
        (
            named("kernel") & ~inside("Conv2D"),
            ["block/dense/kernel", "head/kernel"],
        ),
        (at("head/bias") | at("conv/bias"), ["conv/bias", "head/bias"]),
        (at("head/bias") | at("conv/bias") | rank(0), ["conv/bias", "head/bias"]),
        (matching(r".*dense/k.*"), ["block/dense/kernel"]),
        (rank(0), []),
    ],
)
def test_selection_and_plain_data_round_trip(model, selector, expected):
    assert _paths(model, selector) == expected
    again = selector_from_dict(json.loads(json.dumps(selector.to_dict())))
    assert again == selector
    assert _paths(model, again) == expected


def test_inside_sees_subclasses(model):
    assert "conv/kernel" in _paths(model, inside(keras.layers.Layer))


def test_activations_have_ends(model):
    paths = [t.path for t in activation_targets(model)]
    assert "conv/output" in paths
    assert "block/dense/input" in paths


def test_shared_layers_are_listed_once():
    shared = keras.layers.Dense(4, name="shared")
    inputs = keras.Input((4,))
    model = keras.Model(inputs, shared(shared(inputs)))
    assert [t.path for t in weight_targets(model)] == ["shared/kernel", "shared/bias"]


def test_inside_without_a_layer_is_an_error():
    variable = keras.Variable(1.0, name="v")
    with pytest.raises(ConfigError, match="only the variable is known"):
        inside("Dense")(variable_target(variable))


def test_bad_regular_expression():
    with pytest.raises(ConfigError, match=r"does not compile: .* position 0"):
        matching("(")


@pytest.mark.parametrize("data", [3, {}, {"nonsense": 1}, {"named": [], "rank": []}])
def test_bad_plain_data(data):
    with pytest.raises(ConfigError, match="A selector is a dict with one key of"):
        selector_from_dict(data)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ({"named": 5}, "'named' of a selector takes a list. Received: 5"),
        ({"at": "a/b"}, "'at' of a selector takes a list. Received: 'a/b'"),
        ({"rank": ["2"]}, "'rank' of a selector takes a list of whole numbers"),
        ({"inside": [3]}, "'inside' of a selector takes a list of texts"),
        ({"all": {"named": ["a"]}}, "'all' of a selector takes a list"),
        ({"not": 3}, "A selector is a dict with one key of"),
        ({"matching": 3}, "matching.. takes a regular expression. Received: 3"),
    ],
)
def test_bad_parts_of_plain_data(data, text):
    with pytest.raises(ConfigError, match=text):
        selector_from_dict(data)


def test_combining_with_something_else():
    with pytest.raises(ConfigError, match="combines with selectors only"):
        named("kernel") & "conv"


@keras.saving.register_keras_serializable("test_select")
class Written(keras.Model):
    """Layers whose names come from Keras' counter, held in every way."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.first = keras.layers.Dense(3)
        self.blocks = [keras.layers.Dense(3), keras.layers.Dense(3)]
        self.heads = {"a": keras.layers.Dense(2)}
        self.inner = keras.Sequential([keras.layers.Dense(3), keras.layers.Dense(3)])
        self.named = keras.layers.Dense(3, name="given")

    def call(self, x):
        for layer in (self.first, *self.blocks, self.inner, self.named):
            x = layer(x)
        return self.heads["a"](x)


def test_paths_of_written_models_do_not_depend_on_keras_counter():
    def paths():
        model = Written()
        model(np.zeros((1, 3), "float32"))
        return [t.path for t in weight_targets(model) if t.name == "kernel"]

    assert paths() == paths()
    assert set(paths()) == {
        "first/kernel",
        "blocks_0/kernel",
        "blocks_1/kernel",
        "heads_a/kernel",
        "inner/dense/kernel",
        "inner/dense_1/kernel",
        "given/kernel",
    }
