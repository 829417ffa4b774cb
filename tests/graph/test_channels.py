"""Axes of kernels, against what moves when a channel of the kernel is changed."""

import keras
import numpy as np
import pytest
from keras import layers as L

from keras_dlopt.graph import channels
from keras_dlopt.graph.linear import channel_moments
from keras_dlopt.graph.targets import Target, weight_targets
from keras_dlopt.transforms.prune import Filters, Rows
from keras_dlopt.transforms.quantize.layout import channel_axes
from support.machine import needs_channels_first


def subclass(kind, name):
    return type(name, (kind,), {})


# Names that say the wrong thing: the class decides.
Misnamed = subclass(L.Dense, "DepthwiseTranspose")
Plain = subclass(L.DepthwiseConv2D, "Mixer")
Upwards = subclass(L.Conv2DTranspose, "Upscale")

LAYERS = {
    "dense": (lambda: L.Dense(3), (5,)),
    "dense over time": (lambda: L.Dense(3), (4, 5)),
    "misnamed dense": (lambda: Misnamed(3), (5,)),
    "conv1d": (lambda: L.Conv1D(3, 2), (6, 4)),
    "conv2d": (lambda: L.Conv2D(3, 2), (6, 6, 4)),
    "conv3d": (lambda: L.Conv3D(3, 2), (3, 3, 3, 2)),
    "depthwise1d": (lambda: L.DepthwiseConv1D(2, depth_multiplier=2), (6, 3)),
    "depthwise2d": (lambda: L.DepthwiseConv2D(2, depth_multiplier=2), (6, 6, 3)),
    "subclass of depthwise": (lambda: Plain(2, depth_multiplier=3), (6, 6, 2)),
    "transpose1d": (lambda: L.Conv1DTranspose(3, 2), (4, 2)),
    "transpose2d": (lambda: L.Conv2DTranspose(3, 2), (4, 4, 2)),
    "transpose3d": (lambda: L.Conv3DTranspose(3, 2), (3, 3, 3, 2)),
    "subclass of transpose": (lambda: Upwards(3, 2), (4, 4, 2)),
    "einsum": (lambda: L.EinsumDense("ab,bc->ac", 3), (5,)),
    "einsum, kernel turned": (lambda: L.EinsumDense("ab,cb->ac", 3), (5,)),
    "einsum to heads": (
        lambda: L.EinsumDense("abc,cde->abde", (None, 2, 3)),
        (4, 5),
    ),
    "einsum to turned heads": (
        lambda: L.EinsumDense("abc,cde->abed", (None, 3, 2)),
        (4, 5),
    ),
    "einsum from heads": (lambda: L.EinsumDense("abcd,cde->abe", (None, 5)), (4, 2, 3)),
    "einsum with dots": (lambda: L.EinsumDense("...x,xy->...y", 3), (5,)),
}
# Number of trailing axes of inputs and outputs that count channels.
ENDS = {"einsum to heads": (1, 2), "einsum to turned heads": (1, 2)}
ENDS["einsum from heads"] = (2, 1)


def built(name):
    make, shape = LAYERS[name]
    layer = make()
    net = keras.Sequential([keras.Input(shape), layer])
    (target,) = [t for t in weight_targets(net) if t.name == "kernel"]
    rng = np.random.default_rng(0)
    target.variable.assign(rng.uniform(0.5, 1, target.shape))
    inputs = rng.uniform(0.5, 1, (2, *shape)).astype("float32")
    taken, made = ENDS.get(name, (1, 1))
    return layer, target, inputs, taken, made


def rows(array, ends):
    """(channels, rest) of a tensor whose last axes count channels."""
    array = np.asarray(array)
    return array.reshape(-1, int(np.prod(array.shape[array.ndim - ends :]))).T


@pytest.mark.parametrize("name", LAYERS)
def test_each_output_channel_moves_alone(name):
    layer, target, inputs, _, ends = built(name)
    kernel, before = target.variable.numpy(), rows(layer(inputs), ends)
    assert len(channels.by_output(target, kernel)) == len(before)
    for number in range(len(before)):
        factor = np.ones(len(before), "float32")
        factor[number] = 2.0
        target.variable.assign(channels.scaled_outputs(target, kernel, factor))
        after = rows(layer(inputs), ends)
        np.testing.assert_allclose(after, before * factor[:, None], rtol=1e-5)


@pytest.mark.parametrize("name", LAYERS)
def test_each_input_channel_is_its_own(name):
    layer, target, inputs, ends, _ = built(name)
    kernel, given = target.variable.numpy(), rows(inputs, ends)
    assert len(channels.by_input(target, kernel)) == len(given)
    for number in range(len(given)):
        factor = np.ones(len(given), "float32")
        factor[number] = 2.0
        target.variable.assign(kernel)
        scaled = layer((given * factor[:, None]).T.reshape(inputs.shape))
        target.variable.assign(channels.scaled_inputs(target, kernel, factor))
        np.testing.assert_allclose(layer(inputs), scaled, rtol=1e-5)


def test_a_grouped_convolution_counts_the_inputs_of_a_group():
    layer = L.Conv2D(6, 2, groups=2)
    layer.build((None, 5, 5, 4))
    target = Target("c/kernel", variable=layer.kernel, layer=layer)
    assert layer.kernel.shape[channels.input_axes(target, 4)[0]] == 2
    assert layer.kernel.shape[channels.output_axes(target, 4)[0]] == 6


@pytest.mark.parametrize(
    ("layer", "name", "rank", "inputs", "outputs"),
    [
        (L.SeparableConv1D(1, 1), "depthwise_kernel", 3, (1,), (1, 2)),
        (L.SeparableConv2D(1, 1), "depthwise_kernel", 4, (2,), (2, 3)),
        (L.SeparableConv2D(1, 1), "pointwise_kernel", 4, (2,), (3,)),
        (L.Embedding(5, 3), "embeddings", 2, (0,), (1,)),
        (L.LSTMCell(3), "kernel", 2, (0,), (1,)),
        (L.LSTMCell(3), "recurrent_kernel", 2, (0,), (1,)),
        (L.Dense(3), "bias", 1, (), (0,)),
        (None, "kernel", 2, (0,), (1,)),
    ],
)
def test_other_weights(layer, name, rank, inputs, outputs):
    target = Target(f"x/{name}", layer=layer)
    assert channels.input_axes(target, rank) == inputs
    assert channels.output_axes(target, rank) == outputs


def test_patterns_and_grids_read_the_same_axes():
    turned = Target("x/kernel", layer=Upwards(3, 2))
    assert Rows().axes(turned, 4) == (3,)
    assert Filters().axes(turned, 4) == channel_axes(turned, 4) == (2,)
    mixed = Target("x/kernel", layer=Plain(2))
    assert Filters().axes(mixed, 4) == channel_axes(mixed, 4) == (2, 3)
    # A scale for each place in a head, as files hold it.
    heads = Target("x/kernel", layer=L.EinsumDense("abc,cde->abde", (None, 2, 3)))
    assert Filters().axes(heads, 3) == (1, 2)
    assert channel_axes(heads, 3) == (2,)


def test_tensors_count_channels_where_the_layer_says():
    assert channels.tensor_axis(L.Dense(2)) == -1
    assert channels.tensor_axis(L.Conv2D(2, 2)) == -1
    assert channels.tensor_axis(L.Conv2D(2, 2, data_format="channels_first")) == 1


def test_moments_are_those_of_the_channels_first_too():
    needs_channels_first()
    layer = L.Conv2D(3, 1, data_format="channels_first")
    # Sizes that differ: Keras takes the bias for one of the last axis if they fit.
    net = keras.Sequential([keras.Input((3, 4, 5)), layer])
    layer.set_weights([np.ones((1, 1, 3, 3)), np.array([1.0, 2.0, 4.0])])
    ((mean, spread),) = channel_moments(net, [np.zeros((2, 3, 4, 5))], [layer])
    np.testing.assert_allclose(mean, [1.0, 2.0, 4.0])
    np.testing.assert_allclose(spread, 0.0, atol=1e-6)


@pytest.mark.parametrize("kind", [L.Dense, L.Conv1D])
def test_moments_are_those_of_what_a_layer_computes(kind):
    """Of all batches and positions together, before the activation."""
    options = {"kernel_size": 2} if kind is L.Conv1D else {}
    layer = kind(4, activation="relu", **options)
    net = keras.Sequential([keras.Input((5, 3)), layer])
    layer.bias.assign([0.0, 3.0, -2.0, 50.0])
    x = np.random.default_rng(0).normal(size=(6, 5, 3)).astype("float32")
    ((mean, spread),) = channel_moments(net, [x[:4], x[4:]], [layer])
    layer.activation = None
    rows = np.asarray(net(x), "float64").reshape(-1, 4)
    np.testing.assert_allclose(mean, rows.mean(0), rtol=1e-5)
    # The variance is a difference of float64 sums of float32 numbers up to 50.
    np.testing.assert_allclose(spread, rows.std(0), rtol=1e-4)
