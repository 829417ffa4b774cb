import keras
import numpy as np
import pytest

import keras_dlopt as dlopt
from keras_dlopt.errors import ConfigError
from keras_dlopt.interop import tfmot
from keras_dlopt.transforms.prune.pattern import Blocks, NofM

L = keras.layers


def _net():
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            L.Conv2D(4, 3, name="conv"),
            L.DepthwiseConv2D(3, name="deep"),
            L.Flatten(name="flat"),
            L.Dense(8, activation="softmax", name="top"),
        ]
    )


def _paths(model):
    return [slot.target.path for group in model.groups for slot in group.slots]


def test_pruning_takes_the_kernels_that_tfmot_takes():
    small = tfmot.prune_low_magnitude(_net(), tfmot.ConstantSparsity(0.5, 0))
    assert _paths(small) == ["conv/kernel", "top/kernel"]
    with tfmot.prune_scope():
        pass

    class OnlyTop:
        def allow_pruning(self, layer):
            return layer.name == "top"

        def ensure_model_supports_pruning(self, model):
            pass

    small = tfmot.prune_low_magnitude(_net(), pruning_policy=OnlyTop())
    assert _paths(small) == ["top/kernel"]
    with pytest.raises(ConfigError, match="chooses among the layers of a model"):
        tfmot.prune_low_magnitude(L.Dense(2), pruning_policy=OnlyTop())


def test_blocks_and_groups():
    layer = tfmot.prune_low_magnitude(
        L.Dense(4), block_size=(2, 2), block_pooling_type="MAX"
    )
    ((_, prune),) = layer.recipe.entries
    assert prune.pattern == Blocks((2, 2), "max")
    layer = tfmot.prune_low_magnitude(L.Dense(4), sparsity_m_by_n=(1, 4))
    ((_, prune),) = layer.recipe.entries
    assert prune.pattern == NofM(3, 4)
    with pytest.raises(ConfigError, match="block_pooling_type must be 'AVG' or 'MAX'"):
        tfmot.prune_low_magnitude(
            L.Dense(4), block_size=(2, 1), block_pooling_type="SUM"
        )


def test_a_model_built_from_pruned_layers_trains():
    schedule = tfmot.PolynomialDecay(0.25, 0.5, begin_step=1, end_step=5, frequency=2)
    layers = tfmot.prune_low_magnitude([L.Dense(8), L.Dense(4)], schedule)
    again = tfmot.prune_low_magnitude(layers[0], schedule)
    assert again is layers[0]
    relu = L.ReLU()
    relu.build((None, 8))
    assert tfmot.prune_low_magnitude(relu) is relu
    model = keras.Sequential([keras.Input((8,)), *layers])
    model.compile("sgd", "mse")
    x = np.ones((24, 8), "float32")
    model.fit(
        x,
        np.zeros((24, 4)),
        batch_size=4,
        verbose=0,
        callbacks=[tfmot.UpdatePruningStep()],
    )
    plain = tfmot.strip_pruning(model)
    assert (plain.layers[0].kernel.numpy() == 0).mean() == 0.5


def test_schedules_follow_the_steps_of_tfmot():
    schedule = tfmot.PolynomialDecay(0.0, 0.8, 10, 95, frequency=20)
    due, step = [], -1
    while (step := schedule.next_due(step)) is not None:
        due.append(step)
    assert due == [9, 29, 49, 69, 89]  # its steps 10, 30, ..., counted from 1
    assert schedule.value(8) == 0
    assert schedule.value(94) == pytest.approx(0.8)
    x = np.array([0, 9, 30, 94, 200])
    in_graph = keras.ops.convert_to_numpy(schedule(x))
    np.testing.assert_allclose(in_graph, [schedule.value(s) for s in x], atol=1e-6)
    constant = tfmot.ConstantSparsity(0.5, 3, end_step=10, frequency=5)
    assert [constant.next_due(s) for s in (-1, 2, 7)] == [2, 7, None]
    assert tfmot.ConstantSparsity(0.5, 3).next_due(10**6 + 2) == 10**6 + 102
    # Its step 0 never comes: the first batch is step 1.
    assert tfmot.ConstantSparsity(0.5, 0).next_due(-1) == 99
    assert tfmot.ConstantSparsity(0.5, 0, 0).next_due(-1) is None
    for one in (schedule, constant):
        again = type(one).from_config(one.get_config())
        assert again.get_config() == one.get_config()
        assert keras.ops.convert_to_numpy(one(50)) == pytest.approx(one.value(50))
    with pytest.raises(ConfigError, match="end_step must be"):
        tfmot.PolynomialDecay(0.0, 0.8, 10, 5)
    with pytest.raises(ConfigError, match="begin_step must be"):
        tfmot.ConstantSparsity(0.5, -2)
    with pytest.raises(ConfigError, match="or later, or -1 for no end"):
        tfmot.ConstantSparsity(0.5, 5, end_step=3)


def test_clustering_per_channel_where_there_are_images():
    small = tfmot.cluster_weights(
        _net(), 4, tfmot.CentroidInitialization.LINEAR, cluster_per_channel=True
    )
    per_channel = {
        slot.target.path: group.transform.per_channel
        for group in small.groups
        for slot in group.slots
    }
    assert per_channel == {"conv/kernel": True, "top/kernel": False}
    with tfmot.cluster_scope():
        plain = tfmot.strip_clustering(small)
    assert len(np.unique(plain.get_layer("top").kernel.numpy())) <= 4
    layer = tfmot.cluster_weights(L.Dense(3), 4, cluster_per_channel=True)
    assert not layer.recipe.entries[0][1].per_channel
    again = dlopt.Recipe.from_json(small.recipe.to_json())
    assert again == small.recipe
    with pytest.raises(ConfigError, match="zero is one of the clusters"):
        tfmot.cluster_weights(L.Dense(3), 2, preserve_sparsity=True)
    with pytest.raises(ConfigError, match="member of CentroidInitialization"):
        tfmot.cluster_weights(L.Dense(3), 4, "best")
    with pytest.raises(ConfigError, match="takes a keras.Model, a layer or a list"):
        tfmot.cluster_weights("model.h5", 4)


def test_quantize_model_places_the_default_scheme():
    small = tfmot.quantize_model(_net())
    bits = {
        slot.target.path: group.transform
        for group in small.groups
        for slot in group.slots
    }
    assert bits["conv/kernel"].per_channel
    assert not bits["top/kernel"].per_channel
    assert bits["conv/output"].initial == (-6.0, 6.0)
    assert bits["top_activation/output"].range == (0.0, 255 / 256)
    with pytest.raises(ConfigError, match="quantize_model takes a keras.Model"):
        tfmot.quantize_model(L.Dense(2))


def test_annotated_layers_alone_are_quantized():
    four = dlopt.Recipe([(dlopt.named("kernel"), dlopt.FakeQuant(bits=4))])
    model = keras.Sequential(
        [
            keras.Input((6,)),
            L.Dense(8, name="a"),
            tfmot.quantize_annotate_layer(L.Dense(8, name="b")),
            tfmot.quantize_annotate_layer(L.Dense(2, name="c"), four),
        ]
    )
    with tfmot.quantize_scope():
        small = tfmot.quantize_apply(model)
    assert sorted(_paths(small)) == ["b/kernel", "b/output", "c/kernel"]
    x = np.ones((2, 6), "float32")
    small.compile("sgd", "mse")
    small.fit(x, np.zeros((2, 2)), verbose=0)
    config = model.layers[2].get_config()
    again = tfmot.QuantizeAnnotate.from_config(config)
    assert again.quantize_config == four


def test_a_wholly_annotated_model_is_the_quantized_model():
    small = tfmot.quantize_apply(tfmot.quantize_annotate_model(_net()))
    assert sorted(_paths(small)) == sorted(_paths(tfmot.quantize_model(_net())))


def test_what_cannot_be_annotated():
    with pytest.raises(ConfigError, match="takes a layer of Keras 3"):
        tfmot.quantize_annotate_layer(_net())
    with pytest.raises(ConfigError, match="takes a keras_dlopt.Recipe for the layer"):
        tfmot.quantize_annotate_layer(L.Dense(2), object())
    with pytest.raises(ConfigError, match="has no annotated layers"):
        tfmot.quantize_apply(_net())
    with pytest.raises(ConfigError, match="default 8-bit scheme only"):
        tfmot.quantize_apply(_net(), scheme="4bit")

    class Sub(keras.Model):
        def __init__(self):
            super().__init__()
            self.top = L.Dense(2)

        def call(self, inputs):
            return self.top(inputs)

    model = Sub()
    model(np.ones((1, 3), "float32"))
    with pytest.raises(ConfigError, match="Sub is a subclassed model"):
        tfmot.quantize_annotate_model(model)


def test_wrong_arguments_are_named():
    for match, arguments in (
        ("block_size must be a tuple of 2. Received: 4", {"block_size": 4}),
        ("sparsity_m_by_n must be a tuple of 2, or None", {"sparsity_m_by_n": 4}),
        ("are two patterns", {"block_size": (2, 2), "sparsity_m_by_n": (2, 4)}),
        ("must be an object with the methods", {"pruning_policy": "dense"}),
    ):
        with pytest.raises(ConfigError, match=match):
            tfmot.prune_low_magnitude(_net(), **arguments)
    pruned = tfmot.prune_low_magnitude(_net(), tfmot.ConstantSparsity(0.5, 0))
    with pytest.raises(ConfigError, match="Strip it first.*one recipe"):
        tfmot.quantize_model(pruned)


def test_steps_computed_with_numpy_are_saved():
    end = np.ceil(100 / 32).astype(np.int32) * 3  # as in TFMOT's guide
    schedule = tfmot.PolynomialDecay(0.0, 0.5, np.int64(0), end)
    layer = tfmot.prune_low_magnitude(L.Dense(2), schedule)
    again = dlopt.Recipe.from_json(layer.recipe.to_json())
    assert again.entries[0][1].sparsity.end_step == 12


def test_a_list_of_layers_may_hold_some_without_kernels():
    plain = [L.Dense(4), L.BatchNormalization(), L.Dropout(0.1), L.Dense(2)]
    model = keras.Sequential(tfmot.prune_low_magnitude(plain))
    model(np.ones((1, 4), "float32"))
    assert model.layers[1] is plain[1]
