"""Folding what is constant by channel into the convolution or dense layer beside it."""

import dataclasses
import functools
from typing import Any

import keras
import numpy as np
from keras import layers

from keras_dlopt.errors import ModelError
from keras_dlopt.graph.absorbing import fits, taken, takes
from keras_dlopt.graph.affine import affine
from keras_dlopt.graph.kinds import calls_like, ends_linear
from keras_dlopt.graph.rebuilding import reaches, rebuilt
from keras_dlopt.graph.trace import Call, Trace, trace
from keras_dlopt.graph.walk import (
    as_functional,
    is_functional,
    operations,
    own_layers,
    walk,
)

# They return what they are given when the model does not train.
_IDLE = (
    layers.ActivityRegularization,
    layers.AlphaDropout,
    layers.Dropout,
    layers.GaussianDropout,
    layers.GaussianNoise,
    layers.Identity,
    layers.SpatialDropout1D,
    layers.SpatialDropout2D,
    layers.SpatialDropout3D,
)


@dataclasses.dataclass(frozen=True)
class Fold:
    """One layer or operation that goes into another.

    Attributes:
        path: of what goes.
        into: path of the layer that takes it in.
        before: whether it stands before that layer.
    """

    path: str
    into: str
    before: bool


@dataclasses.dataclass(frozen=True)
class InputScaling:
    """What a model does first to one of its inputs, channel by channel: a x + b.

    With it a quantizer of the inputs can take the range of the raw values:
    `int8_recipe(model, input_range=scaling.range(0, 255))` is for the scaled ones.

    Attributes:
        paths: of the layers and operations that do it, first to last.
        factor: a, one number or one a channel.
        offset: b.
    """

    paths: tuple[str, ...]
    factor: tuple[float, ...]
    offset: tuple[float, ...]

    def range(self, low: float, high: float) -> tuple[float, float]:
        """Where the scaled inputs lie if the raw ones lie between low and high.

        Example:
            >>> InputScaling(("rescaling",), (1 / 127.5,), (-1.0,)).range(0, 255)
            (-1.0, 1.0)
        """
        a, b = np.asarray(self.factor), np.asarray(self.offset)
        ends = np.stack([a * low + b, a * high + b])
        return float(ends.min()), float(ends.max())


@dataclasses.dataclass(frozen=True)
class Foldable:
    """What `fold` would do to a model.

    Attributes:
        folds: what goes into a convolution or dense layer, in one pass; what stands
            next to it then goes in the next.
        idle: paths of layers that do nothing when the model does not train.
        scalings: of the inputs, those that stay.
    """

    folds: tuple[Fold, ...]
    idle: tuple[str, ...]
    scalings: tuple[InputScaling, ...]


def fold(model: keras.Model) -> keras.Model:
    """The same function with fewer layers: kernels take in what is a x + b.

    BatchNormalization, `Rescaling`, `Normalization`, factors by channel (`LayerScale`,
    `ReZero`, `ScaleAndShift`) and arithmetic with constants (`x / 127.5 - 1`), each a
    x + b of a channel x, go into the convolution or dense layer before them, or, if
    that is exact, after them:

        after    kernel' = a kernel                  bias' = a bias + b
        before   kernel' = kernel a (by input)       bias' = bias + sum kernel b

    Before a layer that pads, an offset b stays: what is padded has none. Layers that do
    nothing in inference (dropout, noise, reshaping to the same shape) go as well. The
    result is for inference and export; to train on, keep the layers.

    Folding goes through nested models. What stands inside layers or models written as
    classes stays, as does what other layers take too.

    Args:
        model: a built Sequential or Functional model; it stays as it is.

    Returns:
        A new Functional model; its outputs differ by rounding only.

    Raises:
        ModelError: for a subclassed model, or one whose layers cannot be rebuilt.

    Example:
        >>> net = keras.Sequential([
        ...     keras.Input((8, 8, 3)), keras.layers.Rescaling(1 / 127.5, -1.0),
        ...     keras.layers.Conv2D(4, 3), keras.layers.BatchNormalization(),
        ...     keras.layers.ReLU(), keras.layers.Dropout(0.5)])
        >>> [layer.name for layer in fold(net).layers[1:]]
        ['conv2d', 're_lu', 'dropout']

    Source: Jacob et al. (arXiv:1712.05877), section 3.2, equation 14.
    """
    source = _source(model)
    while True:
        pieces = _Plan(source).pieces()
        if not pieces:
            return source if source is not model else rebuilt(source, {})
        source = rebuilt(source, pieces)


def folded(model: Any, kinds: Any, into: Any = layers.Layer) -> Any:
    """A model whose layers of some kinds went into the kernels beside them.

    Args:
        model: a Sequential or Functional model; returned itself if none goes.
        kinds: classes of the layers that may go.
        into: classes of the layers that may take them.
    """
    while True:
        plan = _Plan(model)
        found = [
            one
            for one in plan.folds()
            if isinstance(one[0].layer, kinds) and isinstance(one[1].layer, into)
        ]
        if not found:
            return model
        model = rebuilt(model, plan.replaced(found))


def foldable(model: keras.Model, graph: Trace | None = None) -> Foldable:
    """What `fold` would do; nothing is built.

    Args:
        model: a built Sequential or Functional model.
        graph: its `trace`, where it is there already.

    Raises:
        ModelError: for a subclassed model.
    """
    plan = _Plan(_source(model), graph)
    found = plan.folds()
    folds = tuple(Fold(a.path, into.path, before) for a, into, before in found)
    idle = tuple(path for path, _ in plan.idle())
    return Foldable(folds, idle, plan.scalings({f.path for f in folds}))


def fold_batch_normalization(model: keras.Model) -> keras.Model:
    """The same function with BatchNormalization multiplied into the kernels before it.

        kernel' = kernel * gamma / sqrt(variance + epsilon)
        bias'   = beta + (bias - mean) * gamma / sqrt(variance + epsilon)

    For inference and for post-training methods that look at kernels as they act; to
    train, keep the layer. Normalizations that follow anything but a convolution or
    dense layer stay, as do those that normalize another axis than the channels'. `fold`
    does more.

    Args:
        model: a built Sequential or Functional model; it stays as it is.

    Returns:
        A new Functional model.

    Raises:
        ModelError: for a subclassed model, or one whose layers cannot be rebuilt.

    Source: Jacob et al. (arXiv:1712.05877), section 3.2, equation 14.
    """
    source = _source(model)
    plan = _Plan(source)
    found = [
        one
        for one in plan.folds()
        if isinstance(one[0].layer, layers.BatchNormalization) and not one[2]
    ]
    return rebuilt(source, plan.replaced(found))


def _source(model: Any) -> Any:
    source = as_functional(model)
    if source is None:
        raise ModelError(
            "Folding builds a Functional model anew, and takes built Sequential and "
            f"Functional models. Received: {type(model).__name__}. A subclassed model "
            "can be quantized without: per-channel kernels need neither folding nor "
            "equalization."
        )
    return source


class _Plan:
    """What can be folded in one pass over a model."""

    def __init__(self, model: Any, graph: Trace | None = None):
        self.model = model
        self.graph = trace(model) if graph is None else graph
        self.parents = {id(layer): parents for _, layer, parents in walk(model)}
        self.between = {id(op) for _, op in operations(model)}
        self.makers = self.graph.producers()
        self.uses: dict[int, list[Call]] = {}
        for call in self.graph.nodes:
            # Of a model that knows its graph, the calls inside are the users.
            if not (call.composite and is_functional(call.layer)):
                for tensor in (*call.inputs, *call.aside):
                    self.uses.setdefault(tensor, []).append(call)
        self.sites: dict[int, list[Call]] = {}
        for call in self.graph.nodes:
            self.sites.setdefault(id(call.layer), []).append(call)
        self.masks = any(
            isinstance(one, layers.Masking) or getattr(one, "mask_zero", False)
            for _, one, _ in walk(model)
        )

    def pieces(self) -> dict[int, Any]:
        """Id of a layer -> what stands in its place."""
        pieces = self.replaced(self.folds())
        return pieces | {
            id(one): list for _, one in self.idle() if id(one) not in pieces
        }

    def replaced(self, found: list[tuple[Call, Call, bool]]) -> dict[int, Any]:
        """The pieces of some of `folds`."""
        pieces: dict[int, Any] = {}
        for one, into, before in found:
            change = affine(one, self.graph)
            assert change is not None
            make = functools.partial(taken, into.layer, change, before=before)
            pieces |= {id(one.layer): list, id(into.layer): make}
        return pieces

    def folds(self) -> list[tuple[Call, Call, bool]]:
        """What goes, the layer that takes it, and whether it stands before that one."""
        found: list[tuple[Call, Call, bool]] = []
        busy: set[int] = set()
        for call in self.graph.nodes:
            if id(call.layer) in busy or call.site or not self._goes(call.layer):
                continue
            if (change := affine(call, self.graph)) is None:
                continue
            for before in (False, True):
                into = self._other(call, before)
                if into is None or id(into.layer) in busy:
                    continue
                if fits(into, change, self.graph, before=before):
                    found.append((call, into, before))
                    busy |= {id(call.layer), id(into.layer)}
                    break
        return found

    def _other(self, call: Call, before: bool) -> Call | None:
        """A call of the layer beside that can take this one in, if there is one.

        All calls of this layer and all of that one must stand in pairs, with a tensor
        between that nothing else takes.
        """
        mine = self.sites[id(call.layer)]
        others: list[Call] = []
        for one in mine:
            tensor = one.outputs[0] if before else one.inputs[0]
            users = self.uses.get(tensor, [])
            if len(users) != 1 or tensor in self.graph.outputs:
                return None
            other = users[0] if before else self.makers.get(tensor)
            if other is None or other.layer is not (others or [other])[0].layer:
                return None
            others.append(other)
        layer = others[0].layer
        paired = len({id(o) for o in others}) == len(mine) == len(self.sites[id(layer)])
        fine = paired and takes(layer) and self._reached(layer)
        return others[0] if fine and len(others[0].inputs) == 1 else None

    def _reached(self, layer: Any) -> bool:
        parents = self.parents.get(id(layer))
        return id(layer) in self.between or (parents is not None and reaches(parents))

    def _goes(self, layer: Any) -> bool:
        """Whether a layer or operation can be taken out, for all that stands beside."""
        passes = getattr(layer, "supports_masking", False)
        return self._reached(layer) and (passes or not self.masks)

    def idle(self) -> list[tuple[str, Any]]:
        """Layers that do nothing in inference, but for those that end the model."""
        ends = set(getattr(self.model, "output_names", ()))
        found = []
        for path, layer, parents in walk(self.model):
            if not path or not self._goes(layer) or layer.name in ends:
                continue
            inside = own_layers(parents[-2])
            alone = isinstance(parents[-2], keras.Sequential) and all(
                one is layer or _does_nothing(one, self.sites, self.graph)
                for one in inside
            )
            if not alone and _does_nothing(layer, self.sites, self.graph):
                found.append((path, layer))
        return found

    def scalings(self, gone: set[str]) -> tuple[InputScaling, ...]:
        """What stays of what is done to the inputs first."""
        found = []
        for tensor in self.graph.inputs:
            whole, paths = None, []
            while len(users := self.uses.get(tensor, [])) == 1:
                change = affine(users[0], self.graph)
                if change is None or users[0].path in gone:
                    break
                both = change if whole is None else change.after(whole)
                if both is None:
                    break
                whole, tensor = both, users[0].outputs[0]
                paths.append(users[0].path)
            if whole is not None:
                a, b = whole.factor.tolist(), whole.offset.tolist()
                found.append(InputScaling(tuple(paths), tuple(a), tuple(b)))
        return tuple(found)


def _does_nothing(layer: Any, sites: dict[int, list[Call]], graph: Trace) -> bool:
    if any(calls_like(layer, kind) for kind in _IDLE):
        return True
    if calls_like(layer, layers.Activation):
        return ends_linear(layer)
    if any(calls_like(layer, kind) for kind in (layers.Reshape, layers.Flatten)):
        calls = sites.get(id(layer), [])
        return bool(calls) and all(
            graph.specs[c.inputs[0]].shape == graph.specs[c.outputs[0]].shape
            for c in calls
        )
    return False
