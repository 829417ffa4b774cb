"""Which rule is for which layer or operation; a text says why there is none."""

from collections.abc import Callable
from typing import Any

from keras import layers as L

from keras_dlopt import _compat
from keras_dlopt import layers as own
from keras_dlopt.surgery.bounds import ELEMENTWISE
from keras_dlopt.surgery.rules import elementwise, sequences, shapes, weighted

_MIXES = "mixes channels"

RULES: dict[Any, Callable[..., Any] | str] = {
    L.Dense: weighted.dense,
    L.EinsumDense: weighted.einsum_dense,
    L.Embedding: weighted.embedding,
    **dict.fromkeys((L.Conv1D, L.Conv2D, L.Conv3D), weighted.convolution),
    **dict.fromkeys(
        (L.Conv1DTranspose, L.Conv2DTranspose, L.Conv3DTranspose), weighted.transposed
    ),
    **dict.fromkeys((L.DepthwiseConv1D, L.DepthwiseConv2D), weighted.depthwise),
    **dict.fromkeys((L.SeparableConv1D, L.SeparableConv2D), weighted.separable),
    **dict.fromkeys((L.LSTM, L.GRU, L.SimpleRNN), sequences.recurrent),
    L.Bidirectional: sequences.bidirectional,
    L.TimeDistributed: sequences.time_distributed,
    L.MultiHeadAttention: sequences.attention,
    L.BatchNormalization: elementwise.batch_normalization,
    own.BatchNormalization: elementwise.batch_normalization,
    own.LayerScale: elementwise.layer_scale,
    own.ReZero: elementwise.re_zero,
    own.StochasticDepth: elementwise.same,
    L.GroupNormalization: elementwise.group_normalization,
    L.LayerNormalization: elementwise.TOGETHER,
    L.RMSNormalization: elementwise.TOGETHER,
    L.UnitNormalization: elementwise.TOGETHER,
    L.Softmax: _MIXES,
    L.Rescaling: elementwise.rescaling,
    L.Activation: elementwise.activation,
    L.PReLU: elementwise.prelu,
    **dict.fromkeys((L.ReLU, L.LeakyReLU, L.ELU), elementwise.relu),
    **dict.fromkeys(
        (
            L.Dropout,
            L.SpatialDropout1D,
            L.SpatialDropout2D,
            L.SpatialDropout3D,
            L.AlphaDropout,
            L.GaussianDropout,
            L.GaussianNoise,
            L.ActivityRegularization,
            L.Identity,
        ),
        elementwise.same,
    ),
    **dict.fromkeys(
        (L.Add, L.Average, L.Subtract, L.Multiply, L.Maximum, L.Minimum),
        elementwise.join,
    ),
    _compat.FactorByChannel: elementwise.factor_by_channel,
    _compat.ScaledSum: elementwise.scaled_sum,
    L.Concatenate: elementwise.concatenate,
    **dict.fromkeys(
        (
            L.MaxPooling1D,
            L.MaxPooling2D,
            L.MaxPooling3D,
            L.AveragePooling1D,
            L.AveragePooling2D,
            L.AveragePooling3D,
            L.Cropping1D,
            L.Cropping2D,
            L.Cropping3D,
            L.UpSampling1D,
            L.UpSampling2D,
            L.UpSampling3D,
        ),
        shapes.spatial,
    ),
    **dict.fromkeys(
        (
            L.GlobalAveragePooling1D,
            L.GlobalAveragePooling2D,
            L.GlobalAveragePooling3D,
            L.GlobalMaxPooling1D,
            L.GlobalMaxPooling2D,
            L.GlobalMaxPooling3D,
        ),
        shapes.global_pooling,
    ),
    **dict.fromkeys(
        (L.ZeroPadding1D, L.ZeroPadding2D, L.ZeroPadding3D), shapes.zero_padding
    ),
    L.Flatten: shapes.flatten,
    L.Reshape: shapes.reshape,
    L.Permute: shapes.permute,
    L.RepeatVector: shapes.repeat_vector,
    **dict.fromkeys(ELEMENTWISE, elementwise.operation),
    **dict.fromkeys(elementwise.JOINS, elementwise.join),
    **dict.fromkeys(("Mean", "Max", "Min"), shapes.mean),
    "Concatenate": elementwise.concatenate,
    **dict.fromkeys(("Cast", "ConvertToTensor"), elementwise.cast),
    "ExpandDims": shapes.expand,
    "GetItem": shapes.get_item,
    "Reshape": shapes.reshape,
    "Split": shapes.split,
    "Squeeze": shapes.squeeze,
    "Transpose": shapes.transpose,
    "Softmax": _MIXES,
}

# For removal that may change the function: channels that share moments leave, too.
NORMALIZED_RULES: dict[Any, Callable[..., Any] | str] = RULES | dict.fromkeys(
    (
        L.GroupNormalization,
        L.LayerNormalization,
        L.RMSNormalization,
        L.UnitNormalization,
    ),
    elementwise.normalized_together,
)
