"""LoRA, L2-SP, rates by depth, statistics and what moved, against plain sums."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_dlopt as dlopt
from keras_dlopt import adapt
from keras_dlopt.errors import ConfigError, DataError, ModelError
from keras_dlopt.graph.targets import Target

L = keras.layers
RNG = np.random.default_rng(0)
X = RNG.normal(size=(16, 6)).astype("float32")
Y = RNG.normal(size=(16, 2)).astype("float32")


def net(width=6):
    keras.utils.set_random_seed(1)
    return keras.Sequential(
        [
            keras.Input((6,)),
            L.Dense(width, activation="tanh", name="a"),
            L.Dense(width, activation="tanh", name="b"),
            L.Dense(2, name="c"),
        ]
    )


def paths(variables):
    return [v.path for v in variables]


def test_lora_trains_two_factors_and_comes_back_plain(tmp_path):
    model = net(16)
    recipe = adapt.lora_recipe(model, 2, alpha=6.0)
    assert dlopt.Recipe.from_json(recipe.to_json()) == recipe
    tuned = dlopt.transform(model, recipe)
    # a: (6 + 16) * 2, b: (16 + 16) * 2; the head: 16 * 2 + 2
    assert sum(int(np.prod(v.shape)) for v in tuned.trainable_variables) == 142
    np.testing.assert_array_equal(tuned(X), model(X))
    tuned.compile("sgd", "mse")
    tuned.fit(X, Y, epochs=2, verbose=0)
    plain = dlopt.finalize(tuned)
    assert plain.count_params() == model.count_params()
    assert len(plain.trainable_variables) == len(model.trainable_variables)
    np.testing.assert_allclose(plain(X), tuned(X), atol=1e-6)
    for name in "ab":
        before, after = (m.get_layer(name) for m in (model, plain))
        np.testing.assert_array_equal(after.bias, before.bias)
        change = np.asarray(after.kernel) - np.asarray(before.kernel)
        values = np.linalg.svd(change, compute_uv=False)
        assert values[1] > 1e-7 > values[2]  # of rank 2
    tuned.save(tmp_path / "m.keras")
    again = keras.saving.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(again(X), tuned(X))
    assert len(again.trainable_variables) == len(tuned.trainable_variables)


def test_the_difference_of_a_convolution_is_two_convolutions():
    weight = RNG.normal(size=(3, 3, 4, 5)).astype("float32")
    transform = adapt.LowRankDelta(2, alpha=8.0, seed=3)
    state = {k: s.value for k, s in transform.init(Target("k"), weight).items()}
    assert state["first"].shape == (36, 2)
    assert np.abs(state["first"]).max() <= 1 / 6
    assert not state["last"].any()
    state["last"] = RNG.normal(size=(2, 5)).astype("float32")
    x = RNG.normal(size=(1, 6, 6, 4)).astype("float32")
    thin = tf.nn.conv2d(x, state["first"].reshape(3, 3, 4, 2), 1, "VALID")
    expected = tf.nn.conv2d(x, weight, 1, "VALID") + 4.0 * (thin @ state["last"])
    value = transform.evaluate(Target("k"), weight, state)
    np.testing.assert_allclose(tf.nn.conv2d(x, value, 1, "VALID"), expected, atol=1e-4)


def test_lora_of_keras_is_merged_into_plain_layers():
    model = net()
    assert adapt.enable_lora(model, 2, alpha=4.0) == ["a/kernel", "b/kernel"]
    model.compile("sgd", "mse")
    model.fit(X, Y, verbose=0)
    plain = adapt.merge_lora(model)
    np.testing.assert_allclose(plain(X), model(X), atol=1e-6)
    assert plain.count_params() == net().count_params()
    convolutions = keras.Sequential(
        [keras.Input((8, 8, 3)), L.Conv2D(9, 3, name="a"), L.Flatten(), L.Dense(2)]
    )
    assert adapt.enable_lora(convolutions, 2) == ["a/kernel"]
    assert adapt.merge_lora(convolutions).layers[0].kernel.shape == (3, 3, 3, 9)


def test_l2_sp_is_the_distance_to_the_start():
    model = net()
    recipe = dlopt.Recipe(
        [
            (dlopt.matching("c/.*"), adapt.L2SP(0.5, toward="zero")),
            (dlopt.named("kernel"), dlopt.Prune(0.5) >> adapt.L2SP(3.0)),
        ]
    )
    held = dlopt.transform(model, recipe)
    held.update_transforms(0)
    held.compile(keras.optimizers.SGD(0.1), "mse")
    moved = held.model.get_layer("a").kernel
    moved.assign_add(0.1 * keras.ops.ones_like(moved))
    head = model.get_layer("c").get_weights()
    mse = np.mean((np.asarray(held(X)) - Y) ** 2)
    # of `a` half of the entries are masked: 18 of 36 have moved by 0.1
    extra = 0.25 * sum(np.sum(w**2) for w in head) + 1.5 * 18 * 0.1**2
    assert held.evaluate(X, Y, verbose=0) == pytest.approx(mse, rel=1e-5)
    loss = held.train_on_batch(X, Y)
    assert loss == pytest.approx(mse + extra, rel=1e-4)


def test_strong_l2_sp_holds_the_start():
    far = []
    for strength in (0.0, 5.0):
        model = net()
        recipe = dlopt.Recipe([(dlopt.everything(), adapt.L2SP(strength))])
        held = dlopt.transform(model, recipe)
        held.compile(keras.optimizers.SGD(0.1), "mse")
        held.fit(X, Y, epochs=20, batch_size=16, verbose=0)
        far.append(adapt.moved(model, held).layers[-1].distance)
    assert 0 < far[1] < 0.3 * far[0]
    assert adapt.moved(net(), net()).layers[0].relative == 0


def test_rates_fall_with_depth():
    model = net()
    rates = adapt.layer_rates(model, 0.5, slowest=0.3)
    assert [factor for _, factor in rates] == [0.3, 0.5]
    optimizer = dlopt.optimizers.SGD(1.0, multipliers=rates)
    before = model.get_weights()
    optimizer.apply(
        [keras.ops.ones_like(v) for v in model.trainable_variables],
        model.trainable_variables,
    )
    steps = [np.max(b - a) for b, a in zip(before, model.get_weights(), strict=True)]
    np.testing.assert_allclose(steps, [0.3, 0.3, 0.5, 0.5, 1, 1], rtol=1e-6)


def test_rates_reach_what_a_transform_trains():
    tuned = dlopt.transform(net(), adapt.lora_recipe(net(), 1))
    rates = adapt.layer_rates(
        tuned, 0.1, groups=[dlopt.matching("[ab]/.*")] * 1 + [dlopt.matching("c/.*")]
    )
    (pair,) = rates
    assert pair[1] == pytest.approx(0.1)
    assert len(pair[0].paths) == 4
    tuned.compile(dlopt.optimizers.SGD(1.0, multipliers=rates), "mse")
    tuned.fit(X, Y, verbose=0)


def test_statistics_are_those_of_the_new_data():
    model = keras.Sequential(
        [keras.Input((3,)), L.Dropout(0.5), L.BatchNormalization(), L.Dense(2)]
    )
    model.layers[1].trainable = False
    x = RNG.normal(3.0, 2.0, size=(21, 3)).astype("float32")
    assert adapt.adapt_statistics(model, x, batch_size=10) == 1
    parts = [x[:10], x[10:20]]
    norm = model.layers[1]
    np.testing.assert_allclose(
        norm.moving_mean, np.mean([p.mean(0) for p in parts], 0), rtol=1e-5
    )
    np.testing.assert_allclose(
        norm.moving_variance, np.mean([p.var(0) for p in parts], 0), rtol=1e-4
    )
    assert not norm.trainable
    with pytest.raises(DataError, match="at least two examples. Received: 1"):
        adapt.adapt_statistics(model, x[:1])
    with pytest.raises(ModelError, match="has no BatchNormalization, so there"):
        adapt.adapt_statistics(net(), X)


def test_what_moved_is_told_by_layer():
    before, after = net(), adapt.new_head(net(), 5)
    after.get_layer("a").kernel.assign(2 * after.get_layer("a").kernel)
    moves = adapt.moved(before, after)
    kernel = np.asarray(before.get_layer("a").kernel)
    assert moves.layers[0].distance == pytest.approx(np.linalg.norm(kernel), rel=1e-6)
    assert moves.layers[0].relative == pytest.approx(1.0)
    assert moves.layers[1] == adapt.Move("b", 42, 0.0, 0.0)
    assert moves.new == ("head/kernel", "head/bias")
    assert moves.gone == ("c/kernel", "c/bias")
    text = str(moves)
    assert f"a          42    1.0000  {'#' * 24}" in text
    assert text.endswith("gone: c/kernel, c/bias")
    assert moves.to_dict()["layers"][1]["path"] == "b"
    zero = keras.Sequential([keras.Input((2,)), L.Dense(2, name="a")])
    zero.set_weights([np.zeros((2, 2)), np.zeros(2)])
    other = keras.models.clone_model(zero)
    other.set_weights([np.ones((2, 2)), np.zeros(2)])
    assert adapt.moved(zero, other).layers[0].relative == np.inf
    with pytest.raises(ModelError, match="no weight of the same path and shape"):
        adapt.moved(zero, net())


def test_what_is_refused():
    with pytest.raises(ConfigError, match="LowRankDelta needs weights of two or more"):
        dlopt.transform(
            net(), dlopt.Recipe([(dlopt.named("bias"), adapt.LowRankDelta(1))])
        )
    with pytest.raises(ConfigError, match="rank must be a whole number, 1 or greater"):
        adapt.LowRankDelta(0)
    with pytest.raises(ConfigError, match="toward must be 'start' or 'zero'"):
        adapt.L2SP(0.1, toward="strat")
    with pytest.raises(ConfigError, match="strength must be a number, 0 or greater"):
        adapt.L2SP(-1.0)
    with pytest.raises(ConfigError, match="must be the first of its chain"):
        dlopt.FakeQuant(bits=8) >> adapt.Frozen()
    with pytest.raises(
        ConfigError, match="No selected weight is larger than two factor"
    ):
        adapt.lora_recipe(net(), 6)
    with pytest.raises(
        ConfigError, match="select names 'a/kern', .* Near it: 'a/kernel'"
    ):
        adapt.lora_recipe(net(), 1, select=dlopt.at("a/kern"))
    with pytest.raises(ConfigError, match="select must be a selector. Received: 'a'"):
        adapt.lora_recipe(net(), 1, train="a")
    with pytest.raises(ConfigError, match="Keras has no LoRA for .'a/bias'"):
        adapt.enable_lora(net(), 1, select=dlopt.at("a/bias"))
    with pytest.raises(ModelError, match="No layer of .* has Keras' LoRA on"):
        adapt.merge_lora(net())
    with pytest.raises(ConfigError, match="groups must be selectors from the inputs"):
        adapt.layer_rates(net(), groups=[])
    flat = keras.Sequential([keras.Input((3,)), L.BatchNormalization()])
    with pytest.raises(ModelError, match="has no kernel, so its layers have no order"):
        adapt.layer_rates(flat)
