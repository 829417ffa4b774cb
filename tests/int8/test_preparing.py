"""The normal form of int8: the same function, and a layer for every quantizer."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_dlopt as dlopt
from keras_dlopt.errors import ConfigError
from keras_dlopt.graph.targets import weight_targets
from keras_dlopt.graph.trace import trace
from keras_dlopt.graph.walk import is_functional, layers_below, operations
from keras_dlopt.int8 import prepare
from keras_dlopt.int8.placement import place
from keras_dlopt.layers import SqueezeExcitation
from support.generated import drawn


def functional(body, shape=(8, 8, 4)):
    """A model of one tensor, its weights random."""
    inputs = keras.Input(shape)
    model = keras.Model(inputs, body(inputs))
    rng = np.random.default_rng(0)
    for weight in model.weights:
        shift = 1.0 if weight.name in ("moving_variance", "gamma") else 0.0
        weight.assign(shift + rng.uniform(-0.5, 0.5, weight.shape))
    return model


def batch(model, scale=1.0):
    rng = np.random.default_rng(1)
    x = [scale * rng.normal(size=(5, *t.shape[1:])) for t in model.inputs]
    x = [one.astype("float32") for one in x]
    return x if len(x) > 1 else x[0]


def flat(outputs):
    return [ops.convert_to_numpy(one) for one in keras.tree.flatten(outputs)]


def assert_same(one, two, x, tolerance=1e-5):
    for a, b in zip(flat(one(x)), flat(two(x)), strict=True):
        largest = max(float(np.abs(a).max(initial=0)), 1e-3)
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * largest)


def kinds(model):
    return [type(layer).__name__ for layer in model.layers[1:]]


PAIR = {
    "add": lambda x, y: x + y,
    "subtract": lambda x, y: x - y,
    "multiply": lambda x, y: x * y,
    "maximum": ops.maximum,
    "minimum": ops.minimum,
}


@pytest.mark.parametrize("name", sorted(PAIR))
def test_operations_on_two_tensors_become_layers(name):
    def body(x):
        return PAIR[name](layers.Dense(4)(x), layers.Dense(4)(x))

    model = functional(body)
    made = prepare(model)
    assert kinds(made) == ["Dense", "Dense", name.capitalize()]
    assert_same(model, made, batch(model))
    assert place(trace(made)).problems == []


@pytest.mark.parametrize(
    ("call", "kind"),
    [
        (ops.relu, "Activation"),
        (ops.sigmoid, "Activation"),
        (lambda x: ops.softmax(x, axis=1), "Softmax"),
        (lambda x: ops.leaky_relu(x, 0.3), "LeakyReLU"),
        (lambda x: ops.elu(x, 0.5), "OperationLayer"),
        (ops.elu, "Activation"),
        (ops.gelu, "OperationLayer"),
        (lambda x: ops.gelu(x, approximate=False), "Activation"),
        (lambda x: x[:, 1:3, ::-1], "OperationLayer"),
        (lambda x: ops.mean(x, axis=(1, 2)), "OperationLayer"),
        (lambda x: x / 127.5 - 1.0, "Rescaling"),
        (lambda x: 2.0 - x * np.array([1, 2, 3, 4], "float32"), "Rescaling"),
        (lambda x: x + np.arange(8.0)[:, None], "OperationLayer"),
    ],
)
def test_operations_on_one_tensor_become_a_layer(call, kind, tmp_path):
    model = functional(call)
    made = prepare(model)
    assert kinds(made) == [kind]
    assert operations(made) == []
    assert_same(model, made, batch(model))
    made.save(tmp_path / "made.keras")
    assert_same(made, keras.models.load_model(tmp_path / "made.keras"), batch(made), 0)


def test_tensors_of_unequal_ranks_are_joined_as_before():
    def body(x):
        return layers.Dense(4)(x) * ops.mean(x, axis=(0, 1, 2))

    model = functional(body)
    made = prepare(model)
    assert sorted(kinds(made)) == ["Dense", "OperationLayer", "OperationLayer"]
    assert_same(model, made, batch(model))


def test_operations_on_integers_stay():
    def body(x):
        return ops.cast(ops.argmax(x, axis=-1), "float32") * 0.5

    made = prepare(functional(body))
    assert [type(one).__name__ for _, one in operations(made)] == ["Argmax", "Cast"]


@pytest.mark.parametrize(
    ("make", "kinds_made"),
    [
        (
            lambda: layers.SeparableConv2D(3, 3, strides=2, depth_multiplier=2),
            ["DepthwiseConv2D", "Conv2D"],
        ),
        (
            lambda: layers.SeparableConv1D(3, 3, activation="tanh", padding="same"),
            ["DepthwiseConv1D", "Conv1D", "Activation"],
        ),
        (
            lambda: layers.Activation("hard_sigmoid"),
            ["Rescaling", "ReLU", "Rescaling"],
        ),
        (
            lambda: layers.Dense(3, activation="hard_sigmoid"),
            ["Dense", "Rescaling", "ReLU", "Rescaling"],
        ),
        (lambda: layers.Dense(3, activation="softmax"), ["Dense", "Activation"]),
        (lambda: SqueezeExcitation(0.5), ["Functional"]),
    ],
)
def test_layers_in_parts(make, kinds_made):
    layer = make()
    shape = (8, 4) if "1D" in type(layer).__name__ else (8, 8, 4)
    model = functional(layer, shape)
    made = prepare(model)
    assert kinds(made) == kinds_made
    assert_same(model, made, batch(model, 4.0))
    assert place(trace(made)).problems == []
    assert len(weight_targets(made)) == len(weight_targets(model))


def test_an_average_is_a_sum_and_a_scale():
    def body(x):
        return layers.Average()([layers.Dense(4)(x) for _ in range(3)])

    model = functional(body)
    made = prepare(model)
    assert kinds(made)[-2:] == ["Add", "Rescaling"]
    assert_same(model, made, batch(model))


def test_what_squeezes_keeps_its_paths():
    model = functional(SqueezeExcitation(0.5, name="se"))
    paths = [target.path for target in weight_targets(model)]
    assert [target.path for target in weight_targets(prepare(model))] == paths


def test_an_input_that_is_joined_gets_a_layer():
    model = functional(lambda x: layers.Add(name="a")([layers.Dense(4)(x), x]))
    made = prepare(model)
    assert "a_input" in [layer.name for layer in made.layers]
    assert place(trace(made)).problems == []
    assert_same(model, made, batch(model))


def test_constants_go_into_kernels_where_that_is_exact():
    def body(x):
        x = layers.Conv2D(4, 3, name="valid")(x / 127.5 - 1.0)
        x = layers.Conv2D(4, 3, padding="same", name="same")(layers.ReLU()(x) - 1.0)
        return layers.Rescaling(3.0, 1.0)(x)

    model = functional(body)
    assert kinds(prepare(model)).count("Rescaling") == 3
    folded = prepare(model, fold=True)
    # Before a layer that pads, an offset stays.
    assert kinds(folded) == ["Conv2D", "ReLU", "Rescaling", "Conv2D"]
    assert_same(model, folded, batch(model, 100.0))


def test_masks_end_where_they_ended():
    inputs = keras.Input((6, 4))
    x = layers.Masking()(inputs)
    y = layers.LSTM(3)(ops.relu(layers.Dense(4)(x)) * 2.0)
    model = keras.Model(inputs, y)
    x = batch(model)
    x[:, 2:4] = 0
    made = prepare(model)
    assert kinds(made).count("OperationLayer") == 2
    assert_same(model, made, x)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "bfloat16"])
def test_short_types_become_float32(policy):
    inputs = keras.Input((8, 8, 4))
    x = layers.Conv2D(4, 3, dtype=policy)(inputs)
    x = layers.BatchNormalization(dtype=policy)(x)
    inner = keras.Sequential([keras.Input((6, 6, 4)), layers.Dense(3, dtype=policy)])
    model = keras.Model(inputs, inner(ops.relu(x)))
    made = prepare(model)
    below = [layer for layer in layers_below(made) if not is_functional(layer)]
    assert {layer.compute_dtype for layer in below} == {"float32"}
    for old, new in zip(model.weights, made.weights, strict=True):
        assert new.dtype == "float32"
        np.testing.assert_array_equal(flat(ops.cast(old, "float32")), flat(new))
    assert_same(model, made, batch(model), 3e-2)


def test_mixed_precision_has_the_places_of_float32():
    def net(policy):
        conv = layers.Conv2D(4, 3, use_bias=False, dtype=policy, name="c")
        bn = layers.BatchNormalization(dtype=policy, name="bn")
        relu = layers.ReLU(dtype=policy, name="r")
        return keras.Sequential([keras.Input((8, 8, 1)), conv, bn, relu])

    assert dlopt.int8_recipe(net("mixed_float16")) == dlopt.int8_recipe(net("float32"))


def test_a_subclassed_model_is_told_what_to_do():
    class Own(keras.Model):
        def call(self, inputs):
            return inputs * 2.0

    model = Own()
    model(np.zeros((1, 2)))
    with pytest.raises(ConfigError, match="prepare takes a built Sequential or Func"):
        prepare(model)


def test_a_model_in_normal_form_is_copied():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(2, name="d")])
    made = prepare(model)
    assert made is not model
    assert made.layers[0] is not model.layers[0]
    assert_same(model, made, batch(model), 0)


@pytest.mark.filterwarnings("ignore:(?s).*softmax over axis")
@pytest.mark.parametrize("first", range(0, 120, 20))
def test_drawn_models_keep_their_function(first):
    for seed in range(first, first + 20):
        one = drawn(seed)
        if not is_functional(one.model):
            continue
        for fold in (False, True):
            made = prepare(one.model, fold=fold)
            try:
                assert_same(one.model, made, one.x, 2e-5)
                problems = place(trace(made, one.x)).problems
                assert not any("no layer" in text for text in problems)
                assert not any("int8.prepare" in text for text in problems)
            except AssertionError as error:
                error.add_note(f"drawn({seed}), fold={fold}: {one.notes}")
                raise
