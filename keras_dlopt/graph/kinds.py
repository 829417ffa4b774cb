"""What is known about the kinds of Keras layers: one table for makers and takers."""

from typing import Any

import keras
from keras import layers

from keras_dlopt import _compat

LINEAR = (
    layers.Conv1D,
    layers.Conv2D,
    layers.Conv2DTranspose,
    layers.Dense,
    layers.DepthwiseConv2D,
)
# With weights too, and one int8 operation each, but nothing is fused into them.
PRODUCTS_WITHOUT_FUSION = (
    layers.Conv1DTranspose,
    layers.DepthwiseConv1D,
    layers.EinsumDense,
    layers.Embedding,
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
    layers.RepeatVector,
    layers.Reshape,
    layers.Resizing,
    layers.UpSampling1D,
    layers.UpSampling2D,
    layers.ZeroPadding1D,
    layers.ZeroPadding2D,
)
MAX_POOLING = (
    layers.GlobalMaxPooling1D,
    layers.GlobalMaxPooling2D,
    layers.MaxPooling1D,
    layers.MaxPooling2D,
)
# Of `keras.ops`, those that keep their input's range, and those that have their own.
KEEPS_RANGE_OPERATIONS = (
    *("BroadcastTo", "ExpandDims", "GetItem", "Max", "Reshape", "Split"),
    *("Squeeze", "Swapaxes", "Transpose"),
)
OWN_RANGE_OPERATIONS = (
    *(
        "Absolute",
        "Add",
        "Concatenate",
        "Matmul",
        "Maximum",
        "Mean",
        "Minimum",
        "Multiply",
    ),
    *("Rsqrt", "Square", "Stack", "Subtract", "Sum"),
)
# One operation each, with a range of its own.
OWN_RANGE = (
    layers.Add,
    layers.AveragePooling1D,
    layers.AveragePooling2D,
    layers.Concatenate,
    layers.Dot,
    layers.ELU,
    layers.GlobalAveragePooling1D,
    layers.GlobalAveragePooling2D,
    layers.LeakyReLU,
    layers.Maximum,
    layers.Minimum,
    layers.Multiply,
    layers.Normalization,
    layers.PReLU,
    layers.ReLU,
    layers.Rescaling,
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
ACTIVATIONS = (
    *(*FUSED_ACTIVATIONS, *FIXED_RANGES),
    *("elu", "exponential", "gelu", "hard_silu", "leaky_relu", "silu"),
)
# What `int8.prepare` writes with layers that have an int8 form.
REWRITTEN = (layers.Average, layers.SeparableConv1D, layers.SeparableConv2D)
REWRITTEN_ACTIVATIONS = ("hard_sigmoid",)
# These too, where they normalize the last axis.
NORMALIZATIONS = (
    layers.GroupNormalization,
    layers.LayerNormalization,
    layers.RMSNormalization,
)
# They call inner layers in a loop, where no quantizer can keep a state.
LOOPS = (layers.RNN, layers.Bidirectional, layers.TimeDistributed)


def keeps_range(layer: Any) -> bool:
    """Whether what a layer returns has the range of what it takes, in LiteRT too."""
    if isinstance(layer, layers.UpSampling2D | layers.Resizing):
        pads = getattr(layer, "pad_to_aspect_ratio", False)
        return bool(layer.interpolation in ("nearest", "bilinear") and not pads)
    return isinstance(layer, KEEPS_RANGE) or _operation(layer) in KEEPS_RANGE_OPERATIONS


def has_own_range(layer: Any) -> bool:
    """Whether a layer without weights is one int8 operation with a range of its own."""
    known = isinstance(layer, OWN_RANGE) or says_affine(layer)
    return known or _operation(layer) in OWN_RANGE_OPERATIONS


def says_affine(layer: Any) -> bool:
    """Whether a layer computes a x + b by channel, as its method `as_affine` says.

    A class made from one that does, with a `call` of its own, may compute something
    else.
    """
    if type(layer) is _compat.FactorByChannel:
        return True
    order = type(layer).__mro__
    says = [c for c in order if "as_affine" in vars(c)]
    calls = [c for c in order if "call" in vars(c)]
    return bool(says) and says[0] is calls[0]


def is_rewritten(layer: Any) -> bool:
    """Whether `int8.prepare` gives a layer the int8 form that it lacks."""
    if isinstance(layer, layers.Activation):
        return activation_name(layer) in REWRITTEN_ACTIVATIONS
    return isinstance(layer, REWRITTEN) or normalizes_last_axis(layer)


def normalizes_last_axis(layer: Any) -> bool:
    """Whether a layer normalizes each example along the last axis, and no other.

    Groups of it, over places too, only of inputs whose sizes are known.
    """
    kind = next((k for k in NORMALIZATIONS if calls_like(layer, k)), None)
    if kind is None or not layer.built or getattr(layer, "rms_scaling", False):
        return False
    shape: Any = (layer.get_build_config() or {}).get("input_shape")
    grouped = kind is layers.GroupNormalization
    if shape is None or (grouped and (None in shape[1:] or len(shape) < 3)):
        return False
    axes = layer.axis if isinstance(layer.axis, list | tuple) else [layer.axis]
    return [axis % len(shape) for axis in axes] == [len(shape) - 1]


def _operation(layer: Any) -> str | None:
    """The name of the one operation of `keras.ops` that a layer runs."""
    return _compat.operation_name(getattr(layer, "operation", None))


def activation_name(layer: Any) -> str:
    """The name of the function that ends a layer; `"linear"` if there is none."""
    if isinstance(layer, layers.ReLU):
        return "relu"
    if isinstance(layer, layers.Softmax):
        return "softmax"
    function = getattr(layer, "activation", None)
    return getattr(function, "__name__", "linear") if function else "linear"


def squashes(layer: Any) -> bool:
    """Whether a layer is a softmax or sigmoid and nothing else."""
    alone = isinstance(layer, layers.Softmax | layers.Activation)
    return alone and activation_name(layer) in ("sigmoid", "softmax")


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


# Their products of two activations, and the softmax between them, have no place for
# quantizers: those are inside `call`.
_FLOAT_INSIDE = (
    layers.AdditiveAttention,
    layers.Attention,
    layers.GroupQueryAttention,
    layers.MultiHeadAttention,
)


def stays_float_inside(layer: Any) -> bool:
    """Whether a layer of layers computes in float between them, kernels or not."""
    return isinstance(layer, _FLOAT_INSIDE)


def folds_by_shape(layer: Any) -> bool:
    """Whether a normalization is of the last axis: a depthwise convolution."""
    rank = layer.input_spec.ndim
    return bool(2 <= rank <= 4 and layer.axis % rank == rank - 1)


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
