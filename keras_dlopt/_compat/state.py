"""State of Keras' optimizers: where it is kept, found and tracked."""

import math
import sys
from typing import Any

import keras
from keras.src.saving import saving_lib

from keras_dlopt.errors import ConfigError


class SlabSlice(keras.Variable):
    """State of one variable, stored as a slice of a flat variable.

    Relies on: `Variable.value`, `.assign` are how Keras reads and writes a variable;
    TensorFlow's checkpoints ask for `_serialize_to_tensors`, `_restore_from_tensors`
    and `_shared_name`.

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
        self._stop = start + math.prod(shape)

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

    @property
    def _shared_name(self):
        return self.name

    def _serialize_to_tensors(self):
        return {"VARIABLE_VALUE": self.value}

    def _restore_from_tensors(self, restored_tensors):
        return self.assign(restored_tensors["VARIABLE_VALUE"])


def track_state(optimizer: keras.optimizers.Optimizer, variable: Any) -> None:
    """Makes a variable the next one of an optimizer's, in files and checkpoints.

    Assigning it to an attribute would do that, and tie it to the attribute's name in
    TensorFlow's checkpoints as well.

    Relies on: `BaseOptimizer._track_variable(variable)`.
    """
    optimizer._track_variable(variable)


def in_checkpoints(layer: keras.layers.Layer, variable: Any, name: str) -> None:
    """Has TensorFlow's checkpoints hold a variable that no attribute of a layer holds.

    Relies on: TensorFlow's `Trackable._track_trackable(trackable, name)`, by which
    Keras tracks what is set as an attribute.
    """
    if keras.backend.backend() == "tensorflow":
        layer._track_trackable(variable, name=name, overwrite=True)


def place_of(optimizer: keras.optimizers.Optimizer, variable: Any) -> int | None:
    """Where a variable stands among those that an optimizer was built with.

    Relies on: `BaseOptimizer._get_variable_index(variable)`.
    """
    try:
        return optimizer._get_variable_index(variable)
    except KeyError:
        return None


def build_seen(
    optimizer: keras.optimizers.Optimizer, variables: list[Any]
) -> dict[int, tuple[Any, str]]:
    """Builds an optimizer, or one inside another, and sees what its slots are for.

    Returns:
        id of a slot -> the variable that it belongs to, and the slot's name.

    Relies on: Keras' optimizers make slots by `add_variable_from_reference`.
    """
    seen: dict[int, tuple[Any, str]] = {}
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    create = inner.add_variable_from_reference

    def noting(reference_variable, name=None, *args, **kwargs):
        slot = create(reference_variable, name, *args, **kwargs)
        seen[id(slot)] = reference_variable, str(name)
        return slot

    inner.add_variable_from_reference = noting
    try:
        optimizer.build(variables)
    finally:
        del inner.add_variable_from_reference
    return seen


def state_beside_weights(optimizer: keras.optimizers.Optimizer) -> None:
    """Has one of any optimizers create each slot on the device of its weight.

    Relies on: Keras' optimizers make slots by `add_variable_from_reference`.
    """
    import tensorflow as tf

    create = optimizer.add_variable_from_reference

    def beside(reference_variable, *args, **kwargs):
        with tf.device(reference_variable.value.device):
            return create(reference_variable, *args, **kwargs)

    optimizer.add_variable_from_reference = beside


def asked_to_save() -> bool:
    """Whether Keras reads the attribute, whose getter asks here, to save or load it.

    Relies on: `saving_lib._walk_saveable` reads the attributes of a model itself, and
    gives what it finds in them a place in the file by the attribute's name.
    """
    asking = sys._getframe(2)  # below this function and the getter
    return asking.f_code is saving_lib._walk_saveable.__code__
