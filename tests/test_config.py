"""Configs from signatures; data of strangers are made into objects or refused."""

import copy
import dataclasses
import json

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import keras_dlopt as dlopt
from keras_dlopt.config import Configured, Value, arguments, decode, encode
from keras_dlopt.errors import ConfigError


@keras.saving.register_keras_serializable("config_tests")
class Pair(Value):
    def __init__(self, first, *, second=0):
        self.first, self.second = first, second


@keras.saving.register_keras_serializable("config_tests")
class Picky(Configured):
    def __init__(self, number):
        self.number = 1 // number


class Parent(Configured):
    def __init__(self, body, *, scale=1, **kwargs):
        self.body, self.scale, self.rest = body, scale, kwargs


class Child(Parent):
    def __init__(self, width, *, depth=2, **kwargs):
        super().__init__([width] * depth, **kwargs)
        self.width, self.depth = width, depth


class Layer(Configured, keras.layers.Layer):
    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units


def test_arguments_of_a_parent_are_those_that_can_be_passed_on():
    assert arguments(Child) == ("width", "depth", "scale")
    assert Child(3, scale=5).get_config() == {"width": 3, "depth": 2, "scale": 5}
    assert Child.from_config({"width": 3, "scale": 5}).scale == 5


def test_a_layer_has_what_keras_has_too():
    config = Layer(3, name="a").get_config()
    assert config["name"] == "a"
    assert config["units"] == 3
    assert Layer.from_config(config).units == 3


def test_a_value_is_its_arguments():
    one, other = Pair([1, (2, 3)], second={"a": 1}), Pair((1, [2, 3]), second={"a": 1})
    assert one == other
    assert hash(one) == hash(other)
    assert one != Pair(1)
    assert one != 1
    assert repr(Pair(1)) == "Pair(first=1)"
    assert repr(Pair(1, second=Pair(2))) == "Pair(first=1, second=Pair(first=2))"
    assert decode(json.loads(json.dumps(encode(one)))) == one
    assert copy.deepcopy(one) == one


def test_numbers_of_numpy_are_written_as_plain_ones():
    assert encode({"a": (np.float32(0.5), np.int8(3), np.True_)}) == {
        "a": [0.5, 3, True]
    }


def test_objects_of_keras_are_written_in_its_form():
    schedule = keras.optimizers.schedules.CosineDecay(0.1, 10)
    data = json.loads(json.dumps(encode(schedule)))
    assert data["class_name"] == "CosineDecay"
    assert decode(data).get_config() == schedule.get_config()


REFUSED = [
    ({"class": "os.x", "config": {}}, "The class 'os.x' is not known. Import"),
    ({"class": 5, "config": {}}, "The class 5 is not known"),
    ({"class": ["Prune"], "config": {}}, "is not known"),
    ({"class": "Prune", "config": [1]}, "config of Prune must be a dict.*: .1."),
    (
        {"class": "Prune", "config": {"zzz": 1}},
        "Prune: There is no argument 'zzz'. Known are: sparsity, score",
    ),
    (
        {"class": "Prune", "config": {"scor": 1}},
        "argument 'scor'.*Did you mean 'score'",
    ),
    (
        {"class": "Prune", "config": {"sparsity": 2}},
        r"Prune: sparsity must be a number",
    ),
    (
        {"class": "config_tests>Picky", "config": {"number": 0}},
        "Picky cannot be made from the arguments {'number': 0}: integer division",
    ),
    ({"class": "config_tests>Picky", "config": {}}, "Picky cannot be made.*missing 1"),
    (
        {"class_name": "system", "module": "os", "config": {}},
        "'system' cannot be made from .*: Could not locate class 'system'",
    ),
    (
        {"class_name": "Popen", "module": "subprocess", "config": {"args": "true"}},
        "'Popen' cannot be made from",
    ),
    ({"class_name": 3, "module": [], "config": {}}, "3 cannot be made from"),
    (
        {"class_name": "Zeros", "module": "keras.initializers", "config": {}},
        "'Zeros' is not a schedule, an optimizer or a layer",
    ),
    (
        {
            "class_name": "CosineDecay",
            "module": "keras.optimizers.schedules",
            "config": {"zzz": 3},
        },
        "'CosineDecay' cannot be made from",
    ),
]


@pytest.mark.parametrize(("data", "text"), REFUSED)
def test_data_that_are_refused(data, text):
    with pytest.raises(ConfigError, match=text):
        decode(data)


def test_what_cannot_be_written():
    @dataclasses.dataclass
    class Unknown(Value):
        x: int = 0

    with pytest.raises(ConfigError, match="cannot be written.*is not registered"):
        encode(Unknown())


RECIPE = dlopt.Recipe(
    [
        (
            dlopt.named("kernel") & ~dlopt.rank(4) | dlopt.matching("a.*"),
            dlopt.Prune(
                dlopt.schedules.PolynomialSparsity(0.9, end=9),
                pattern=dlopt.prune.Blocks((4, 1)),
                distribution=dlopt.prune.BySensitivity({"a": 0.5}),
            )
            >> dlopt.Cluster(4, begin=9)
            >> dlopt.FakeQuant(bits=4, begin=10),
        ),
        (dlopt.inside("Dense") & dlopt.at("a/b"), dlopt.LowRank(2)),
    ]
)


def test_the_entry_and_the_key_of_a_recipe_are_named():
    data = RECIPE.to_dict()
    data[1]["transform"] = {"class": "Magnitude", "config": {}}
    text = (
        "entry 1 of the recipe, 'transform': expected a transform. Received: {'class'"
    )
    with pytest.raises(ConfigError, match=text):
        dlopt.Recipe.from_dict(data)
    data = RECIPE.to_dict()
    data[1]["select"] = {"named": 5}
    with pytest.raises(
        ConfigError, match="entry 1 of the recipe, 'select': 'named' of"
    ):
        dlopt.Recipe.from_dict(data)


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["class", "config", "select", "transform", "class_name"])
            | st.text(max_size=3),
            inner,
            max_size=3,
        )
    ),
    max_leaves=6,
)


def _places(data, path=()):
    yield path
    pairs = data.items() if isinstance(data, dict) else ()
    for key, value in pairs or (enumerate(data) if isinstance(data, list) else ()):
        yield from _places(value, (*path, key))


PLACES = list(_places(RECIPE.to_dict()))


@settings(max_examples=400)
@given(st.sampled_from(PLACES), JUNK)
def test_a_recipe_with_one_part_replaced_is_made_or_refused(path, junk):
    data = [junk] if not path else RECIPE.to_dict()
    part = data
    for key in path[:-1]:
        part = part[key]
    if path:
        part[path[-1]] = junk
    try:
        dlopt.Recipe.from_dict(data)
        text = ""
    except ConfigError as error:
        text = str(error)
    if text and len(path) > 1:
        assert f"entry {path[0]} of the recipe, {path[1]!r}: " in text
