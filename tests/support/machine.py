"""What this processor lacks: reasons for which a test cannot run on it."""

import pathlib

import pytest
import tensorflow as tf

_CPU = pathlib.Path("/proc/cpuinfo")
# Without them two products of 8 bits are added in 16, which overflow.
saturates = pytest.mark.skipif(
    _CPU.exists() and "vnni" not in _CPU.read_text(),
    reason="ONNX Runtime saturates products of int8 on a processor without VNNI",
)


def needs_channels_first() -> None:
    """Skips where TensorFlow has no convolution with the channels first."""
    try:
        x, kernel = tf.zeros((1, 1, 2, 2)), tf.zeros((1, 1, 1, 1))
        tf.nn.conv2d(x, kernel, 1, "VALID", data_format="NCHW")
    except tf.errors.UnimplementedError:
        pytest.skip("TensorFlow has no convolution with channels first here")
