"""Many small variables updated as one: their optimizer state lies in flat variables.

A train step over hundreds of biases and scales spends its time in starting kernels, not
in arithmetic. Here the state of all small variables is kept in one flat variable per
slot ("momentum", "velocity"), the gradients are joined, one kernel updates the whole,
and the result is split again. Each piece of state still shows up as a variable of its
own, under the name and in the place that Keras gives it, so files and checkpoints do
not change.
"""

from typing import Any

import keras

from keras_dlopt.errors import ConfigError
from keras_dlopt.optimizers._replicas import densify

# Above this size a kernel of its own costs less than the copies in and out of the slab.
MAX_SIZE = 8192
# Fewer variables than this gain nothing.
MIN_COUNT = 4


class SlabSlice(keras.Variable):
    """State of one variable, stored as a slice of a flat variable.

    Args:
        flat: the `tf.Variable` of rank 1 that holds the values.
        start: first element of the slice.
        shape: shape in which the slice is seen.
        name: name of the variable.
    """

    def __init__(self, flat: Any, *, start: int, shape: tuple[int, ...], name: str):
        super().__init__("zeros", shape=shape, dtype=flat.dtype.name, name=name)
        self._flat = flat
        self._start = start
        self._stop = start + _size(shape)

    @property
    def value(self):
        if not hasattr(self, "_flat"):  # while the base class builds itself
            return super().value
        part = self._flat[self._start : self._stop]
        return keras.ops.reshape(part, tuple(self.shape))

    def assign(self, value):
        value = keras.ops.convert_to_tensor(value, dtype=self._flat.dtype.name)
        if tuple(value.shape) != tuple(self.shape):
            raise ConfigError(
                f"The shape of the value must be {tuple(self.shape)}, that of "
                f"{self.path!r}. Received: {tuple(value.shape)}."
            )
        flat = keras.ops.reshape(value, (-1,))
        self._flat[self._start : self._stop].assign(flat)
        return value

    def __repr__(self):
        return f"<SlabSlice path={self.path}, shape={tuple(self.shape)}>"

    # TensorFlow's checkpoints ask every trackable object for its tensors.
    @property
    def _shared_name(self):
        return self.name

    def _serialize_to_tensors(self):
        return {"VARIABLE_VALUE": self.value}

    def _restore_from_tensors(self, restored_tensors):
        return self.assign(restored_tensors["VARIABLE_VALUE"])


class Slab:
    """Where each small variable lies, and the flat variables that hold their state.

    Args:
        variables: (index, variable) pairs, in the order in which they are joined.
    """

    def __init__(self, variables: list[tuple[int, Any]]):
        self.indices = [index for index, _ in variables]
        self.shapes = [tuple(v.shape) for _, v in variables]
        self.sizes = [_size(shape) for shape in self.shapes]
        self.total = sum(self.sizes)
        self.dtype = str(keras.backend.standardize_dtype(variables[0][1].dtype))
        self.flat: dict[str, Any] = {}
        self.scratch = self._new("zeros", "slab_step")

    def slice(self, index: int, slot: str, *, name: str, initializer: Any) -> SlabSlice:
        """The state `slot` of the variable `index`, as a variable."""
        if slot not in self.flat:
            self.flat[slot] = self._new(initializer, f"slab_{slot}")
        place = self.indices.index(index)
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
    small = [
        (index, v)
        for index, v in enumerate(variables)
        if eligible[index]
        and _size(tuple(v.shape)) <= MAX_SIZE
        and keras.backend.standardize_dtype(v.dtype) == "float32"
    ]
    return Slab(small) if len(small) >= MIN_COUNT else None


def take(
    slab: Slab | None, grads: list[Any], cells: list[Any]
) -> tuple[Any, list[Any]]:
    """Sets the small variables apart.

    Args:
        slab: where they lie, if anywhere.
        grads: one gradient per cell.
        cells: the weights that got a gradient.

    Returns:
        Gradients and cells in the slab's order, None where some are missing; and
        (gradient, cell) pairs of all others.
    """
    pairs = list(zip(grads, cells, strict=True))
    small = {c.index: (g, c) for g, c in pairs if c.in_slab}
    if slab is None or len(small) < len(slab.indices):
        return None, pairs
    ours = [small[i] for i in slab.indices]
    rest = [(g, c) for g, c in pairs if not c.in_slab]
    return ([densify(g) for g, _ in ours], [c for _, c in ours]), rest


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for length in shape:
        size *= int(length)
    return size
