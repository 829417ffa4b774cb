"""How a weight is cut into the parts that share one scale."""

import dataclasses
from typing import Any

import numpy as np
from keras import ops

from keras_dlopt import checks
from keras_dlopt.errors import ConfigError
from keras_dlopt.graph.channels import is_depthwise, output_axes
from keras_dlopt.graph.targets import Target


def channel_axes(target: Target, rank: int) -> tuple[int, ...]:
    """The axes of a kernel that keep a scale each: those of its output channels.

    An einsum layer's kernel with several, such as heads and their size, shares a scale
    between the first ones, as files hold it.
    """
    axes = output_axes(target, rank)
    return axes if is_depthwise(target) else axes[-1:]


def check_granularity(
    per_channel: Any, axis: Any, group_size: Any
) -> tuple[bool, int | None, int | None]:
    """The three, or `ConfigError`, also for choices that contradict each other."""
    per_channel = checks.boolean(per_channel, name="per_channel")
    hint = "It is the axis that keeps a scale each; None are the output channels."
    axis = checks.optional(checks.whole, axis, name="axis", hint=hint)
    hint = "It is a number of input channels."
    group_size = checks.optional(checks.count, group_size, name="group_size", hint=hint)
    for name, value in (("axis", axis), ("group_size", group_size)):
        if value is not None and not per_channel:
            raise ConfigError(
                f"{name}={value} divides the scales of per_channel=True, but "
                "per_channel is False. Leave one of the two out."
            )
    return per_channel, axis, group_size


@dataclasses.dataclass(frozen=True)
class ScaleLayout:
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
        if self.grouped is None or not scales.ndim:
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
) -> ScaleLayout:
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
        return ScaleLayout(shape, shape, tuple(range(rank)))
    if axis is not None and not -rank <= axis < rank:
        raise ConfigError(f"{target.path!r} has the shape {shape}, and no axis {axis}.")
    kept = channel_axes(target, rank) if axis is None else (axis % rank,)
    reduced = tuple(a for a in range(rank) if a not in kept)
    if group_size is None:
        return ScaleLayout(shape, shape, reduced)
    if len(kept) > 1 and axis is None:
        return ScaleLayout(shape, shape, reduced)  # depthwise: one input channel each
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
    return ScaleLayout(shape, split, moved, inputs)
