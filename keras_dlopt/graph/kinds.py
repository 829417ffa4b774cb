"""What is known about the kinds of Keras layers: one table for makers and takers."""

from typing import Any

import keras
from keras import layers

LINEAR = (
    layers.Conv1D,
    layers.Conv2D,
    layers.Conv2DTranspose,
    layers.Dense,
    layers.DepthwiseConv2D,
)
# One kernel named so, one matrix product or convolution with it, and a bias: those
# that can be split into smaller layers, or have their kernel made of something else.
PRODUCTS = (layers.Conv1D, layers.Conv2D, layers.Conv3D, layers.Dense)
KEEPS_RANGE = (
    layers.Cropping1D,
    layers.Cropping2D,
    layers.Flatten,
    layers.GlobalMaxPooling1D,
    layers.GlobalMaxPooling2D,
    layers.MaxPooling1D,
    layers.MaxPooling2D,
    layers.Permute,
    layers.Reshape,
    layers.ZeroPadding1D,
    layers.ZeroPadding2D,
)
MAX_POOLING = (
    layers.GlobalMaxPooling1D,
    layers.GlobalMaxPooling2D,
    layers.MaxPooling1D,
    layers.MaxPooling2D,
)
# One operation each, with a range of its own.
OWN_RANGE = (
    layers.Add,
    layers.AveragePooling1D,
    layers.AveragePooling2D,
    layers.Concatenate,
    layers.GlobalAveragePooling1D,
    layers.GlobalAveragePooling2D,
    layers.LeakyReLU,
    layers.Maximum,
    layers.Minimum,
    layers.Multiply,
    layers.ReLU,
    layers.Softmax,
    layers.Subtract,
)
FUSES_RELU = (
    *LINEAR,
    layers.Add,
    layers.AveragePooling2D,
    layers.BatchNormalization,
    layers.Subtract,
)
FIXED_RANGES = {
    "sigmoid": (0.0, 255 / 256),
    "softmax": (0.0, 255 / 256),
    "tanh": (-1.0, 127 / 128),
}
FUSED_ACTIVATIONS = ("linear", "relu", "relu6")
ACTIVATIONS = (*FUSED_ACTIVATIONS, *FIXED_RANGES, "leaky_relu")
# They call inner layers in a loop, where no quantizer can keep a state.
LOOPS = (layers.RNN, layers.Bidirectional, layers.TimeDistributed)


def activation_name(layer: Any) -> str:
    """The name of the function that ends a layer; `"linear"` if there is none."""
    if isinstance(layer, layers.ReLU):
        return "relu"
    if isinstance(layer, layers.Softmax):
        return "softmax"
    function = getattr(layer, "activation", None)
    return getattr(function, "__name__", "linear") if function else "linear"


def ends_linear(layer: Any) -> bool:
    """Whether a layer ends after its bias."""
    return getattr(layer, "activation", None) in (None, keras.activations.linear)


def is_product(layer: Any, *, exactly: bool = False) -> bool:
    """Whether a layer is one of `PRODUCTS`, without groups.

    A class made from one of them, with a `call` of its own, may compute something else.

    Args:
        layer: any layer.
        exactly: whether it must be Keras' own class.
    """
    known = [kind for kind in PRODUCTS if isinstance(layer, kind)]
    if exactly:
        same = type(layer) in known
    else:
        same = any(type(layer).call is kind.call for kind in known)
    return same and getattr(layer, "groups", 1) == 1


def calls_like(layer: Any, kind: Any) -> bool:
    """Whether a layer is of a class and runs its `call`, or one that only wraps it.

    A class made from another one, with a `call` of its own, may compute something else.
    """
    if not isinstance(layer, kind):
        return False
    own: Any = type(layer)
    return own.call is kind.call or own.__module__.split(".")[0] in (
        "keras",
        "keras_dlopt",
    )


def is_relu(layer: Any) -> bool:
    """Whether a layer is a ReLU or ReLU6 and nothing else."""
    if isinstance(layer, layers.ReLU):
        plain = not layer.negative_slope and not layer.threshold
        return bool(plain and layer.max_value in (None, 6, 6.0))
    return isinstance(layer, layers.Activation) and activation_name(layer) in (
        "relu",
        "relu6",
    )


def folds_by_shape(layer: Any) -> bool:
    """Whether a normalization is of images, channels last: a depthwise convolution."""
    return layer.input_spec.ndim == 4 and layer.axis in (-1, 3)


def weight_names(target: Any) -> bool:
    """Whether a weight is a kernel or a table of embeddings."""
    rank = len(target.shape or ())
    return rank >= 2 and target.name.endswith(("kernel", "embeddings"))


def is_weighted(layer: Any) -> bool:
    """Whether a layer multiplies what it takes with a kernel of its own."""
    return any(
        w.name.endswith("kernel") and len(w.shape) >= 2
        for w in getattr(layer, "weights", ())
    ) and not isinstance(layer, keras.Model)
