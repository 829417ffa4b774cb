"""Two other writers of int8 files, given the same ranges, write the same codes.

TensorFlow's converter with its own quantizer, on the twin with its quantizers; and
`litert-quantizer`, on the float file without them, with their ranges by tensor name.
"""

import collections
import importlib.util

import keras
import numpy as np
import pytest
from keras import layers

import keras_dlopt as dlopt
from keras_dlopt import export
from keras_dlopt.export.contents import output_steps, read
from keras_dlopt.export.ends import arrange, ends_of
from keras_dlopt.export.floating import float_file
from keras_dlopt.export.lattices import Lattices
from keras_dlopt.export.pairs import drop_copied, take_pairs
from keras_dlopt.export.quiet import silence
from keras_dlopt.export.twin import Twin, bake


def residual():
    return dlopt.models.resnet(depth=8, width=8, input_shape=(16, 16, 3))


def separable():
    def block(x, filters):
        x = layers.DepthwiseConv2D(3, padding="same", use_bias=False)(x)
        x = layers.ReLU(6.0)(layers.BatchNormalization()(x))
        x = layers.Conv2D(filters, 1, use_bias=False)(x)
        return layers.ReLU(6.0)(layers.BatchNormalization()(x))

    inputs = keras.Input((16, 16, 3))
    x = layers.ReLU(6.0)(layers.Conv2D(8, 3, strides=2)(inputs))
    x = layers.GlobalAveragePooling2D()(block(block(x, 12), 16))
    return keras.Model(inputs, layers.Softmax()(layers.Dense(5)(x)))


def branches():
    inputs = keras.Input((16, 16, 3))
    x = layers.MaxPooling2D()(layers.Conv2D(8, 3, activation="relu")(inputs))
    a = layers.Conv2D(4, 1, name="a")(x)
    b = layers.Conv2D(4, 3, padding="same", name="b")(x)
    x = layers.Flatten()(layers.Concatenate()([a, b]))
    return keras.Model(inputs, layers.Dense(3)(layers.Dense(8, activation="relu")(x)))


NETWORKS = [residual, separable, branches]


def quantized(network):
    keras.utils.set_random_seed(0)
    model, x = network(), data(64)
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.momentum = 0.5
    for _ in range(4):
        model(x, training=True)
    return dlopt.post_training.quantize(model, x)


def data(rows, seed=0):
    return np.random.default_rng(seed).random((rows, 16, 16, 3)).astype("float32")


def converters(small, path):
    """By the quantizer inside TensorFlow's converter."""
    import tensorflow as tf

    plain, ranges, _ = bake(small)
    twin = Twin(plain, ranges, ends_of(plain))
    with silence():
        twin.export(
            path,
            format="litert",
            verbose=False,
            input_signature=[twin.ends.signature(1)],
            optimizations=[tf.lite.Optimize.DEFAULT],
        )


def litert_quantizers(small, path):
    """By Google's quantizer of float files, with the trained ranges."""
    from litert_quantizer import quantizer, recipe

    plain, ranges, _ = bake(small)
    twin = Twin(plain, ranges, ends_of(plain))
    file = float_file(twin, path, 1)
    arrange(file, twin.ends)
    views = take_pairs(file)
    drop_copied(file, views, [])
    grids = Lattices(file, views)
    found = {i: grids.at(i) for i in range(len(file.tensors))}
    for op in file.ops:
        op.inputs = [_source(i, views) for i in op.inputs]
    for view in list(views):
        file.rename(view, _source(view, views))
    for i, tensor in enumerate(file.tensors):
        tensor.name = f"t{i}".encode()
    file.write(path, lean=False)
    limits = {
        f"t{i}": {
            "min": np.full((1,) * max(len(file.shape(i)), 1), grid.low, "float32"),
            "max": np.full((1,) * max(len(file.shape(i)), 1), grid.high, "float32"),
        }
        for i, grid in found.items()
        if grid is not None
    }
    with silence():
        tool = quantizer.Quantizer(str(path), recipe.static_wi8_ai8())
        made = tool.quantize(limits, enable_progress_report=False)
    path.write_bytes(made.quantized_model)


def _source(index, views):
    while index in views:
        index = views[index].source
    return index


def weights(path):
    """Codes of each kernel, and its scales, by shape and sum."""
    found = {}
    contents = read(path)
    taken = {op.inputs[1] for op in contents.operators if len(op.inputs) > 1}
    for i in sorted(taken):
        tensor = contents.tensors[i]
        if tensor.data is not None and tensor.dtype == "INT8":
            found[tensor.data.tobytes()] = tensor.scales
    return found


def grids(path):
    contents = read(path)
    made = {i for op in contents.operators for i in op.outputs} | {*contents.inputs}
    return collections.Counter(
        (float(np.float32(f"{t.scales[0]:.5g}")), int(t.zero_points[0]))
        for t in (contents.tensors[i] for i in made)
        if t.dtype == "INT8"
    )


def agrees(network, witness, tmp_path, *, levels):
    small, ours, theirs = quantized(network), tmp_path / "a.tflite", tmp_path / "b"
    export.litert(small, ours, full_integer=True)
    theirs = theirs.with_suffix(".tflite")
    witness(small, theirs)
    own, other = weights(ours), weights(theirs)
    assert own.keys() == other.keys()
    for codes, scales in own.items():
        np.testing.assert_allclose(scales, other[codes], rtol=1e-5)
    assert set(grids(ours)) == set(grids(theirs))
    x = data(64, seed=1)
    a, b = export.run_litert(ours, x), export.run_litert(theirs, x)
    (step,) = output_steps(read(ours))
    assert np.rint(np.abs(a - b) / step).max() <= levels


@pytest.mark.parametrize("network", NETWORKS, ids=lambda f: f.__name__)
def test_tensorflows_converter_writes_the_same(network, tmp_path):
    agrees(network, converters, tmp_path, levels=0)


@pytest.mark.skipif(
    importlib.util.find_spec("litert_quantizer") is None,
    reason="needs litert-quantizer",
)
@pytest.mark.parametrize("network", NETWORKS, ids=lambda f: f.__name__)
def test_litert_quantizer_writes_the_same_from_given_ranges(network, tmp_path):
    agrees(network, litert_quantizers, tmp_path, levels=1)
