"""An option of TensorFlow's LiteRT converter that has no public name."""

from typing import Any

_PER_TENSOR = "_experimental_disable_per_channel_quantization_for_dense_layers"


def one_scale_for_dense_kernels() -> dict[str, Any]:
    """Options of `model.export` for one scale a dense kernel, as TFMOT trains them.

    Relies on: `tf.lite.TFLiteConverter` has this attribute, and Keras sets what the
    converter has.
    """
    return {_PER_TENSOR: True}
