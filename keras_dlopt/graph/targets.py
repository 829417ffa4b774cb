"""The places in a model that a transform can act on: its weights and activations."""

import dataclasses
import re
from collections.abc import Callable, Iterable
from typing import Any

import keras

from keras_dlopt.graph import hooks
from keras_dlopt.graph.walk import numbered, own_weights, walk


@dataclasses.dataclass(frozen=True, eq=False)
class Target:
    """One place a transform can act on.

    Attributes:
        path: names from below the model down, such as `"block/conv/kernel"`; for
            activations the last part is `"input"` or `"output"`, and `"block/conv@1"`
            is the second call of a shared layer.
        kind: `"weight"` or `"activation"`.
        variable: the Keras variable, None for activations.
        layer: the layer that owns the variable or activation; None when only the
            variable is known, as in an optimizer.
        parents: the layers around it, outermost (the model) first, `layer` last.
        site: of activations, the one call of the layer that is meant, counted from 0;
            None for all that have no target of their own.
        but: where `site` is None, the calls that have one.
    """

    path: str
    kind: str = "weight"
    variable: Any = None
    layer: Any = None
    parents: tuple[Any, ...] = ()
    site: int | None = None
    but: frozenset[int] = frozenset()

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rsplit("/", 1)[-1]

    @property
    def shape(self) -> tuple[int, ...] | None:
        """The variable's shape; None for activations."""
        return None if self.variable is None else tuple(self.variable.shape)


# What Keras' own quantization keeps beside the codes of a weight.
_OF_CODES = re.compile(r"(_scale|_zero|_amax_history|^g_idx)$")


def _of_codes(layer: Any, variable: Any) -> bool:
    """Whether a variable is a scale that `quantize` of Keras made, not a weight."""
    quantized = getattr(layer, "quantization_mode", None) is not None
    return quantized and _OF_CODES.search(variable.name) is not None


def weight_targets(model: keras.layers.Layer) -> list[Target]:
    """Every floating-point weight below `model`, each once.

    The scales of layers that Keras has quantized are no weights.

    Where two layers, or two weights of one layer, would share a path, the later ones
    get `_1`, `_2`, ...
    """
    targets: list[Target] = []
    seen: set[int] = set()
    taken: dict[str, int] = {}
    for path, layer, parents in walk(model):
        for variable in own_weights(layer):
            floating = keras.backend.is_float_dtype(variable.dtype)
            if id(variable) in seen or not floating or _of_codes(layer, variable):
                continue
            seen.add(id(variable))
            full = numbered(f"{path}/{variable.name}".lstrip("/"), taken)
            targets.append(Target(full, "weight", variable, layer, parents))
    return targets


def activation_targets(
    model: keras.layers.Layer, paths: Iterable[str] = ()
) -> list[Target]:
    """The input and the output of every layer below `model`.

    Args:
        model: a layer or model.
        paths: those among them that name one call of a layer, such as
            `"shared@1/input"`, are targets too.
    """
    sites: dict[str, set[int]] = {}
    for path in paths:
        if named := re.fullmatch(r"(.+)@(\d+)/(input|output)", path):
            sites.setdefault(f"{named[1]}/{named[3]}", set()).add(int(named[2]))
    found = []
    for path, layer, parents in walk(model):
        for end in ("input", "output") if path else ():
            own = frozenset(sites.get(f"{path}/{end}", ()))
            everywhere = Target(
                f"{path}/{end}", "activation", None, layer, parents, but=own
            )
            found.append(everywhere)
            for site in sorted(own):
                at = activation_path(path, end, site)
                found.append(Target(at, "activation", None, layer, parents, site))
    return found


def activation_path(path: str, end: str, site: int | None = None) -> str:
    """The path of a layer's input or output, at all its calls or at one of them."""
    return f"{path}/{end}" if site is None else f"{path}@{site}/{end}"


def taps(
    places: Iterable[tuple[Target, Callable[[Any], Any]]],
) -> list[tuple[Any, hooks.Hook]]:
    """For `hooks.hooked`: a function of each tensor at each of these activations."""
    return [
        (at.layer, hooks.on(at.name, function, site=at.site, but=at.but))
        for at, function in places
    ]


def variable_target(variable: Any) -> Target:
    """The target of a variable whose layer is not known, as in an optimizer."""
    return Target(variable.path, variable=variable)
