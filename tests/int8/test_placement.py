"""Quantizers land where LiteRT's operations end, and refusals say what to do."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_dlopt as dlopt
from keras_dlopt.errors import ConfigError, ModelError
from keras_dlopt.graph.targets import weight_targets
from keras_dlopt.graph.trace import trace
from keras_dlopt.graph.walk import layers_below
from keras_dlopt.int8 import int8_recipe, quantization_recipe, split_activations
from keras_dlopt.layers import Residual
from keras_dlopt.transforms import LSQ, LSQPlusActivation, MinMax


def sequential(*parts, shape=(8, 8, 4)):
    return keras.Sequential([keras.Input(shape), *parts])


def places(model, **kwargs):
    """Path -> fixed range or None, for the recipe's activation quantizers."""
    return {
        path: transform.range
        for selector, transform in int8_recipe(model, **kwargs).entries
        if transform.kind == "activation"
        for path in selector.paths
    }


def test_residual_block_is_quantized_at_the_ends_of_operations():
    inputs = keras.Input((8, 8, 1))
    x = layers.Conv2D(4, 3, padding="same", name="c1")(inputs)
    x = layers.BatchNormalization(name="b1")(x)
    x = layers.ReLU(name="r1")(x)
    y = layers.Conv2D(4, 3, padding="same", name="c2")(x)
    y = layers.BatchNormalization(name="b2")(y)
    x = layers.ReLU(name="r2")(layers.Add(name="add")([x, y]))
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    x = layers.Dropout(0.5, name="drop")(x)
    model = keras.Model(inputs, layers.Dense(3, name="out")(x))
    recipe = int8_recipe(model, input_range=(0, 1))
    assert places(model, input_range=(0, 1)) == {
        "c1/input": (0.0, 1.0),
        "r1/output": None,
        "b2/output": None,
        "r2/output": None,
        "pool/output": None,
        "out/output": None,
    }
    kernels, weights = recipe.entries[-1]
    assert kernels.paths == ("c1/kernel", "c2/kernel", "out/kernel")
    assert weights.bits == 8
    assert dlopt.Recipe.from_json(recipe.to_json()) == recipe


def test_fused_activations_pooling_and_reshaping():
    model = sequential(
        layers.ZeroPadding2D(name="pad"),
        layers.Conv2D(4, 3, activation="relu", name="c1"),
        layers.MaxPooling2D(name="max"),
        layers.DepthwiseConv2D(3, padding="same", use_bias=False, name="dw"),
        layers.BatchNormalization(name="bn"),
        layers.ReLU(6.0, name="relu6"),
        layers.AveragePooling2D(2, name="avg"),
        layers.Flatten(name="flat"),
        layers.Dense(3, name="out"),
        layers.Softmax(name="prob"),
    )
    assert places(model) == {
        "pad/input": None,
        "max/output": None,
        "relu6/output": None,
        "avg/output": None,
        "out/output": None,
        "prob/output": (0.0, 255 / 256),
    }


def test_concatenation_has_one_quantizer_after_it():
    inputs = keras.Input((8, 8, 4))
    shared = layers.Conv2D(4, 1, activation="relu", name="shared")(inputs)
    a = layers.Conv2D(4, 1, name="a")(shared)
    b = layers.MaxPooling2D(3, 1, padding="same", name="b")(shared)
    t = layers.Activation("tanh", name="t")(a)
    x = layers.Concatenate(name="cat")([a, b, t, inputs])
    alone = layers.Conv2D(4, 1, name="alone")(x)
    model = keras.Model(inputs, layers.Concatenate(name="end")([alone, x]))
    assert places(model) == {
        "shared/input": None,
        "shared/output": None,
        "a/output": None,
        "t/output": (-1.0, 127 / 128),
        "cat/output": None,
        "end/output": None,
    }


def test_activations_that_are_operations_of_their_own():
    model = sequential(
        layers.Conv2D(4, 1, name="c"),
        layers.LeakyReLU(0.1, name="leaky"),
        layers.Dense(2, name="d"),
        layers.Activation("sigmoid", name="s"),
    )
    assert places(model) == {
        "c/input": None,
        "c/output": None,
        "leaky/output": None,
        "d/output": None,
        "s/output": (0.0, 255 / 256),
    }


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.conv = layers.Conv2D(4, 3, padding="same", name="conv")
        self.block = keras.Sequential(
            [
                layers.Conv2D(4, 3, padding="same", name="inner"),
                layers.BatchNormalization(name="bn"),
            ],
            name="block",
        )
        self.add = layers.Add(name="add")

    def call(self, inputs, training=None):
        x = self.conv(inputs)
        return self.add([self.block(x, training=training), x])


def test_subclassed_and_nested_models_are_traced():
    model = Subclassed()
    with pytest.raises(ModelError, match="must be a built keras.Model"):
        int8_recipe(model)
    example = np.zeros((2, 8, 8, 4), "float32")
    model(example)
    expected = {
        "conv/input": None,
        "conv/output": None,
        "block/bn/output": None,
        "add/output": None,
    }
    assert places(model) == expected
    assert places(model, example=example) == expected
    # A trace leaves the layers as they were.
    assert "call" not in vars(model.conv)


class TwoInputs(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(3, name="d")

    def call(self, inputs):
        return self.dense(inputs["a"])


def test_inputs_that_are_not_known_are_asked_for():
    model = TwoInputs()
    example = {"a": np.zeros((2, 4), "float32"), "b": np.zeros((2, 5), "float32")}
    model(example)
    with pytest.raises(ModelError, match="Pass example=, a batch of its inputs"):
        int8_recipe(model)
    assert places(model, example=example) == {"d/input": None, "d/output": None}


def test_a_layer_with_a_shortcut_of_its_own_is_quantized_after_its_sum():
    body = [layers.Conv2D(4, 3, padding="same", name="c"), layers.BatchNormalization()]
    body[1].name = "bn"
    model = sequential(Residual(body, activation="relu", name="res"))
    assert places(model) == {
        "res/input": None,
        "res/bn/output": None,
        "res/output": None,
    }
    plain = Residual(layers.Conv2D(4, 1, name="c"), name="res")
    assert places(sequential(plain, layers.ReLU(name="relu"))) == {
        "res/input": None,
        "res/c/output": None,
        "relu/output": None,
    }


def test_weights_may_be_pruned_first():
    model = sequential(layers.Conv2D(4, 3), layers.Conv2DTranspose(4, 3))
    recipe = int8_recipe(model, weights=dlopt.Prune(0.5) >> dlopt.FakeQuant(bits=8))
    selector, weights = recipe.entries[-1]
    assert len(selector.paths) == 2
    assert [type(link).__name__ for link in weights.links] == ["Prune", "FakeQuant"]


@pytest.mark.parametrize("weights", [dlopt.Prune(0.5), dlopt.FakeQuant(bits=4)])
def test_weights_must_end_on_the_int8_grid(weights):
    with pytest.raises(ConfigError, match=r"end in FakeQuant\(bits=8\)"):
        int8_recipe(sequential(layers.Conv2D(4, 3)), weights=weights)


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        (
            [layers.Permute((1, 3, 2)), layers.BatchNormalization(axis=1)],
            "normalizes 'permute.*' along axis 1, and cannot be folded",
        ),
        (
            [layers.Reshape((64, 4)), layers.BatchNormalization(axis=1)],
            "must directly follow a convolution or dense layer that has no activation",
        ),
        ([layers.SeparableConv2D(4, 3)], r"int8.prepare\(model\) writes it"),
        ([layers.Activation("hard_sigmoid")], r"int8.prepare\(model\) writes it"),
        ([layers.Dense(3, activation="softmax")], r"split_activations\(model\)"),
        ([layers.Activation("selu")], "Activation of 'selu'.*write the entries"),
        ([layers.UnitNormalization()], "a UnitNormalization.*write the entries"),
        ([layers.LayerNormalization()], r"int8.prepare\(model\) writes it"),
    ],
)
def test_layers_without_an_int8_form_are_refused(parts, text):
    model = sequential(*parts)
    with pytest.raises(ConfigError, match=text):
        int8_recipe(model, strict=True)
    with pytest.warns(UserWarning, match="cannot run in int8 alone"):
        assert int8_recipe(model).entries


def test_tensors_that_no_layer_made_are_refused():
    inputs = keras.Input((8,))
    x = layers.Dense(4)(inputs)
    model = keras.Model(inputs, layers.Dense(4)(x + layers.Dense(4)(inputs)))
    with pytest.raises(
        ConfigError, match=r"no layer made.*layers.Add\(\).*int8.prepare"
    ):
        int8_recipe(model, strict=True)
    with pytest.warns(UserWarning, match="that no layer made"):
        assert len(places(model)) == 6  # the sum's taker quantizes it
    ended = keras.Model(inputs, x + layers.Dense(4)(inputs))
    with pytest.raises(ConfigError, match="The model returns a tensor that no layer"):
        int8_recipe(ended, strict=True)
    followed = layers.Add()([x, layers.Dense(4)(inputs)])
    int8_recipe(keras.Model(inputs, layers.Dense(4)(followed)), strict=True)


def test_an_input_that_is_added_needs_a_layer_before():
    inputs = keras.Input((8,))
    x = layers.Dense(8, name="d")(inputs)
    both = keras.Model(inputs, layers.Add(name="a")([x, inputs]))
    with pytest.raises(ConfigError, match="ranges of their own.*Reshape"):
        int8_recipe(both, strict=True)
    kept = layers.Reshape((8,), name="keep")(inputs)
    assert set(places(keras.Model(inputs, layers.Add(name="a")([x, kept])))) == {
        "d/input",
        "keep/input",
        "d/output",
        "a/output",
    }


def text_model():
    tokens = keras.Input((6,), dtype="int32")
    x = layers.Embedding(11, 8, name="table")(tokens)
    y = layers.MultiHeadAttention(2, 4, name="mha")(x, x)
    x = layers.LayerNormalization(name="norm")(layers.Add(name="add")([x, y]))
    x = layers.Bidirectional(layers.GRU(4, return_sequences=True), name="bi")(x)
    x = layers.LSTM(4, name="lstm")(x)
    return keras.Model(tokens, layers.Dense(3, name="out")(x))


def image_model():
    volume = keras.Input((4, 6, 6, 2))
    x = layers.Conv3D(4, (4, 3, 3), name="c3")(volume)
    x = layers.PReLU(name="prelu")(x)
    x = layers.Reshape((16, 4), name="rows")(x)
    x = layers.Conv1D(4, 3, padding="same", name="c1")(x)
    gate = layers.Activation("sigmoid", name="gate")(x)
    x = layers.Multiply(name="product")([x, gate])
    x = layers.Reshape((4, 4, 4), name="square")(x)
    x = layers.SeparableConv2D(4, 3, name="separable")(x)
    x = layers.Activation("swish", name="swish")(x)
    return keras.Model(volume, layers.Dense(3, name="out")(layers.Flatten()(x)))


@pytest.mark.parametrize(
    ("make", "expected", "kernels"),
    [
        (
            text_model,
            {
                "table/output",
                "mha/query/output",
                "mha/key/output",
                "mha/value/output",
                "mha/attention_output/output",
                "add/output",
                "norm/output",
                "bi/output",
                "lstm/output",
                "out/output",
            },
            12,
        ),
        (
            image_model,
            {
                "c3/input",
                "c3/output",
                "prelu/output",
                "c1/output",
                "gate/output",
                "product/output",
                "separable/output",
                "swish/output",
                "out/output",
            },
            5,
        ),
    ],
)
def test_layers_without_rules_are_operations_with_ranges(
    make, expected, kernels, tmp_path
):
    model = make()
    with pytest.warns(UserWarning, match="cannot run in int8 alone"):
        recipe = int8_recipe(model)
    found = {
        path
        for selector, transform in recipe.entries
        if transform.kind == "activation"
        for path in selector.paths
    }
    assert expected <= found
    assert not any("cell" in path for path in found)
    assert len(recipe.entries[-1][0].paths) == kernels
    small = dlopt.transform(model, recipe)
    small.compile("sgd", "sparse_categorical_crossentropy")
    shape = (8, *model.input_shape[1:])
    rng = np.random.default_rng(0)
    x = rng.integers(0, 11, shape) if len(shape) == 2 else rng.normal(size=shape)
    small.fit(x, np.arange(8) % 3, batch_size=4, verbose=0)
    small.save(tmp_path / "small.keras")
    again = keras.saving.load_model(tmp_path / "small.keras")
    np.testing.assert_array_equal(small.predict_on_batch(x), again.predict_on_batch(x))


def test_a_model_input_taken_as_two_arguments_is_quantized_inside():
    inputs = keras.Input((4, 8))
    model = keras.Model(
        inputs, layers.MultiHeadAttention(2, 4, name="m")(inputs, inputs)
    )
    with pytest.warns(UserWarning, match="'m' is a MultiHeadAttention"):
        found = places(model)
    assert {"m/query/input", "m/key/input", "m/value/input"} <= set(found)


def test_like_tfmot_has_its_ranges_and_granularity():
    model = sequential(
        layers.Conv2D(4, 3, name="c"),
        layers.MaxPooling2D(2, name="max"),
        layers.DepthwiseConv2D(3, name="dw"),
        layers.Flatten(),
        layers.Dense(3, name="d"),
    )
    recipe = int8_recipe(model, like="tfmot")
    taken, made, whole, depthwise, rest = (t for _, t in recipe.entries)
    assert "c/output" in recipe.entries[1][0].paths
    assert (taken.initial, taken.observer) == (None, MinMax())
    assert (made.initial, made.momentum) == ((-6.0, 6.0), 0.999)
    assert (whole.per_channel, depthwise.axis, rest.per_channel) == (False, -1, True)
    # One multiplier: one scale for all of a depthwise kernel.
    (target,) = (t for t in weight_targets(model) if t.path == "dw/kernel")
    scale = depthwise.scale(target, np.asarray(target.variable))
    assert scale.shape == (1, 1, 1, 1)
    chained = dlopt.Prune(0.5) >> dlopt.FakeQuant(bits=8)
    entries = int8_recipe(model, weights=chained, like="tfmot").entries
    assert [s.paths for s, _ in entries[2:]] == [
        ("d/kernel",),
        ("dw/kernel",),
        ("c/kernel",),
    ]
    assert not entries[2][1].links[1].per_channel
    with pytest.raises(ConfigError, match="like must be 'litert' or 'tfmot'"):
        int8_recipe(model, like="tf")


def test_any_quantizers_at_the_same_places():
    model = sequential(
        layers.Conv2D(4, 3, name="c"), layers.Activation("tanh", name="t")
    )
    recipe = quantization_recipe(
        model, weights=LSQ(bits=2), activations=LSQPlusActivation(bits=2)
    )
    assert [s.paths for s, _ in recipe.entries] == [
        ("c/input",),
        ("c/output", "t/output"),
        ("c/kernel",),
    ]
    assert quantization_recipe(model, weights=LSQ(bits=2)).entries[0][1].bits == 2
    with pytest.raises(ConfigError, match="weights takes transforms of the kind"):
        quantization_recipe(model, weights=LSQPlusActivation(bits=2))


def test_split_activations_keeps_the_function():
    model = sequential(
        layers.Conv2D(4, 3, activation="relu", name="c"),
        layers.Conv2D(4, 3, activation="tanh", name="t"),
        layers.Dense(3, activation="softmax", name="d"),
    )
    split = split_activations(model)
    assert [layer.name for layer in split.layers[1:]] == [
        "c",
        "t",
        "t_activation",
        "d",
        "d_activation",
    ]
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 4)).astype("float32")
    np.testing.assert_array_equal(model(x), split(x))
    assert places(split)["d_activation/output"] == (0.0, 255 / 256)
    with pytest.raises(ConfigError, match="takes a built Sequential or Functional"):
        split_activations(Subclassed())


def masked():
    rest = [layers.GRU(8), layers.Dense(5, activation="softmax", name="s")]
    return keras.Sequential([keras.Input((10, 6)), layers.Masking(), *rest])


def with_operations():
    x = keras.Input((6,))
    a = layers.Dense(6, activation="tanh", name="s")(x / 127.5 - 1.0)
    return keras.Model(x, layers.Dense(2)(keras.ops.relu(x + a)))


def called_twice():
    a, b = keras.Input((6,)), keras.Input((6,))
    shared = layers.Dense(4, activation="tanh", name="s")
    return keras.Model([a, b], layers.Subtract()([shared(a), shared(b)]))


def nested():
    dense = layers.Dense(6, activation="sigmoid", name="s")
    inner = keras.Sequential([keras.Input((6,)), dense], name="inner")
    x = keras.Input((6,))
    return keras.Model(x, layers.Dense(6, name="end")(inner(inner(x))))


def with_the_name_taken():
    x = keras.Input((6,))
    y = layers.Dense(6, activation="tanh", name="s")(x)
    return keras.Model(x, layers.ReLU(name="s_activation")(y))


@pytest.mark.parametrize(
    "build", [masked, with_operations, called_twice, nested, with_the_name_taken]
)
def test_split_activations_takes_all_that_stands_around(build):
    model = build()
    split = split_activations(model)
    names = [layer.name for layer in layers_below(split)]
    assert "s_activation" in names
    assert len(names) == len(layers_below(model)) + 1
    rng = np.random.default_rng(0)
    shapes = [(3, *t.shape[1:]) for t in model.inputs]
    x = [rng.normal(size=shape).astype("float32") for shape in shapes]
    x = x if len(x) > 1 else x[0]
    np.testing.assert_allclose(model(x), split(x), rtol=0, atol=1e-6)


def test_trace_tells_makers_and_takers():
    model = sequential(
        layers.Dense(3, name="a"), layers.Dropout(0.5), layers.Dense(2, name="b")
    )
    found = trace(model)
    assert [call.path for call in found.calls] == ["a", "b"]
    a, b = found.calls
    assert (a.inputs, a.outputs, b.inputs) == (found.inputs, b.inputs, a.outputs)
    assert found.outputs == b.outputs
    assert found.producers()[b.inputs[0]] is a
    assert found.consumers()[a.outputs[0]] == [b]


def test_a_fake_quantized_model_can_be_called_eagerly():
    model = sequential(layers.Dense(3, name="d"), shape=(4,))
    small = dlopt.transform(model, int8_recipe(model))
    x = np.ones((2, 4), "float32")
    small(x, training=True)
    np.testing.assert_array_equal(small(x), small.predict(x, verbose=0))


def test_a_transformed_model_is_named():
    net = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    recipe = dlopt.Recipe([(dlopt.named("kernel"), dlopt.Prune(0.5))])
    with pytest.raises(ModelError, match="is transformed already. Give finalize"):
        dlopt.int8_recipe(dlopt.transform(net, recipe))
