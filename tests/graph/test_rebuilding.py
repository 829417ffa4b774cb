"""Models built anew: replaced, dropped, nested; and what is known about kinds."""

import keras
import numpy as np
import pytest
from keras import layers as L

import keras_dlopt as dlopt
from keras_dlopt.errors import ConfigError, ModelError
from keras_dlopt.graph.folding import fold_batch_normalization
from keras_dlopt.graph.rebuilding import like, rebuilt
from keras_dlopt.graph.targets import weight_targets
from keras_dlopt.graph.walk import (
    as_functional,
    children,
    custom_classes,
    is_functional,
    layers_below,
    own_weights,
)
from keras_dlopt.surgery import factorize, hashed_layers


class Written(keras.Model):
    operations = ("as any attribute may be called",)

    def __init__(self):
        super().__init__()
        self.block = keras.Sequential([L.Dense(2, name="d"), L.ReLU()])

    def call(self, x):
        return self.block(x)


class Inherited(keras.Model):
    def __init__(self):
        inputs = keras.Input((3,))
        super().__init__(inputs, L.Dense(2)(inputs))


def functional():
    inputs = keras.Input((4,), name="in")
    block = keras.Sequential([keras.Input((4,)), L.Dense(4, name="d")], name="block")
    x = block(L.Dense(4, name="a")(inputs)) + inputs
    return keras.Model(inputs, L.Dense(2, name="out")(x))


def test_what_knows_its_graph():
    assert is_functional(functional())
    assert is_functional(keras.Sequential([L.Dense(2)]))
    assert is_functional(Inherited())
    assert not is_functional(Written())
    assert not is_functional(L.Dense(2))
    assert as_functional(keras.Sequential([L.Dense(2)])) is None
    assert as_functional(Written()) is None
    model = functional()
    assert as_functional(model) is model
    line = keras.Sequential([keras.Input((2,)), L.Dense(2)])
    assert not isinstance(as_functional(line), keras.Sequential)


def test_asking_moves_no_counter_of_names():
    keras.utils.clear_session()
    is_functional(L.Dense(2))
    assert keras.Input((2,)).name.startswith("keras_tensor")
    x = keras.Input((2,))
    assert keras.Model(x, x).name == "functional"


def test_walking_finds_each_layer_once():
    model = functional()
    assert [la.name for la in layers_below(model, L.Dense)] == ["a", "d", "out"]
    assert "block" in [la.name for la in children(model)]
    written = Written()
    written(np.ones((1, 3), "float32"))
    assert custom_classes(written) == {"Written": Written}
    assert own_weights(written) == []
    (dense,) = layers_below(written, L.Dense)
    assert own_weights(dense) == dense.weights


def test_layers_are_replaced_at_any_depth_and_the_rest_is_copied():
    model = functional()
    x = np.random.default_rng(0).normal(size=(3, 4)).astype("float32")
    (deep,) = (la for la in layers_below(model) if la.name == "d")
    copy = rebuilt(model, {})
    np.testing.assert_array_equal(copy(x), model(x))
    assert {id(v) for v in copy.weights}.isdisjoint(id(v) for v in model.weights)
    pieces = {id(deep): lambda: [(like(deep), deep.get_weights()), (L.ReLU(), [])]}
    new = rebuilt(model, pieces)
    assert any(isinstance(la, L.ReLU) for la in layers_below(new))
    hidden = model.get_layer("block")(model.get_layer("a")(x))
    wanted = model.get_layer("out")(np.maximum(hidden, 0) + x)
    np.testing.assert_allclose(new(x), wanted, rtol=1e-6)


@pytest.mark.parametrize("keyword", [False, True])
def test_a_layer_may_be_dropped(keyword):
    norm = L.BatchNormalization(name="n")
    inputs = keras.Input((4,))
    x = norm(inputs=inputs) if keyword else norm(inputs)
    model = keras.Model(inputs, L.Dense(2)(x))
    line = keras.Sequential([keras.Input((4,)), norm, L.Dense(2)])
    for one in (model, line):
        new = rebuilt(one, {id(norm): list})
        assert not layers_below(new, L.BatchNormalization)
        assert type(new) is type(one)


def test_a_sequential_model_keeps_its_input_and_its_compiled_state():
    model = keras.Sequential(
        [keras.Input((3,), dtype="int32"), L.Embedding(5, 2), L.Flatten()]
    )
    model.compile("sgd", "mse")
    new = rebuilt(model, {})
    assert isinstance(new, keras.Sequential)
    assert new.inputs[0].dtype == "int32"
    assert new.compiled
    np.testing.assert_array_equal(new(np.ones((1, 3))), model(np.ones((1, 3))))


class Opaque(L.Layer):
    def __init__(self, size):
        super().__init__()
        self.size = size

    def call(self, x):
        return x


def test_what_cannot_be_rebuilt_is_named():
    with pytest.raises(ModelError, match="Written is a subclassed model.*replaced"):
        rebuilt(Written(), {})
    inputs = keras.Input((4,))
    model = keras.Model(inputs, Opaque(3)(inputs))
    with pytest.raises(ModelError, match="'opaque.*cannot be built anew.*get_config"):
        rebuilt(model, {})


class WiderDepthwise(L.DepthwiseConv2D):
    pass


class Mixer(L.DepthwiseConv2D):
    pass


@pytest.mark.parametrize("kind", [L.DepthwiseConv2D, WiderDepthwise, Mixer])
def test_folding_into_depthwise_kernels_of_any_class(kind):
    model = keras.Sequential(
        [keras.Input((5, 5, 3)), kind(2, depth_multiplier=3), L.BatchNormalization()]
    )
    rng = np.random.default_rng(0)
    model.set_weights([rng.uniform(0.5, 2, w.shape) for w in model.get_weights()])
    x = rng.normal(size=(2, 5, 5, 3)).astype("float32")
    folded = fold_batch_normalization(model)
    assert not layers_below(folded, L.BatchNormalization)
    np.testing.assert_allclose(folded(x), model(x), rtol=1e-4, atol=1e-4)


class OwnDense(L.Dense):
    pass


def every_kernel():
    return keras.Sequential(
        [
            keras.Input((8, 8, 8)),
            L.Conv2D(16, 3, padding="same", name="conv"),
            L.Conv2D(16, 3, padding="same", groups=2),
            L.DepthwiseConv2D(3),
            L.SeparableConv2D(16, 3, padding="same"),
            L.Conv2DTranspose(16, 3),
            L.Reshape((64, 16)),
            L.EinsumDense("abc,cd->abd", (None, 16)),
            L.LSTM(16),
            OwnDense(16, name="own"),
            L.Dense(16, name="dense"),
        ]
    )


@pytest.mark.parametrize("method", ["svd", "tucker"])
def test_what_the_recipe_chooses_can_be_factorized(method):
    model = every_kernel()
    recipe = dlopt.low_rank_recipe(model, budget=0.4, method=method)
    small = factorize(model, recipe)
    assert small.count_params() < model.count_params()
    chosen = [p for selector, _ in recipe.entries for p in selector.paths]
    assert sorted(chosen) == ["conv/kernel", "dense/kernel", "own/kernel"]
    wide = dlopt.low_rank_recipe(model, budget=0.4, select=dlopt.named("kernel"))
    with pytest.raises(ConfigError, match="cannot be split into layers"):
        factorize(model, wide)
    only = keras.Sequential([keras.Input((8, 8, 8)), L.DepthwiseConv2D(3)])
    with pytest.raises(ConfigError, match="factorize can split.*Give select="):
        dlopt.low_rank_recipe(only, budget=0.5)


class Dense(L.Dense):
    """The name of Keras' class, and another function."""

    def call(self, inputs):
        return super().call(inputs) * 2


def test_only_keras_own_layers_are_hashed():
    model = keras.Sequential([keras.Input((8,)), Dense(8)])
    entry = (dlopt.named("kernel"), dlopt.HashedWeights(0.25))
    with pytest.raises(ConfigError, match="of a Dense cannot be stored as a hash"):
        hashed_layers(dlopt.transform(model, dlopt.Recipe([entry])))


def test_the_recipe_leaves_out_what_factorize_cannot_reach_or_does_not_know():
    keras.utils.set_random_seed(0)
    x = keras.Input((5, 16))
    y = L.TimeDistributed(L.Dense(16, name="in"), name="time")(x)
    y = Dense(16, name="twice")(y)
    inner = keras.Sequential([keras.Input((5, 16)), L.Dense(16, name="d")], name="sub")
    model = keras.Model(x, inner(y))
    recipe = dlopt.low_rank_recipe(model, budget=0.5)
    assert [s.paths for s, _ in recipe.entries] == [("sub/d/kernel",)]
    small = factorize(model, recipe)
    assert small.count_params() < model.count_params()
    batch = np.random.default_rng(0).normal(size=(2, 5, 16)).astype("float32")
    whole = dlopt.finalize(dlopt.transform(model, recipe))
    np.testing.assert_allclose(small(batch), whole(batch), rtol=1e-4, atol=1e-4)
    for path, text in (
        ("time/layer/kernel", "lies in a TimeDistributed.*low_rank_recipe"),
        ("twice/kernel", "of a Dense cannot be split"),
    ):
        paths = [t.path for t in weight_targets(model) if t.path.startswith(path[:4])]
        one = dlopt.Recipe([(dlopt.at(paths[0]), dlopt.LowRank(2))])
        with pytest.raises(ConfigError, match=text):
            factorize(model, one)
