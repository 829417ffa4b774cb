"""Many small variables updated as one: their optimizer state lies in flat variables.

A train step over hundreds of biases and scales spends its time in starting kernels, not
in arithmetic. Here the state of all small variables is kept in one flat variable per
slot ("momentum", "velocity"), the gradients are joined, one kernel updates the whole,
and the result is split again. Each piece of state still shows up as a variable of its
own, under the name and in the place that Keras gives it, so files and checkpoints do
not change.
"""

import math
from typing import Any

import keras

from keras_dlopt import runtime
from keras_dlopt._compat import SlabSlice

# Above this size a kernel of its own costs less than the copies in and out of the slab.
MAX_SIZE = 8192
# Fewer variables than this gain nothing.
MIN_COUNT = 4


class Slab:
    """Where each small variable lies, and the flat variables that hold their state.

    Args:
        variables: (index, variable) pairs, in the order in which they are joined.
    """

    def __init__(self, variables: list[tuple[int, Any]]):
        self.places = {index: place for place, (index, _) in enumerate(variables)}
        self.shapes = [tuple(v.shape) for _, v in variables]
        self.sizes = [math.prod(shape) for shape in self.shapes]
        self.total = sum(self.sizes)
        self.dtype = str(keras.backend.standardize_dtype(variables[0][1].dtype))
        self.flat: dict[str, Any] = {}
        self.scratch = self._new("zeros", "slab_step")

    def slice(self, index: int, slot: str, *, name: str, initializer: Any) -> SlabSlice:
        """The state `slot` of the variable `index`, as a variable."""
        if slot not in self.flat:
            self.flat[slot] = self._new(initializer, f"slab_{slot}")
        place = self.places[index]
        return SlabSlice(
            self.flat[slot],
            start=sum(self.sizes[:place]),
            shape=self.shapes[place],
            name=name,
        )

    def join(self, tensors: list[Any]) -> Any:
        """The tensors, one per variable, as one flat tensor."""
        return keras.ops.concatenate([keras.ops.reshape(t, (-1,)) for t in tensors])

    def split(self, flat: Any) -> list[Any]:
        """The pieces of a flat tensor in the variables' shapes."""
        import tensorflow as tf

        pieces = tf.split(flat, self.sizes)
        return [
            piece if len(shape) == 1 else tf.reshape(piece, shape)
            for piece, shape in zip(pieces, self.shapes, strict=True)
        ]

    def _new(self, initializer: Any, name: str) -> Any:
        import tensorflow as tf

        with tf.init_scope():
            value = keras.initializers.get(initializer)((self.total,), self.dtype)
            return tf.Variable(value, trainable=False, name=name)


def plan(variables: list[Any], *, eligible: list[bool]) -> Slab | None:
    """The slab for the small ones among `variables`, None where it would not pay.

    Args:
        variables: all trainable variables, in the optimizer's order.
        eligible: for each, whether nothing about it forbids being joined.
    """
    if not runtime.kernels() or runtime.has_strategy() or _spread(variables):
        return None
    small = [
        (index, v)
        for index, v in enumerate(variables)
        if eligible[index]
        and math.prod(v.shape) <= MAX_SIZE
        and keras.backend.standardize_dtype(v.dtype) == "float32"
    ]
    return Slab(small) if len(small) >= MIN_COUNT else None


def _spread(variables: list[Any]) -> bool:
    """Whether the variables lie on several devices."""
    return len({runtime.native(v).device for v in variables}) > 1
