"""Which weight is split along which axis, over which axis of a mesh of devices.

Plain data, the same for every backend.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from keras_dlopt.errors import ConfigError, ModelError
from keras_dlopt.graph.targets import weight_targets
from keras_dlopt.select import Selector, named, selector_from_dict

BATCH = "batch"
Axes = tuple[str | None, ...]


@dataclasses.dataclass(frozen=True)
class Layout:
    """A mesh of devices, and rules that split weights over its axes.

    Args:
        mesh: name -> number of devices along that axis. The axis `"batch"` splits the
            data; it is there with one device if left out.
        rules: (selector, axes) pairs; the first that matches a weight decides. `axes`
            names for each axis of the weight the mesh axis it is split over, or None.
            Weights that no rule matches are whole on every device.

    Raises:
        ConfigError: for an empty or unknown mesh axis, or one used twice in a rule.

    Example:
        >>> from keras_dlopt import named, rank
        >>> layout = Layout(
        ...     {"model": 4}, [(named("kernel") & rank(2), (None, "model"))])
        >>> layout.devices
        4
        >>> Layout.from_dict(layout.to_dict()) == layout
        True
    """

    mesh: Mapping[str, int]
    rules: Sequence[tuple[Selector, Axes]] = ()

    def __post_init__(self) -> None:
        mesh = {str(name): size for name, size in dict(self.mesh).items()}
        for name, size in mesh.items():
            if not isinstance(size, int) or isinstance(size, bool) or size < 1:
                raise ConfigError(
                    f"mesh[{name!r}] must be a number of devices of at least 1. "
                    f"Received: {size!r}."
                )
        mesh = {BATCH: mesh.pop(BATCH, 1), **mesh}
        rules = tuple((selector, tuple(axes)) for selector, axes in self.rules)
        for selector, axes in rules:
            used = [axis for axis in axes if axis is not None]
            wrong = [axis for axis in used if axis not in mesh or axis == BATCH]
            if (
                not isinstance(selector, Selector)
                or wrong
                or len(set(used)) < len(used)
            ):
                raise ConfigError(
                    "A rule is a selector and, for each axis of the weight, None or a "
                    f"mesh axis of {sorted(set(mesh) - {BATCH})}, each once. "
                    f"Received: {selector!r}, {axes!r}."
                )
        object.__setattr__(self, "mesh", mesh)
        object.__setattr__(self, "rules", rules)

    @property
    def devices(self) -> int:
        """Number of devices in the mesh."""
        return math.prod(self.mesh.values())

    def axes_of(self, model: Any) -> dict[str, Axes]:
        """The split of every weight that is split: variable path -> axes.

        Raises:
            ModelError: for a model that is not built.
            ConfigError: for a rule that matches nothing, has another rank than the
                weight, or whose devices do not divide the weight's axis.
        """
        if not model.built:
            raise ModelError(
                "The model is not built, so it has no weights to split. Start it with "
                "keras.Input, call model.build(input_shape), or call it once on data."
            )
        found: dict[str, Axes] = {}
        unused = set(range(len(self.rules)))
        for target in weight_targets(model):
            for number, (selector, axes) in enumerate(self.rules):
                if selector(target):
                    unused.discard(number)
                    self._check(target, axes)
                    found[target.variable.path] = axes
                    break
        for number in sorted(unused):
            raise ConfigError(
                f"The rule {self.rules[number]} matches no weight that an earlier rule "
                "left. Weights: "
                f"{', '.join(t.path for t in weight_targets(model)[:20])}."
            )
        return found

    def _check(self, target: Any, axes: Axes) -> None:
        if len(axes) != len(target.shape):
            raise ConfigError(
                f"{target.path!r} has the shape {target.shape} and the rule's axes "
                f"{axes} are {len(axes)}. Give one entry an axis; add "
                f"rank({len(axes)}) to the selector to leave other weights out."
            )
        for length, axis in zip(target.shape, axes, strict=True):
            if axis is not None and length % self.mesh[axis]:
                raise ConfigError(
                    f"{target.path!r} has the shape {target.shape}; its axis of "
                    f"{length} cannot be split over the {self.mesh[axis]} devices of "
                    f"{axis!r}. Choose a multiple, or leave the weight whole."
                )

    def bytes_on_a_device(self, model: Any, *, copies: int = 1) -> int:
        """Bytes of the model's variables on one device.

        Args:
            model: built.
            copies: how many times as much the trainable weights are counted: 3 for a
                weight with two slots of an optimizer.
        """
        axes, total = self.axes_of(model), 0
        trainable = {id(v) for v in model.trainable_variables}
        for variable in model.variables:
            parts = math.prod(
                self.mesh[a] for a in axes.get(variable.path, ()) if a is not None
            )
            size = math.prod(variable.shape) * _width(variable.dtype) // parts
            total += size * (copies if id(variable) in trainable else 1)
        return total

    def to_dict(self) -> dict[str, Any]:
        """The layout as JSON-ready data."""
        rules = [[selector.to_dict(), list(axes)] for selector, axes in self.rules]
        return {"mesh": dict(self.mesh), "rules": rules}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Layout":
        """The layout that `to_dict` wrote.

        Raises:
            ConfigError: for data that is not a layout.
        """
        try:
            rules = [(selector_from_dict(s), tuple(axes)) for s, axes in data["rules"]]
            return cls(dict(data["mesh"]), rules)
        except (TypeError, KeyError, ValueError) as error:
            raise ConfigError(
                f"This is not a layout ({type(error).__name__}: {error}). Expected "
                "what Layout.to_dict() wrote."
            ) from error


def automatic_layout(
    model: Any,
    *,
    devices: int,
    batch: int = 1,
    least: int = 2**14,
    select: Selector | None = None,
) -> Layout:
    """Splits every large weight along its last axis that the devices divide.

    The outputs of a layer are the last axis of its kernel, so each device computes some
    of the features; the backend moves activations where the next layer needs them.

    Args:
        model: built.
        devices: to split weights over.
        batch: devices to split the data over, besides.
        least: elements from which a weight is split.
        select: which weights may be split; None for kernels and embeddings.

    Raises:
        ModelError: for a model that is not built, or in which nothing can be split.

    Example:
        >>> import keras
        >>> net = keras.Sequential(
        ...     [keras.Input((64,)), keras.layers.Dense(512, name="wide")])
        >>> automatic_layout(net, devices=4).rules
        ((At(paths=('wide/kernel',)), (None, 'model')),)
    """
    from keras_dlopt.select import at

    if not model.built:
        return Layout({"model": devices}).axes_of(model)  # type: ignore[return-value]
    chosen = select or (named("kernel") | named("embeddings"))
    by_axes: dict[Axes, list[str]] = {}
    for target in weight_targets(model):
        shape = target.shape or ()
        if not chosen(target) or math.prod(shape) < least:
            continue
        places = [i for i, n in enumerate(shape) if n % devices == 0]
        if places:
            axes = tuple(
                "model" if i == places[-1] else None for i in range(len(shape))
            )
            by_axes.setdefault(axes, []).append(target.path)
    if not by_axes:
        raise ModelError(
            f"No weight of at least {least} elements has an axis that {devices} "
            "devices divide. Lower `least`, or use another number of devices."
        )
    rules = [(at(*paths), axes) for axes, paths in by_axes.items()]
    return Layout({BATCH: batch, "model": devices}, rules)


def _width(dtype: Any) -> int:
    import keras

    name = keras.backend.standardize_dtype(dtype)
    digits = "".join(c for c in name if c.isdigit())
    return max(int(digits or 8) // 8, 1)
