"""Counts against counts that share no code: ones that are summed, TensorFlow, files."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as L
from keras import ops

import keras_dlopt as dlopt
from keras_dlopt.errors import ModelError
from keras_dlopt.export.costs import litert_costs
from keras_dlopt.measure import costs


def model_of(shape, *stack):
    return keras.Sequential([keras.Input(shape), *stack])


# Without padding each product of ones adds one to the sum of the outputs.
LINEAR = {
    "dense": ((7,), L.Dense(5)),
    "dense on sequences": ((3, 7), L.Dense(5)),
    "dense on images": ((3, 2, 7), L.Dense(5, use_bias=False)),
    "conv1d": ((9, 4), L.Conv1D(6, 3)),
    "conv2d": ((9, 8, 3), L.Conv2D(4, (3, 2))),
    "conv2d strides": ((9, 8, 3), L.Conv2D(4, 3, strides=2)),
    "conv2d dilated": ((9, 8, 3), L.Conv2D(4, 3, dilation_rate=2)),
    "conv2d groups": ((9, 8, 6), L.Conv2D(4, 3, groups=2)),
    "conv3d": ((5, 4, 4, 2), L.Conv3D(3, 2)),
    "transposed 1": ((5, 3), L.Conv1DTranspose(4, 3, strides=2)),
    "transposed 2": ((5, 4, 3), L.Conv2DTranspose(4, 3, strides=2)),
    "depthwise 1": ((8, 3), L.DepthwiseConv1D(3, depth_multiplier=2)),
    "depthwise 2": ((8, 8, 3), L.DepthwiseConv2D(3, strides=2, depth_multiplier=2)),
    "einsum": ((4, 6), L.EinsumDense("abc,cde->abde", output_shape=(None, 2, 3))),
    "einsum sums two": ((4, 6), L.EinsumDense("abc,bcd->ad", output_shape=(5,))),
    "einsum ellipsis": ((2, 4, 6), L.EinsumDense("...x,xy->...y", output_shape=5)),
}


@pytest.mark.parametrize("name", LINEAR)
def test_products_are_as_many_as_ones_that_are_summed(name):
    shape, layer = LINEAR[name]
    model = model_of(shape, layer)
    for weight in layer.weights:
        weight.assign(np.full(weight.shape, weight.name == "kernel", "float32"))
    summed = float(np.sum(model(np.ones((1, *shape), "float32"))))
    assert costs(model).macs == summed


def flops(model, kinds):
    """What TensorFlow's profiler counts for operations of these kinds."""
    spec = tf.TensorSpec((1, *model.inputs[0].shape[1:]))
    graph = tf.function(model).get_concrete_function(spec).graph
    options = tf.compat.v1.profiler.ProfileOptionBuilder.float_operation()
    options |= {"account_type_regexes": kinds, "output": "none"}
    with graph.as_default():
        found = tf.compat.v1.profiler.profile(graph, options=options, cmd="op")
    return found.total_float_ops


@pytest.mark.parametrize(
    ("network", "shape"),
    [("ResNet50", (64, 64, 3)), ("MobileNetV2", (64, 64, 3)), ("VGG16", (32, 32, 3))],
)
def test_networks_as_tensorflow_counts_them(network, shape):
    model = getattr(keras.applications, network)(
        weights=None, input_shape=shape, include_top=network == "MobileNetV2"
    )
    kinds = ["Conv2D", "DepthwiseConv2dNative", "MatMul"]
    assert costs(model).flops == flops(model, kinds)


def test_networks_have_their_published_counts():
    model = keras.applications.MobileNetV2(weights=None)
    # Sandler et al. (arXiv:1801.04381), table 4: 3.4 M parameters, 300 M MACs.
    assert costs(model).macs == pytest.approx(300e6, rel=0.01)


def test_a_file_counts_the_same(tmp_path):
    pytest.importorskip("ai_edge_litert")
    model = model_of(
        (16, 16, 3),
        L.Conv2D(8, 3, padding="same", strides=2, activation="relu"),
        L.DepthwiseConv2D(3, padding="same", depth_multiplier=2),
        L.Conv2DTranspose(4, 3, strides=2, padding="same"),
        L.Flatten(),
        L.Dense(10),
    )
    for weight in model.weights:  # the converter drops biases of zeros
        weight.assign(np.ones(weight.shape))
    path = tmp_path / "model.tflite"
    dlopt.export.litert(model, path, verify=False)
    ours, files = costs(model), litert_costs(path)
    assert (ours.macs, ours.parameters) == (files.macs, files.parameters)
    assert files.uncounted == ()


def test_a_product_of_two_tensors_in_a_file(tmp_path):
    pytest.importorskip("ai_edge_litert")
    one, two = keras.Input((6, 4)), keras.Input((5, 4))
    model = keras.Model([one, two], ops.matmul(one, ops.transpose(two, (0, 2, 1))))
    path = tmp_path / "model.tflite"
    dlopt.export.litert(model, path, verify=False)
    assert litert_costs(path).macs == costs(model).macs == 6 * 4 * 5


def test_separable_is_depthwise_and_pointwise():
    shape = (8, 8, 3)
    apart = [L.DepthwiseConv2D(3, depth_multiplier=2, strides=2), L.Conv2D(5, 1)]
    one = L.SeparableConv2D(5, 3, depth_multiplier=2, strides=2)
    assert costs(model_of(shape, one)).macs == costs(model_of(shape, *apart)).macs


def test_self_attention_of_one_width_by_hand():
    given = keras.Input((4, 6))
    model = keras.Model(given, L.MultiHeadAttention(2, key_dim=3)(given, given))
    # Four projections 6 -> 6 at 4 places; 4 x 4 scores and sums of 3 for 2 heads.
    assert costs(model).macs == 4 * (4 * 6 * 6) + 2 * (2 * 4 * 4 * 3)


def test_attention_is_its_projections_and_two_products():
    target, source = keras.Input((5, 8)), keras.Input((7, 6))
    heads = L.MultiHeadAttention(3, key_dim=4, value_dim=2)
    model = keras.Model([target, source], heads(target, source))
    projections = 5 * 8 * 12 + 7 * 6 * 12 + 7 * 6 * 6 + 5 * 6 * 8
    assert costs(model).macs == projections + 3 * 5 * 7 * (4 + 2)
    by_name = keras.Model([target, source], heads(value=source, query=target))
    assert costs(by_name).macs == costs(model).macs
    plain = keras.Model([target, source], L.Attention()([L.Dense(6)(target), source]))
    assert costs(plain).macs == 5 * 8 * 6 + 2 * 5 * 7 * 6
    source = keras.Input((7, 8))
    grouped = L.GroupQueryAttention(4, num_query_heads=6, num_key_value_heads=2)
    model = keras.Model([target, source], grouped(target, source))
    projections = 5 * 8 * 24 + 2 * (7 * 8 * 8) + 5 * 24 * 8
    assert costs(model).macs == projections + 2 * 5 * 7 * 24


@pytest.mark.parametrize(
    ("layer", "gates"), [(L.SimpleRNN(5), 1), (L.GRU(5), 3), (L.LSTM(5), 4)]
)
def test_recurrent_layers_count_each_step(layer, gates):
    one = 7 * gates * (3 * 5 + 5 * 5)
    assert costs(model_of((7, 3), layer)).macs == one
    config = layer.get_config() | {"name": "inner", "return_sequences": True}
    both = L.Bidirectional(type(layer).from_config(config))
    assert costs(model_of((7, 3), both)).macs == 2 * one
    stacked = L.RNN([L.LSTMCell(5), L.GRUCell(4)])
    steps = 7 * (4 * (3 * 5 + 5 * 5) + 3 * (5 * 4 + 4 * 4))
    assert costs(model_of((7, 3), stacked)).macs == steps


def test_layers_over_time_count_each_step():
    inner = keras.Sequential([keras.Input((6, 6, 2)), L.Conv2D(4, 3), L.Conv2D(2, 1)])
    model = model_of((5, 6, 6, 2), L.TimeDistributed(inner))
    assert costs(model).macs == 5 * costs(inner).macs
    convolving = L.ConvLSTM2D(4, 3, padding="same", strides=2)
    steps = 5 * 3 * 3 * (9 * 2 * 16 + 9 * 4 * 16)
    assert costs(model_of((5, 6, 6, 2), convolving)).macs == steps


def test_look_ups_are_no_products_and_shared_layers_count_twice():
    found = costs(model_of((7,), L.Embedding(100, 8)))
    assert (found.macs, found.parameters) == (0, 800)
    given = keras.Input((4,))
    shared = L.Dense(4)
    found = costs(keras.Model(given, shared(shared(given))))
    assert (found.macs, found.parameters) == (32, 20)


def test_hashed_kernels_count_as_what_they_compute():
    net = model_of((64,), L.Dense(32))
    recipe = dlopt.Recipe([(dlopt.named("kernel"), dlopt.HashedWeights(1 / 64))])
    small = dlopt.hashed_layers(dlopt.transform(net, recipe))
    assert costs(small).macs == 64 * 32
    assert costs(small).parameters < 100


class Own(keras.layers.Layer):
    """Multiplies inside."""

    def build(self, input_shape):
        self.kernel = self.add_weight(shape=(input_shape[-1], 3), name="kernel")

    def call(self, inputs):
        return inputs @ self.kernel


class Plain(L.Dense):
    """Dense by another name."""


class Other(L.Dense):
    """Dense that multiplies twice."""

    def call(self, inputs):
        return super().call(inputs) + super().call(inputs)


def test_what_is_not_known_is_named():
    found = costs(model_of((4,), Own(name="own"), Plain(2), Other(2, name="other")))
    assert found.uncounted == ("own", "other")
    assert found.macs == 3 * 2


def test_an_open_size_is_refused_and_an_example_settles_it():
    model = model_of((None, None, 3), L.Conv2D(4, 3, padding="same"))
    with pytest.raises(ModelError, match="of any size.*Pass example=") as told:
        costs(model)
    assert "(None, None, None, 3)" in str(told.value)
    assert costs(model, np.zeros((2, 10, 6, 3))).macs == 60 * 27 * 4


def test_the_peak_of_a_residual_block():
    given = keras.Input((8, 8, 4))
    x = L.Conv2D(16, 3, padding="same", name="wide")(given)
    x = L.Reshape((8, 8, 16))(x)
    x = L.Conv2D(4, 3, padding="same", name="narrow")(x)
    model = keras.Model(given, L.Add()([x, given]))
    # While the narrow one runs: the input, which the sum needs, the wide and its own.
    found = costs(model)
    assert (found.peak, found.peak_at) == (4 * 64 * (4 + 16 + 4), "narrow")
    half = keras.Sequential(
        [keras.Input((8, 8, 4), dtype="float16"), L.ReLU(dtype="float16")]
    )
    assert costs(half).peak == 2 * 64 * 8
