"""What this processor lacks: reasons for which a test cannot run on it."""

import functools
import tempfile

import numpy as np
import pytest
import tensorflow as tf


def needs_exact_products() -> None:
    """Skips where ONNX Runtime adds two products of 8 bits in 16, which overflow."""
    if not _exact_products():
        pytest.skip("ONNX Runtime saturates products of int8 on this processor")


@functools.cache
def _exact_products() -> bool:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    from keras_dlopt.export.onnx_runtime import OnnxRuntime

    kernel = np.full((8, 2), 127, "int8")
    constants = {
        "one": np.float32(1),
        "grid": np.float32(1e3),
        "no": np.uint8(0),
        "zero": np.zeros(2, "int8"),
        "ones": np.ones(2, "float32"),
        "kernel": kernel,
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "one", "no"], ["codes"]),
        helper.make_node("DequantizeLinear", ["codes", "one", "no"], ["values"]),
        helper.make_node("DequantizeLinear", ["kernel", "ones", "zero"], ["w"], axis=1),
        helper.make_node("MatMul", ["values", "w"], ["sums"]),
        helper.make_node("QuantizeLinear", ["sums", "grid", "no"], ["made"]),
        helper.make_node("DequantizeLinear", ["made", "grid", "no"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "products",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2])],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()],
    )
    opset = [helper.make_opsetid("", 13)]
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/products.onnx"
        onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
        (found,) = OnnxRuntime(path, 1).run([np.full((1, 8), 255, "float32")])
    return bool(np.all(found == 1e3 * 255))  # 8 * 255 * 127 is above 255 steps of it


def needs_channels_first() -> None:
    """Skips where TensorFlow has no convolution with the channels first."""
    try:
        x, kernel = tf.zeros((1, 1, 2, 2)), tf.zeros((1, 1, 1, 1))
        tf.nn.conv2d(x, kernel, 1, "VALID", data_format="NCHW")
    except tf.errors.UnimplementedError:
        pytest.skip("TensorFlow has no convolution with channels first here")
