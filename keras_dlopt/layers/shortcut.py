"""What a shortcut needs where the body changes shapes."""

from collections.abc import Sequence

import keras
from keras import ops

# Stands for an unknown number of positions: divisible by the usual strides.
PROBE = 960


def infer_strides(
    body: Sequence[keras.layers.Layer],
    shape: tuple,
    out: tuple,
    axis: int,
) -> tuple[int, ...] | None:
    """The strides of a shortcut whose positions must meet the body's.

    Args:
        body: the built layers, asked for output shapes where positions are unknown.
        shape: of the input, with the batch.
        out: of the body's output.
        axis: of the channels, -1 or 1.

    Returns:
        One stride per position axis, or None when no whole strides fit.
    """
    if len(shape) != len(out):
        return None
    channel = axis % len(shape)
    spots = [i for i in range(1, len(shape)) if i != channel]
    if any(shape[i] is None for i in spots):
        shape = tuple(
            PROBE if i in spots and s is None else s for i, s in enumerate(shape)
        )
        out = shape
        for layer in body:
            out = tuple(layer.compute_output_shape(out))
    strides = []
    for i in spots:
        stride = -(-shape[i] // out[i])
        if -(-shape[i] // stride) != out[i]:
            return None
        strides.append(stride)
    return tuple(strides)


def projection(
    rank: int,
    channels: int,
    *,
    strides: tuple[int, ...],
    data_format: str,
    dtype: keras.DTypePolicy,
) -> keras.layers.Layer:
    """A linear map of the channels without bias, with strides over positions.

    Args:
        rank: of the input, with the batch: 2 to 5.
        channels: of the output.
        strides: one per position axis.
        data_format: `"channels_last"` or `"channels_first"`.
        dtype: the policy of the layer.
    """
    if rank == 2:
        return keras.layers.Dense(
            channels, use_bias=False, name="projection", dtype=dtype
        )
    kinds = {3: keras.layers.Conv1D, 4: keras.layers.Conv2D, 5: keras.layers.Conv3D}
    return kinds[rank](
        channels,
        1,
        strides=strides,
        padding="same",
        use_bias=False,
        kernel_initializer="he_normal",
        data_format=data_format,
        name="projection",
        dtype=dtype,
    )


def subsample_and_pad(x, strides: tuple[int, ...], extra: int, data_format: str):
    """Every stride-th position of `x`, with `extra` zero channels after its own."""
    spots = tuple(slice(None, None, s) for s in strides)
    last = data_format == "channels_last" or not strides
    index = (slice(None), *spots) if last else (slice(None), slice(None), *spots)
    if any(s > 1 for s in strides):
        x = x[index]
    if not extra:
        return x
    widths = [(0, 0)] * len(x.shape)
    widths[-1 if last else 1] = (0, extra)
    return ops.pad(x, widths)
