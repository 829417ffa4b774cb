"""How many multiply-accumulates one call of one layer takes, from its shapes.

A product with padding counts like any other, as in everybody's figures; what has no
products (activations, sums, pooling, normalization, look-ups) counts as nothing.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

from keras import layers

from keras_dlopt.graph.kinds import calls_like
from keras_dlopt.transforms.hashed_kernel import HashedKernel

Shape = tuple[int, ...]
Count = Callable[[Any, Sequence[Shape], Shape], int | None]


def _dense(layer: Any, given: Sequence[Shape], made: Shape) -> int:
    return math.prod(made) * given[0][-1]


def _convolution(layer: Any, given: Sequence[Shape], made: Shape) -> int:
    # Each output is a sum over the window and the channels of its group.
    return math.prod(made) * math.prod(layer.kernel.shape[:-1])


def _transposed(layer: Any, given: Sequence[Shape], made: Shape) -> int:
    # Each input is spread over the window and all outputs; what is cropped counts too.
    return math.prod(given[0]) * math.prod(layer.kernel.shape[:-1])


def _depthwise(layer: Any, given: Sequence[Shape], made: Shape) -> int:
    return math.prod(made) * math.prod(layer.kernel.shape[:-2])


def _separable(layer: Any, given: Sequence[Shape], made: Shape) -> int:
    places = math.prod(made) // layer.filters
    kernels = (layer.depthwise_kernel, layer.pointwise_kernel)
    return places * sum(math.prod(kernel.shape) for kernel in kernels)


def _einsum(layer: Any, given: Sequence[Shape], made: Shape) -> int:
    return einsum(layer.equation, (given[0], tuple(layer.kernel.shape)))


def einsum(equation: str, given: Sequence[Shape]) -> int:
    """The product of the sizes of all letters; an ellipsis stands for leading axes.

    Example:
        >>> einsum("...ab,bc->...ac", [(2, 3, 4, 5), (5, 6)])
        720
    """
    sizes: dict[Any, int] = {}
    terms = equation.replace(" ", "").split("->")[0].split(",")
    for term, shape in zip(terms, given, strict=True):
        before, dots, after = term.partition("...")
        sizes |= zip(before, shape, strict=False)
        if after:
            sizes |= zip(after, shape[-len(after) :], strict=True)
        if dots:
            middle = shape[len(before) : len(shape) - len(after)]
            sizes |= {-n: size for n, size in enumerate(reversed(middle))}
    return math.prod(sizes.values())


def _heads(layer: Any, given: Sequence[Shape], made: Shape) -> int:
    # Its four projections are layers of their own.
    query, value = given[0], given[1 if len(given) > 1 else 0]
    middle = range(1, len(query) - 1)
    axes = layer.get_config().get("attention_axes") or middle
    axes = [a % len(query) for a in ([axes] if isinstance(axes, int) else axes)]
    beside = math.prod([query[0], *(query[a] for a in middle if a not in axes)])
    pairs = math.prod(query[a] * value[a] for a in axes)
    width = layer.key_dim + (layer.value_dim or layer.key_dim)
    return beside * pairs * layer.num_heads * width


def _grouped_heads(layer: Any, given: Sequence[Shape], made: Shape) -> int:
    query, value = given[0], given[1 if len(given) > 1 else 0]
    pairs = query[0] * query[1] * value[1]
    return pairs * layer.num_query_heads * 2 * layer.head_dim


def _attention(layer: Any, given: Sequence[Shape], made: Shape) -> int:
    query, value = given[0], given[1]
    return math.prod(query) * value[-2] + math.prod(query[:-1]) * math.prod(value[-2:])


def _recurrent(layer: Any, given: Sequence[Shape], made: Shape) -> int | None:
    step = _cell(layer.cell)
    return None if step is None else math.prod(given[0][:2]) * step


def _cell(cell: Any) -> int | None:
    if isinstance(cell, layers.StackedRNNCells):
        parts = [_cell(one) for one in cell.cells]
        return None if None in parts else sum(p for p in parts if p is not None)
    plain = (layers.SimpleRNNCell, layers.GRUCell, layers.LSTMCell)
    if not any(calls_like(cell, kind) for kind in plain):
        return None
    return math.prod(cell.kernel.shape) + math.prod(cell.recurrent_kernel.shape)


def _convolving(layer: Any, given: Sequence[Shape], made: Shape) -> int:
    """A recurrent layer with convolutions: both give four gates of the state's size."""
    rank = len(layer.cell.kernel.shape) - 2
    last = layer.data_format == "channels_last"
    spatial = made[-rank - 1 : -1] if last else made[-rank:]
    kernels = (layer.cell.kernel, layer.cell.recurrent_kernel)
    one = math.prod(spatial) * sum(math.prod(k.shape) for k in kernels)
    return math.prod(given[0][:2]) * one


def _dot(layer: Any, given: Sequence[Shape], made: Shape) -> int:
    axes = layer.axes
    axis = axes if isinstance(axes, int) else axes[0]
    return math.prod(made) * given[0][axis]


def _hashed(layer: Any, given: Sequence[Shape], made: Shape) -> int:
    channels = 1 if layer.options.get("data_format") == "channels_first" else -1
    inputs = given[0][channels] // layer.options.get("groups", 1)
    return math.prod(made) * math.prod(layer.kernel_size or ()) * inputs


# The first class that a layer computes like decides.
TABLE: tuple[tuple[tuple[type, ...], Count], ...] = (
    ((layers.Dense,), _dense),
    ((layers.Conv1D, layers.Conv2D, layers.Conv3D), _convolution),
    (
        (layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose),
        _transposed,
    ),
    ((layers.DepthwiseConv1D, layers.DepthwiseConv2D), _depthwise),
    ((layers.SeparableConv1D, layers.SeparableConv2D), _separable),
    ((layers.EinsumDense,), _einsum),
    ((layers.MultiHeadAttention,), _heads),
    ((layers.GroupQueryAttention,), _grouped_heads),
    ((layers.Attention, layers.AdditiveAttention), _attention),
    ((layers.ConvLSTM1D, layers.ConvLSTM2D, layers.ConvLSTM3D), _convolving),
    ((layers.SimpleRNN, layers.GRU, layers.LSTM, layers.RNN), _recurrent),
    ((layers.Dot,), _dot),
    ((HashedKernel,), _hashed),
)
# They have weights of several dimensions, and no products.
NONE = (
    layers.BatchNormalization,
    layers.Embedding,
    layers.GroupNormalization,
    layers.LayerNormalization,
    layers.Normalization,
    layers.PReLU,
    layers.RMSNormalization,
)
# Operations between layers that are products, but of which only these are counted.
_PRODUCTS = frozenset(
    [
        "Conv",
        "ConvTranspose",
        "Correlate",
        "DepthwiseConv",
        "Dot",
        "DotProductAttention",
        "Einsum",
        "Inner",
        "Matmul",
        "SeparableConv",
        "Tensordot",
        "Vdot",
    ]
)


def of_layer(layer: Any, given: Sequence[Shape], made: Shape) -> int | None:
    """Multiply-accumulates of one call of a layer, without those of layers inside it.

    Args:
        layer: the layer.
        given: shapes of its inputs, batch included.
        made: shape of its first output.

    Returns:
        None if the layer is of a class that the count does not know.
    """
    for kinds, count in TABLE:
        if any(calls_like(layer, kind) for kind in kinds):
            return count(layer, given, made)
    own = type(layer).__module__.split(".")[0] in ("keras", "keras_dlopt")
    kernels = [w for w in layer.weights if len(w.shape) > 1]
    return 0 if own and (isinstance(layer, NONE) or not kernels) else None


def of_operation(operation: Any, given: Sequence[Shape], made: Shape) -> int | None:
    """The same of an operation between layers, such as `keras.ops.matmul`."""
    name = type(operation).__name__
    if name not in _PRODUCTS:
        return 0
    if name == "Matmul" and len(given) == 2:
        return math.prod(made) * given[0][-1]
    if name == "Einsum" and len(given) == operation.subscripts.count(",") + 1 == 2:
        return einsum(operation.subscripts, given)
    return None
