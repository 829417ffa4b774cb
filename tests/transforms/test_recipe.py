import keras
import numpy as np
import pytest

import keras_dlopt as dlopt
from keras_dlopt.config import encode
from keras_dlopt.errors import ConfigError
from keras_dlopt.schedules import PolynomialSparsity

RECIPE = dlopt.Recipe(
    [
        (
            dlopt.named("kernel") & dlopt.inside(keras.layers.Conv2D),
            dlopt.Prune(PolynomialSparsity(0.9, end=2000)) >> dlopt.FakeQuant(bits=8),
        ),
        (dlopt.named("kernel") | ~dlopt.rank(1), dlopt.Cluster(16)),
        (dlopt.at("relu/output"), dlopt.FakeQuantActivation(range=(0, 6))),
    ]
)


def _model():
    return keras.Sequential(
        [
            keras.Input((4, 4, 1)),
            keras.layers.Conv2D(2, 3, name="conv"),
            keras.layers.Flatten(name="flat"),
            keras.layers.Dense(2, name="dense"),
        ]
    )


def test_json_round_trip():
    text = RECIPE.to_json()
    again = dlopt.Recipe.from_json(text)
    assert again == RECIPE
    assert hash(again) == hash(RECIPE)
    assert again.to_json() == text
    assert again.entries[0][1].links[0].sparsity.end == 2000
    assert "keras_dlopt" not in text


def test_first_match_wins():
    recipe = dlopt.Recipe(
        [
            (dlopt.at("conv/kernel"), dlopt.Prune(0.5)),
            (dlopt.named("kernel"), dlopt.Cluster(2)),
        ]
    )
    small = dlopt.transform(_model(), recipe)
    found = [[s.target.path for s in group.slots] for group in small.groups]
    assert found == [["conv/kernel"], ["dense/kernel"]]


def test_matching_nothing_is_an_error_that_lists_the_weights():
    recipe = dlopt.Recipe([(dlopt.named("kernal"), dlopt.Prune(0.5))])
    text = r"matches nothing.*kernal.*Weights there are: \['conv/kernel', 'conv/bias'"
    with pytest.raises(ConfigError, match=text):
        dlopt.transform(_model(), recipe)


def test_an_entry_that_matches_nothing_is_a_warning():
    recipe = dlopt.Recipe(
        [
            (dlopt.named("kernel"), dlopt.Prune(0.5)),
            (dlopt.at("conv/kernel"), dlopt.Cluster(2)),
        ]
    )
    with pytest.warns(UserWarning, match="matches nothing, or only what earlier"):
        dlopt.transform(_model(), recipe)


def test_weight_transforms_do_not_take_activations():
    recipe = dlopt.Recipe([(dlopt.named("output"), dlopt.Prune(0.5))])
    with pytest.raises(ConfigError, match="paths that end in '/input' or '/output'"):
        dlopt.transform(_model(), recipe)


@pytest.mark.parametrize(
    "before",
    [
        dlopt.Prune(dlopt.schedules.PolynomialSparsity(0.5, end=100)),
        dlopt.Prune(dlopt.schedules.ConstantSparsity(0.5, begin=9)),
        dlopt.Prune(0.5, score=dlopt.prune.Taylor()),
        dlopt.L0(1e-3),
        dlopt.Prune(0.5) >> dlopt.VariationalDropout(100),
    ],
)
def test_a_chain_refuses_what_a_later_link_would_undo(before):
    with pytest.raises(ConfigError, match="fixes the weights at step 0.*would be lost"):
        before >> dlopt.Cluster(4)
    assert len((before >> dlopt.Cluster(4, reassign=10)).links) >= 2
    assert len((before >> dlopt.Cluster(4, begin=100)).links) >= 2
    with pytest.raises(ConfigError, match="must be the first of its chain"):
        before >> dlopt.LowRank(2)


def test_numbers_of_numpy_are_numbers():
    steps = np.ceil(2.5 * 10).astype(np.int32)
    schedule = PolynomialSparsity(np.float32(0.5), end=steps, frequency=np.int64(5))
    chain = (
        dlopt.Prune(schedule)
        >> dlopt.Cluster(np.int64(4), begin=steps)
        >> dlopt.FakeQuant(bits=np.int64(4), begin=steps)
    )
    recipe = dlopt.Recipe([(dlopt.named("kernel"), chain)])
    assert dlopt.Recipe.from_json(recipe.to_json()) == recipe


def test_a_weight_without_elements_is_left_alone():
    net = keras.Sequential([keras.Input((0,)), keras.layers.Dense(4, name="a")])
    recipe = dlopt.Recipe([(dlopt.named("kernel", "bias"), dlopt.Prune(0.5))])
    small = dlopt.transform(net, recipe)
    assert [s.target.path for s in small.groups[0].slots] == ["a/bias"]


def test_kinds_do_not_mix_in_a_chain():
    with pytest.raises(ConfigError, match="either on weights or on activations"):
        dlopt.Prune(0.5) >> dlopt.FakeQuantActivation()
    with pytest.raises(ConfigError, match="`>>` chains transforms.*Received: 3"):
        dlopt.Prune(0.5) >> 3


@pytest.mark.parametrize("entries", [[3], [(dlopt.Prune(0.5), dlopt.named("k"))]])
def test_bad_entries(entries):
    with pytest.raises(ConfigError, match=r"list of \(selector, transform\) pairs"):
        dlopt.Recipe(entries)


def test_bad_json():
    with pytest.raises(ConfigError, match="not valid JSON"):
        dlopt.Recipe.from_json("{")
    with pytest.raises(ConfigError, match="list of dicts with the keys"):
        dlopt.Recipe.from_json('{"select": {}}')
    entry = '[{"select": {"rank": [2]}, "transform": {"class": "os.x", "config": {}}}]'
    with pytest.raises(ConfigError, match="The class 'os.x' is not known. Import"):
        dlopt.Recipe.from_json(entry)


def test_unregistered_transforms_cannot_be_written():
    class Mine(dlopt.Transform):
        pass

    with pytest.raises(ConfigError, match="its class is not registered"):
        encode(Mine())
