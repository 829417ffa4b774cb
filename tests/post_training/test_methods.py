"""Equalization, bias correction, AdaRound and mixed precision do what they say."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_dlopt as dlopt
from keras_dlopt import post_training
from keras_dlopt.errors import ConfigError, ModelError
from keras_dlopt.graph.copying import copy_model
from keras_dlopt.post_training.bias import corrections
from keras_dlopt.post_training.mixed import _knapsack
from keras_dlopt.transforms import FakeQuant, IntegerCodes


def distance(a, b):
    a, b = np.asarray(a, "float64"), np.asarray(b, "float64")
    return float(np.square(a - b).mean() / np.square(b - b.mean(0)).mean())


def uneven(model, seed=0):
    """Gives the channels of normalizations sizes that differ a hundredfold."""
    rng = np.random.default_rng(seed)
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            n = layer.gamma.shape[0]
            layer.gamma.assign(np.exp(2 * rng.normal(size=n)))
            layer.beta.assign(rng.normal(size=n))
            layer.moving_mean.assign(rng.normal(size=n) / 4)
            layer.moving_variance.assign(rng.uniform(0.5, 2, n))
    return model


def net(relu=None):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 6, 2))
    x = layers.Conv2D(6, 3, padding="same", use_bias=False, name="a")(inputs)
    x = layers.BatchNormalization(name="a_bn")(x)
    x = layers.ReLU(relu, name="a_relu")(x)
    x = layers.DepthwiseConv2D(3, depth_multiplier=2, name="dw")(x)
    x = layers.BatchNormalization(name="dw_bn")(x)
    x = layers.ReLU(name="dw_relu")(x)
    x = layers.MaxPooling2D(2, name="max")(x)
    x = layers.Conv2DTranspose(4, 2, name="up")(x)
    x = layers.BatchNormalization(name="up_bn")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return uneven(keras.Model(inputs, layers.Dense(3, name="out")(x)))


@pytest.fixture(scope="module")
def data():
    return np.random.default_rng(1).normal(size=(96, 6, 6, 2)).astype("float32")


def test_folding_keeps_the_function_and_drops_the_layers(data):
    model = net()
    folded = post_training.fold_batch_normalization(model)
    assert not [n for n in (v.name for v in folded.layers) if n.endswith("_bn")]
    np.testing.assert_allclose(folded(data), model(data), rtol=1e-4, atol=1e-4)


def test_equalization_keeps_the_function_and_evens_the_channels(data):
    model = net()
    equal = post_training.equalize(model)
    np.testing.assert_allclose(equal(data), model(data), rtol=1e-3, atol=1e-3)
    first = np.abs(equal.get_layer("a").kernel.numpy()).max(axis=(0, 1, 2))
    second = np.abs(equal.get_layer("dw").kernel.numpy()).max(axis=(0, 1, 3))
    np.testing.assert_allclose(first, second, rtol=0.01)  # the paper's optimum
    coarse = dlopt.FakeQuant(bits=6, per_channel=False)
    folded = post_training.fold_batch_normalization(model)

    def loss(source):
        small = post_training.dynamic_range(source, weights=coarse)
        # Constant offsets are what correct_bias is for.
        error = np.asarray(small(data), "float64") - np.asarray(model(data))
        return np.square(error - error.mean(0)).mean()

    assert loss(equal) < 0.5 * loss(folded)


def test_one_pair_is_scaled_as_the_formula_says():
    model = keras.Sequential(
        [keras.Input((2,)), layers.Dense(3, activation="relu"), layers.Dense(2)]
    )
    first = np.array([[4.0, 1.0, -0.5], [1.0, -9.0, 0.25]], "float32")
    second = np.array([[1.0, 0.5], [1.0, -1.0], [-2.0, 1.0]], "float32")
    model.set_weights([first, np.ones(3), second, np.zeros(2)])
    equal = post_training.equalize(model)
    scale = np.sqrt(np.array([4.0, 9.0, 0.5]) / np.array([1.0, 1.0, 2.0]))
    got = equal.get_weights()
    np.testing.assert_allclose(got[0], first / scale, rtol=1e-6)
    np.testing.assert_allclose(got[1], 1 / scale, rtol=1e-6)
    np.testing.assert_allclose(got[2], second * scale[:, None], rtol=1e-6)


def bn_used_twice(x):
    norm = layers.BatchNormalization()
    return norm(layers.Conv2D(2, 1)(x)) + norm(x)


def bn_of_a_nested_model(x):
    inner = keras.Sequential([keras.Input((6, 6, 3)), layers.BatchNormalization()])
    return inner(layers.Conv2D(3, 1)(x))


def conv_taken_by_an_operation_too(x):
    made = layers.Conv2D(2, 1)(x)
    return layers.BatchNormalization()(made) + made


def relu_taken_by_an_operation_too(x):
    made = layers.Conv2D(2, 1, activation="relu")(x)
    return layers.Conv2D(2, 1)(made) + made


@pytest.mark.parametrize(
    "block",
    [
        bn_used_twice,
        bn_of_a_nested_model,
        lambda x: layers.BatchNormalization(axis=1)(layers.Conv2D(2, 1)(x)),
        conv_taken_by_an_operation_too,
        relu_taken_by_an_operation_too,
    ],
)
def test_what_cannot_be_folded_or_scaled_is_left_alone(data, block):
    inputs = keras.Input((6, 6, 2))
    model = keras.Model(inputs, block(inputs))
    rng = np.random.default_rng(0)
    model.set_weights([rng.uniform(0.2, 2, w.shape) for w in model.get_weights()])
    equal = post_training.equalize(model)
    np.testing.assert_allclose(equal(data), model(data), rtol=1e-4, atol=1e-4)


@keras.saving.register_keras_serializable("dlopt_tests")
class Adds(layers.Layer):
    """Uses what it takes beside the layer inside it."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = layers.Dense(4)

    def build(self, input_shape):
        self.dense.build(input_shape)

    def call(self, inputs):
        return inputs + self.dense(inputs)


def test_what_a_layer_does_in_its_own_code_is_not_equalized():
    inputs = keras.Input((6,))
    x = Adds()(layers.Dense(4, activation="relu")(inputs))
    model = keras.Model(inputs, layers.Dense(2)(x))
    rng = np.random.default_rng(0)
    model.set_weights([rng.normal(size=w.shape) for w in model.get_weights()])
    x = rng.normal(size=(8, 6)).astype("float32")
    np.testing.assert_array_equal(post_training.equalize(model)(x), model(x))


def test_relu6_is_replaced_or_its_pair_left_alone(data):
    model = net(relu=6.0)
    replaced = post_training.equalize(model)
    assert replaced.get_layer("a_relu").max_value is None
    kept = post_training.equalize(model, relu6="keep")
    assert kept.get_layer("a_relu").max_value == 6
    np.testing.assert_allclose(kept(data), model(data), rtol=1e-3, atol=1e-3)
    with pytest.raises(ConfigError, match="relu6 must be 'replace' or 'keep'"):
        post_training.equalize(model, relu6="clip")


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(2)

    def call(self, inputs):
        return self.dense(inputs)


def test_subclassed_models_cannot_be_folded():
    model = Subclassed()
    model(np.zeros((1, 3), "float32"))
    with pytest.raises(ModelError, match="takes built Sequential and Functional"):
        post_training.equalize(model)


def test_bias_correction_takes_out_the_mean_error(data):
    model = net()
    small = post_training.quantize(
        model, data, weights=FakeQuant(bits=3), observer="min_max"
    )
    before = np.abs(np.mean(small(data) - model(data), axis=0))
    corrected = post_training.correct_bias(small, data)
    assert corrected == 4  # each has a bias or a normalization
    after = np.abs(np.mean(small(data) - model(data), axis=0))
    # What is left is the rounding of the logits to 8 bits.
    assert after.max() < 0.1 * before.max()


def test_the_bias_of_a_dense_layer_takes_up_its_mean_error():
    x = np.abs(np.random.default_rng(2).normal(size=(64, 12))).astype("float32")
    model = keras.Sequential([keras.Input((12,)), layers.Dense(5)])
    small = post_training.dynamic_range(model, weights=FakeQuant(bits=2))
    mean = np.mean(small(x) - model(x), axis=0)
    assert np.abs(mean).max() > 0.1
    before = small.model.layers[0].bias.numpy()
    assert post_training.correct_bias(small, x) == 1
    after = small.model.layers[0].bias.numpy()
    np.testing.assert_allclose(after, before - mean, atol=1e-5)


def test_bias_correction_keeps_the_spread_of_normalized_channels(data):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 6, 2))
    x = layers.BatchNormalization()(layers.Conv2D(4, 3)(inputs))
    model = uneven(keras.Model(inputs, x))
    small = post_training.dynamic_range(model, weights=FakeQuant(bits=2))
    wanted = np.asarray(model(data)).reshape(-1, 4)
    before = np.asarray(small(data)).reshape(-1, 4)
    assert np.abs(before.std(0) / wanted.std(0) - 1).max() > 0.05
    assert post_training.correct_bias(small, data) == 1
    after = np.asarray(small(data)).reshape(-1, 4)
    np.testing.assert_allclose(after.mean(0), wanted.mean(0), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(after.std(0), wanted.std(0), rtol=1e-3)


def test_bias_correction_passes_an_activation_before_the_normalization(data):
    inputs = keras.Input((6, 6, 2))
    x = layers.Conv2D(4, 3, use_bias=False, activation="relu")(inputs)
    model = keras.Model(inputs, layers.BatchNormalization()(x))
    small = post_training.dynamic_range(model, weights=FakeQuant(bits=2))
    assert post_training.correct_bias(small, data) == 0


def test_bias_correction_leaves_layers_without_a_place_for_it(data):
    x = data.reshape(96, -1)[:, :8]
    model = keras.Sequential(
        [keras.Input((8,)), layers.Dense(4, use_bias=False, activation="relu")]
    )
    small = post_training.quantize(model, x)
    assert post_training.correct_bias(small, x) == 0


@pytest.mark.slow
def test_adaround_beats_the_nearest(data):
    model = net()
    nearest = post_training.quantize(model, data, weights=FakeQuant(bits=3))
    small = post_training.adaround(nearest, data, steps=200)
    near, better = (distance(m(data), model(data)) for m in (nearest, small))
    assert better < 0.6 * near
    plain = dlopt.finalize(small)
    hints = dlopt.transforms.coding_hints(plain)
    assert len(hints) == 4
    for group, before in zip(small.groups, nearest.groups, strict=True):
        for slot, old in zip(group.slots, before.slots, strict=True):
            if isinstance(group.transform, IntegerCodes):
                target = old.target
                weight = target.variable.numpy()
                _, hint = before.transform.finalize(target, weight, old.arrays())
                moved = slot.state["codes"].numpy() - hint.codes
                assert set(np.unique(moved)) <= {-1, 0, 1}


def test_corrections_of_another_rounding_are_taken_back(data):
    model = net()
    small = post_training.quantize(model, data, weights=FakeQuant(bits=3))
    post_training.correct_bias(small, data)
    once = small.model.get_weights()
    post_training.correct_bias(small, data)
    for a, b in zip(once, small.model.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    better = post_training.adaround(small, data[:8], steps=1)
    for a, b in zip(model.get_weights(), better.model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(once[-1], model.get_weights()[-1])


@pytest.mark.parametrize("way", ["file", "copy"])
def test_corrections_travel_with_the_model(data, tmp_path, way):
    small = post_training.quantize(net(), data, weights=FakeQuant(bits=3))
    assert "corrections" not in small.get_config()
    post_training.correct_bias(small, data)
    if way == "file":
        small.save(tmp_path / "model.keras")
        again = keras.saving.load_model(tmp_path / "model.keras")
    else:
        again = copy_model(small)
    assert again.corrections == small.corrections
    adapted = [post_training.adaround(m, data[:8], steps=1) for m in (small, again)]
    assert not adapted[0].corrections
    for m in (small, again):
        post_training.correct_bias(m, data)
    for one, other in (adapted, (small, again)):
        for a, b in zip(one.get_weights(), other.get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)


def test_corrections_of_weights_that_changed_since_stay(data):
    small = post_training.quantize(net(), data, weights=FakeQuant(bits=3))
    post_training.correct_bias(small, data)
    kept = corrections(small)
    place = small.corrections[0][0]
    trained = small.model.variables[place]
    trained.assign(trained + 1)
    assert sorted(corrections(small)) == sorted(set(kept) - {place})
    small.corrections = ((999, "", ""), *small.corrections)
    assert 999 not in corrections(small)


def test_frozen_normalizations_are_measured_too():
    net = keras.Sequential(
        [keras.Input((2,)), layers.BatchNormalization(trainable=False, name="n")]
    )
    x = np.array([[1.0, 2.0], [3.0, 4.0]], "float32")
    assert post_training.recalibrate_batch_normalization(net, x) == 1
    np.testing.assert_allclose(net.get_layer("n").moving_mean, [2, 3])
    assert not net.get_layer("n").trainable


def test_adaround_keeps_zeros_and_needs_a_grid():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 8)).astype("float32")
    model = keras.Sequential([keras.Input((8,)), layers.Dense(4, name="d")])
    recipe = dlopt.Recipe(
        [(dlopt.named("kernel"), dlopt.Prune(0.5) >> dlopt.FakeQuant(bits=3))]
    )
    small = post_training.quantize(model, x, recipe=recipe)
    rounded = post_training.adaround(small, x, steps=20)
    kernel = dlopt.finalize(rounded).get_layer("d").kernel.numpy()
    zeros = dlopt.finalize(small).get_layer("d").kernel.numpy() == 0
    assert np.count_nonzero(kernel == 0) >= 16
    assert np.all((kernel == 0)[np.abs(model.get_layer("d").kernel.numpy()) < 0.05])
    assert zeros.sum() >= 16
    pruned = dlopt.Recipe([(dlopt.named("kernel"), dlopt.Prune(0.5))])
    float_kernels = dlopt.transform(model, pruned)
    with pytest.raises(ConfigError, match="no kernels under FakeQuant"):
        post_training.adaround(float_kernels, x)


def test_adaround_takes_layers_that_are_called_on_several_sizes(data):
    inputs, conv = keras.Input((6, 6, 2)), layers.Conv2D(2, 3, padding="same")
    x = conv(inputs)
    model = keras.Model(inputs, [x, conv(layers.MaxPooling2D()(x))])
    small = post_training.quantize(model, data, weights=FakeQuant(bits=4))
    better = post_training.adaround(small, data[:8], steps=1)
    assert np.isfinite(np.asarray(better(data[:2])[1])).all()


def test_mixed_precision_spends_bits_where_they_matter(data):
    model = net()
    kernels = {t.path: t for t in dlopt.int8.recipes.kernel_targets(model)}
    eight = sum(int(np.prod(t.shape)) for t in kernels.values())
    scales = 4 * (6 + 12 + 4 + 3)
    choice = post_training.mixed_precision(
        model, data, budget=eight // 2 + scales, bits=(2, 4, 8)
    )
    assert choice.size <= eight // 2 + scales
    assert set(choice.bits) == set(kernels)
    uniform = sum(costs[4] for costs in choice.sensitivity.values())
    assert choice.damage <= uniform
    small = post_training.quantize(model, data, recipe=choice.recipe(observer="mse"))
    four = post_training.dynamic_range(model, weights=FakeQuant(bits=4, observer="mse"))
    assert distance(small(data), model(data)) <= distance(four(data), model(data))
    with pytest.raises(ConfigError, match="need at least .* bytes"):
        post_training.mixed_precision(model, data, budget=10)
    with pytest.raises(ConfigError, match="at least one width"):
        post_training.sensitivity(model, data, bits=())
    with pytest.raises(ConfigError, match="no kernels to quantize"):
        post_training.sensitivity(
            keras.Sequential([keras.Input((2,)), layers.ReLU()]), np.ones((2, 2))
        )


def test_the_knapsack_is_exact():
    rng = np.random.default_rng(0)
    for _ in range(20):
        sizes = {
            k: {b: int(n) * b for b in (2, 4, 8)}
            for k, n in zip("abcd", rng.integers(1, 40, 4), strict=True)
        }
        costs = {
            k: {
                b: float(c)
                for b, c in zip((2, 4, 8), sorted(rng.random(3))[::-1], strict=True)
            }
            for k in "abcd"
        }
        budget = int(sum(r[2] for r in sizes.values()) * rng.uniform(1, 3))
        chosen = _knapsack(sizes, costs, budget)
        import itertools

        best = min(
            sum(costs[k][b] for k, b in zip("abcd", bits, strict=True))
            for bits in itertools.product((2, 4, 8), repeat=4)
            if sum(sizes[k][b] for k, b in zip("abcd", bits, strict=True)) <= budget
        )
        assert sum(costs[k][b] for k, b in chosen.items()) == pytest.approx(best)
        assert sum(sizes[k][b] for k, b in chosen.items()) <= budget
