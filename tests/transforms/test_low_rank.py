import keras
import numpy as np
import pytest

import keras_dlopt as dlopt
from keras_dlopt.errors import ConfigError, ModelError
from keras_dlopt.graph.targets import Target
from keras_dlopt.transforms.low_rank import modes, parameters

L = keras.layers


def _value(transform, weight):
    target = Target("layer/kernel")
    state = {k: s.value for k, s in transform.init(target, weight).items()}
    return transform.evaluate(target, weight, state), state


def _weight(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


@pytest.mark.parametrize("shape", [(12, 7), (3, 3, 4, 6), (5, 4, 6)])
@pytest.mark.parametrize("rank", [1, 3, 99])
def test_svd_is_the_best_approximation(shape, rank):
    weight = _weight(*shape)
    value, _ = _value(dlopt.LowRank(rank), weight)
    flat = weight.reshape(-1, shape[-1]).astype("float64")
    values = np.linalg.svd(flat, compute_uv=False)
    # Eckart and Young: the squared error is that of the values left out.
    error = np.sum((weight - value) ** 2, dtype="float64")
    assert error == pytest.approx(np.sum(values[rank:] ** 2), rel=1e-4, abs=1e-9)
    assert np.linalg.matrix_rank(value.reshape(-1, shape[-1]), tol=1e-4) <= rank


@pytest.mark.parametrize("ranks", [(2, 3), (4, 6), 2])
def test_tucker_is_exact_for_a_weight_of_that_rank(ranks):
    inner, outer = ranks if isinstance(ranks, tuple) else (ranks, ranks)
    rng = np.random.default_rng(1)
    core = rng.normal(size=(3, 3, inner, outer))
    first, last = rng.normal(size=(4, inner)), rng.normal(size=(outer, 6))
    weight = np.einsum("hwrq,ir,qo->hwio", core, first, last).astype("float32")
    value, state = _value(dlopt.LowRank(ranks, method="tucker"), weight)
    np.testing.assert_allclose(value, weight, atol=2e-5)
    assert state["core"].shape == (3, 3, inner, outer)
    assert sum(v.size for v in state.values()) == parameters(
        weight.shape, (inner, outer)
    )


def test_a_ratio_follows_the_shape():
    assert dlopt.LowRank(ratio=0.25).ranks((3, 3, 8, 16)) == (4,)
    assert dlopt.LowRank(ratio=0.25, method="tucker").ranks((3, 3, 8, 16)) == (2, 4)
    assert dlopt.LowRank(ratio=0.01).ranks((4, 4)) == (1,)
    assert dlopt.LowRank((3, 5), method="tucker").ranks((9, 4)) == (4,)


def _net():
    keras.utils.set_random_seed(1)
    inputs = keras.Input((8, 8, 3))
    x = L.Conv2D(8, 3, padding="same", activation="relu", name="a")(inputs)
    shared = L.Conv2D(8, 3, strides=2, padding="same", name="b", use_bias=False)
    x = shared(shared(x))
    inner = keras.Sequential([keras.Input((2, 2, 8)), L.Conv2D(12, 2, name="c")])
    x = L.Flatten()(inner(x))
    x = L.Dense(16, activation="tanh", name="d")(x) * 2.0 + 1.0
    return keras.Model(inputs, L.Dense(3, name="e")(x))


@pytest.mark.parametrize("method", ["svd", "tucker"])
def test_factorized_layers_compute_what_the_transform_does(method):
    model = _net()
    recipe = dlopt.low_rank_recipe(model, budget=0.5, method=method)
    small = dlopt.transform(model, recipe)
    factored = dlopt.factorize(small)
    assert factored.count_params() < 0.62 * model.count_params()
    x = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype("float32")
    np.testing.assert_allclose(
        factored.predict_on_batch(x), small.predict_on_batch(x), atol=1e-5
    )
    names = {layer.name for layer in factored.layers}
    assert "b_reduce" in names
    assert ("b_core" in names) == (method == "tucker")
    kernel = factored.get_layer("d_reduce").kernel.numpy()
    for group in small.groups:
        for slot in group.slots:
            if slot.target.path == "d/kernel":
                np.testing.assert_array_equal(kernel, slot.arrays()["first"])


def test_a_sequential_model_stays_one_and_trains():
    keras.utils.set_random_seed(0)
    net = keras.Sequential(
        [keras.Input((16,)), L.Dense(16, name="d"), L.ReLU(), L.Dense(2, name="top")]
    )
    small = dlopt.factorize(
        net, dlopt.Recipe([(dlopt.named("kernel"), dlopt.LowRank(2))])
    )
    assert isinstance(small, keras.Sequential)
    # The two outputs of the last layer have no smaller factors.
    assert [la.name for la in small.layers] == ["d_reduce", "d", "re_lu", "top"]
    small.compile("sgd", "mse")
    small.fit(np.ones((4, 16)), np.ones((4, 2)), verbose=0)


def test_energy_decides_the_rank():
    weight = np.diag([3.0, 2.0, 1.0] + [0.0] * 17).astype("float32")
    model = keras.Sequential([keras.Input((20,)), L.Dense(20, use_bias=False)])
    model.layers[0].kernel.assign(weight)
    for energy, rank in ((0.5, 1), (9 / 14, 1), (0.9, 2), (1.0, 3)):
        ((_, chosen),) = dlopt.low_rank_recipe(model, energy=energy).entries
        assert chosen.rank == rank
    np.testing.assert_allclose(modes(weight, "svd")[0][:4], [3, 2, 1, 0], atol=1e-6)


def test_a_budget_keeps_the_same_energy_of_every_weight():
    model = keras.Sequential([keras.Input((20,)), L.Dense(20), L.Dense(20)])
    flat = np.diag([1.0] * 10 + [0.0] * 10)
    steep = np.diag([3.0, 1.0, 1.0] + [0.0] * 17)
    for layer, weight in zip(model.layers, (flat, steep), strict=True):
        layer.kernel.assign(weight)
    # 7 of 10 against 9 of 11: rank 1 of the second keeps more than rank 8 of the first.
    ranks = [rule.rank for _, rule in dlopt.low_rank_recipe(model, energy=0.75).entries]
    assert ranks == [8, 1]


def test_what_low_rank_refuses():
    with pytest.raises(ConfigError, match="Give one of rank .* and ratio"):
        dlopt.LowRank()
    with pytest.raises(ConfigError, match="ratio must be a number in .0, 1., or None"):
        dlopt.LowRank(ratio=2.0)
    with pytest.raises(ConfigError, match="'tucker' also takes two"):
        dlopt.LowRank((2, 2))
    with pytest.raises(ConfigError, match="method must be 'svd' or 'tucker'"):
        dlopt.LowRank(2, method="cp")
    with pytest.raises(ConfigError, match="weights of two or more dimensions"):
        dlopt.LowRank(2).init(Target("bias"), np.zeros(3, "float32"))
    model = keras.Sequential([keras.Input((4,)), L.Dense(4)])
    with pytest.raises(ConfigError, match="Give one of energy and budget"):
        dlopt.low_rank_recipe(model)
    with pytest.raises(ConfigError, match="budget must be a number in .0, 1., or None"):
        dlopt.low_rank_recipe(model, budget=0.0)
    with pytest.raises(ConfigError, match="found no weight of two or more"):
        dlopt.low_rank_recipe(model, energy=0.5, select=dlopt.named("bias"))
    with pytest.raises(ConfigError, match="rank 1 everywhere takes 8"):
        dlopt.low_rank_recipe(model, budget=0.1)


def test_what_factorize_refuses():
    named = dlopt.named("kernel")
    model = keras.Sequential([keras.Input((16,)), L.Dense(16)])
    with pytest.raises(ModelError, match="factorize takes a TransformedModel"):
        dlopt.factorize(model)
    with pytest.raises(ModelError, match="has low rank. Put LowRank"):
        dlopt.factorize(model, dlopt.Recipe([(named, dlopt.FakeQuant())]))
    chain = dlopt.LowRank(2) >> dlopt.FakeQuant()
    with pytest.raises(ConfigError, match="factorize needs LowRank alone"):
        dlopt.factorize(model, dlopt.Recipe([(named, chain)]))
    deep = keras.Sequential([keras.Input((8, 8, 8)), L.DepthwiseConv2D(3)])
    rank2 = dlopt.Recipe([(dlopt.rank(4), dlopt.LowRank(1))])
    with pytest.raises(ConfigError, match="of a DepthwiseConv2D cannot be split"):
        dlopt.factorize(deep, rank2)

    class Sub(keras.Model):
        def __init__(self):
            super().__init__()
            self.top = L.Dense(16, name="top")

        def call(self, inputs):
            return self.top(inputs)

        def get_config(self):
            return {}

    sub = Sub()
    sub(np.ones((1, 16), "float32"))
    with pytest.raises(ModelError, match="Sub is a subclassed model"):
        dlopt.factorize(sub, dlopt.Recipe([(named, dlopt.LowRank(2))]))
