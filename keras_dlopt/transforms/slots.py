"""One target with its transform's state, and the targets of one recipe entry."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_dlopt.errors import ModelError
from keras_dlopt.graph.targets import Target
from keras_dlopt.runtime.values import to_numpy
from keras_dlopt.transforms.base import Context, Member, Transform


def finite(weight: np.ndarray, path: str) -> np.ndarray:
    """The weight itself, or `ModelError` where rounding would hide what it has."""
    count = int(np.sum(~np.isfinite(weight)))
    if count:
        raise ModelError(
            f"{path!r} holds {count} values that are not finite (NaN or infinity). "
            "Load an earlier checkpoint, or train again with a lower learning rate."
        )
    return weight


def computed(variable: Any) -> np.ndarray:
    """A weight on the host, half precision as float32: as transforms compute."""
    value = to_numpy(variable)
    return value.astype("float32") if value.dtype.itemsize < 4 else value


@dataclasses.dataclass(frozen=True, eq=False)
class Slot:
    """One target with the variables that hold its transform's state.

    Attributes:
        target: where it acts.
        state: the variables by name.
        trained: the names of those that the optimizer trains.
        resting: whether these take the place of the weight, which is not trained.
        own: what the weight itself was before: whether it was trained.
    """

    target: Target
    state: dict[str, Any]
    trained: tuple[str, ...] = ()
    resting: bool = False
    own: dict[str, bool] = dataclasses.field(default_factory=dict)

    @property
    def frozen(self) -> bool:
        """Whether the user froze the weight or layer."""
        weight, layer = self.target.variable, self.target.layer
        trained = self.own.get("trainable", getattr(weight, "trainable", True))
        return not (trained and getattr(layer, "trainable", True))

    @property
    def carries(self) -> bool:
        """Whether a variable of the state is trained in place of the weight."""
        return self.resting and bool(self.trained)

    def rest(self) -> None:
        """Has the optimizer pass by a weight in whose place others are trained."""
        if self.resting:
            self.own.setdefault("trainable", self.target.variable.trainable)
            if self.target.variable.trainable:
                self.target.variable.trainable = False

    def wake(self, variable: Any) -> None:
        """Has a variable, of this slot or a copy, trained as the weight was before."""
        if self.resting and variable.trainable != self.own["trainable"]:
            variable.trainable = self.own["trainable"]

    def tensors(self) -> dict[str, Any]:
        """The state as tensors of the current graph."""
        return {k: ops.convert_to_tensor(v) for k, v in self.state.items()}

    def arrays(self) -> dict[str, np.ndarray]:
        """The state on the host."""
        return {k: to_numpy(v) for k, v in self.state.items()}

    def weight(self) -> Any:
        """The latent weight on the host; None for activations."""
        return None if self.target.variable is None else computed(self.target.variable)

    def effective(self, transform: Transform, context: Context | None = None) -> Any:
        """What the layer sees of this weight, by default outside of training."""
        weight = ops.convert_to_tensor(self.target.variable)
        context = context or Context(self.target)
        dtype = keras.backend.standardize_dtype(weight.dtype)
        if dtype == "float32" or not keras.backend.is_float_dtype(dtype):
            return transform.apply(weight, self.tensors(), context)
        # Half precision is too coarse for scales and sums; float64 stays.
        wide = "float64" if dtype == "float64" else "float32"
        state = {
            name: ops.cast(value, wide)
            if keras.backend.is_float_dtype(value.dtype)
            else value
            for name, value in self.tensors().items()
        }
        value = transform.apply(ops.cast(weight, wide), state, context)
        return ops.cast(value, dtype)

    def write(self, name: str, value: Any) -> None:
        """Assigns one state variable."""
        self.state[name].assign(value)


@dataclasses.dataclass(frozen=True, eq=False)
class Group:
    """One recipe entry at work: its transform, its slots, its last update's step."""

    transform: Transform
    slots: tuple[Slot, ...]
    last: Any

    def members(self, read: Callable[[Any, str], np.ndarray]) -> list[Member]:
        """The group as `Transform.update` sees it.

        Args:
            read: gives the statistic of a name for a variable.
        """
        names = self.transform.statistics
        return [
            Member(
                s.target,
                s.weight(),
                s.arrays(),
                _OnDemand(s.target.variable, names, read),
                place,
            )
            for place, s in enumerate(self.slots)
        ]


class _OnDemand(Mapping):
    """The statistics of one weight, measured when they are read."""

    def __init__(self, variable, names, read):
        self._variable, self._names, self._read = variable, names, read

    def __getitem__(self, name):
        return self._read(self._variable, name)

    def __iter__(self):
        return iter(self._names)

    def __len__(self):
        return len(self._names)
