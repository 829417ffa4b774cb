"""The places in a model that a transform can act on: its weights and activations."""

import dataclasses
from typing import Any

import keras

from keras_dlopt.graph.walk import numbered, own_weights, walk


@dataclasses.dataclass(frozen=True, eq=False)
class Target:
    """One place a transform can act on.

    Attributes:
        path: names from below the model down, such as `"block/conv/kernel"`; for
            activations the last part is `"input"` or `"output"`.
        kind: `"weight"` or `"activation"`.
        variable: the Keras variable, None for activations.
        layer: the layer that owns the variable or activation; None when only the
            variable is known, as in an optimizer.
        parents: the layers around it, outermost (the model) first, `layer` last.
    """

    path: str
    kind: str = "weight"
    variable: Any = None
    layer: Any = None
    parents: tuple[Any, ...] = ()

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rsplit("/", 1)[-1]

    @property
    def shape(self) -> tuple[int, ...] | None:
        """The variable's shape; None for activations."""
        return None if self.variable is None else tuple(self.variable.shape)


def weight_targets(model: keras.layers.Layer) -> list[Target]:
    """Every floating-point weight below `model`, each once.

    Where two layers, or two weights of one layer, would share a path, the later ones
    get `_1`, `_2`, ...
    """
    targets: list[Target] = []
    seen: set[int] = set()
    taken: dict[str, int] = {}
    for path, layer, parents in walk(model):
        for variable in own_weights(layer):
            floating = keras.backend.is_float_dtype(variable.dtype)
            if id(variable) in seen or not floating:
                continue
            seen.add(id(variable))
            full = numbered(f"{path}/{variable.name}".lstrip("/"), taken)
            targets.append(Target(full, "weight", variable, layer, parents))
    return targets


def activation_targets(model: keras.layers.Layer) -> list[Target]:
    """The input and the output of every layer below `model`."""
    return [
        Target(f"{path}/{end}", kind="activation", layer=layer, parents=parents)
        for path, layer, parents in walk(model)
        if path
        for end in ("input", "output")
    ]


def variable_target(variable: Any) -> Target:
    """The target of a variable whose layer is not known, as in an optimizer."""
    return Target(variable.path, variable=variable)
