"""How a weight is cut into the parts that share one scale."""

import dataclasses
import numbers
from typing import Any

import numpy as np
from keras import ops

from keras_dlopt.errors import ConfigError
from keras_dlopt.graph.channels import is_depthwise, output_axes
from keras_dlopt.graph.targets import Target


def check_bits(bits: int, *, least: int = 2) -> int:
    """Returns `bits` if it is a whole number from `least` to 16.

    Raises:
        ConfigError: for anything else.
    """
    whole = isinstance(bits, numbers.Integral) and not isinstance(bits, bool)
    if not whole or not least <= bits <= 16:
        raise ConfigError(
            f"bits must be a whole number from {least} to 16. Received: {bits!r}. "
            "LiteRT runs 8 bits (weights also 4); fewer make smaller files. One bit a "
            "weight is Binary()."
        )
    return int(bits)


def channel_axes(target: Target, rank: int) -> tuple[int, ...]:
    """The axes of a kernel that keep a scale each: those of its output channels.

    An einsum layer's kernel with several, such as heads and their size, shares a scale
    between the first ones, as files hold it.
    """
    axes = output_axes(target, rank)
    return axes if is_depthwise(target) else axes[-1:]


def check_granularity(
    per_channel: bool, axis: int | None, group_size: int | None
) -> None:
    """Raises `ConfigError` for choices that contradict each other."""
    if not isinstance(per_channel, bool):
        raise ConfigError(f"per_channel must be a bool. Received: {per_channel!r}.")
    if axis is not None and (not isinstance(axis, int) or isinstance(axis, bool)):
        raise ConfigError(
            "axis must be the number of the axis that keeps a scale each, or None for "
            f"the output channels. Received: {axis!r}."
        )
    if axis is not None and not per_channel:
        raise ConfigError(
            f"axis={axis} names the channels of per_channel=True, but per_channel is "
            "False. Leave one of the two out."
        )
    if group_size is None:
        return
    if not isinstance(group_size, int) or group_size < 1:
        raise ConfigError(
            "group_size must be a whole number of input channels, at least 1, or None. "
            f"Received: {group_size!r}."
        )
    if not per_channel:
        raise ConfigError(
            "Groups divide the inputs of each output channel: group_size needs "
            "per_channel=True."
        )


@dataclasses.dataclass(frozen=True)
class Layout:
    """A weight's shape, cut into groups, and the axes that share a scale.

    Attributes:
        shape: of the weight.
        split: the shape with the grouped axis as two: groups, members.
        reduced: axes of `split` over which one scale is shared.
        grouped: the axis of `shape` that is cut, None without groups.
    """

    shape: tuple[int, ...]
    split: tuple[int, ...]
    reduced: tuple[int, ...]
    grouped: int | None = None

    @property
    def scales(self) -> tuple[int, ...]:
        """The shape of the scales, broadcastable to `split`."""
        return tuple(1 if i in self.reduced else n for i, n in enumerate(self.split))

    @property
    def count(self) -> int:
        """How many elements share one scale."""
        return int(np.prod([self.split[i] for i in self.reduced], dtype=int))

    def cut(self, weight: Any) -> Any:
        """The weight in the shape `split`."""
        return weight if self.grouped is None else ops.reshape(weight, self.split)

    def join(self, weight: Any) -> Any:
        """What was cut, in the weight's shape."""
        return weight if self.grouped is None else ops.reshape(weight, self.shape)

    def rows(self, weight: np.ndarray) -> np.ndarray:
        """(scales, elements): one row for each scale."""
        cut = weight.reshape(self.split)
        kept = [i for i in range(cut.ndim) if i not in self.reduced]
        return cut.transpose(*kept, *self.reduced).reshape(-1, self.count)

    def broadcast(self, scales: np.ndarray) -> np.ndarray:
        """Scales in a shape that broadcasts to the weight."""
        if self.grouped is None:
            return scales
        # A group's scale stands once for each of its members along the cut axis.
        axis = self.grouped
        wide = list(scales.shape)
        wide[axis + 1] = self.split[axis + 1]
        merged = [*wide[:axis], wide[axis] * wide[axis + 1], *wide[axis + 2 :]]
        return np.broadcast_to(scales, wide).reshape(merged)


def layout(
    target: Target,
    shape: tuple[int, ...],
    *,
    per_channel: bool,
    axis: int | None = None,
    group_size: int | None = None,
) -> Layout:
    """The layout of one weight.

    Args:
        target: where the weight is.
        shape: of the weight.
        per_channel: one scale per output channel; weights of fewer than two dimensions
            have one scale.
        axis: the axis that keeps a scale each; None for the output channels.
        group_size: consecutive input channels that share a scale, at each position of
            a convolution kernel together; None for all.

    Raises:
        ConfigError: for an axis the weight does not have, or groups that do not divide
            its input channels.
    """
    shape = tuple(int(n) for n in shape)
    rank = len(shape)
    if not per_channel or rank < 2:
        return Layout(shape, shape, tuple(range(rank)))
    if axis is not None and not -rank <= axis < rank:
        raise ConfigError(f"{target.path!r} has the shape {shape}, and no axis {axis}.")
    kept = channel_axes(target, rank) if axis is None else (axis % rank,)
    reduced = tuple(a for a in range(rank) if a not in kept)
    if group_size is None:
        return Layout(shape, shape, reduced)
    if len(kept) > 1 and axis is None:
        return Layout(shape, shape, reduced)  # depthwise: one input channel each
    inputs = reduced[-1]
    if shape[inputs] % group_size:
        raise ConfigError(
            f"{target.path!r} of shape {shape} has {shape[inputs]} input channels "
            f"(axis {inputs}), which groups of {group_size} do not divide. Choose a "
            "divisor, or leave this weight to another recipe entry."
        )
    groups = shape[inputs] // group_size
    split = (*shape[:inputs], groups, group_size, *shape[inputs + 1 :])
    # Axes after the split one move up by one.
    moved = tuple(a if a < inputs else a + 1 for a in reduced)
    return Layout(shape, split, moved, inputs)


def layout_of(transform: Any, target: Target, shape: Any) -> Layout:
    """The layout that a transform's `per_channel`, `axis` and `group_size` ask for."""
    return layout(
        target,
        tuple(shape),
        per_channel=transform.per_channel,
        axis=transform.axis,
        group_size=transform.group_size,
    )
