"""The normal form of a model for int8: a layer for all that needs a quantizer."""

import functools
from collections.abc import Callable
from typing import Any

import keras
from keras import layers

from keras_dlopt import _compat
from keras_dlopt.errors import ConfigError
from keras_dlopt.graph.copying import in_float32
from keras_dlopt.graph.folding import folded
from keras_dlopt.graph.rebuilding import Args, Kwargs, Piece, Reshaped, reaches, rebuilt
from keras_dlopt.graph.symbolic import Node, nodes
from keras_dlopt.graph.trace import trace
from keras_dlopt.graph.walk import as_functional, is_functional, layers_below, walk
from keras_dlopt.int8.attending import each_once
from keras_dlopt.int8.between import layer_of, scalings
from keras_dlopt.int8.splitting import Names, in_parts, joined_in_parts
from keras_dlopt.layers import LayerScale, ReZero, ScaleAndShift

_AFFINE = (
    *(layers.Rescaling, layers.Normalization, LayerScale, ReZero, ScaleAndShift),
    _compat.FactorByChannel,
)
_Arguments = Callable[[Args, Kwargs], tuple[Args, Kwargs]]


def prepare(model: keras.Model, *, fold: bool = False) -> keras.Model:
    """The same function, written with layers that int8 has a place and a form for.

    `post_training.quantize` does it by itself; before `int8_recipe` it is one call.

    - operations between layers (`x + y`, `x / 127.5 - 1`, `keras.ops.relu`) become
      layers: `Add`, `Rescaling`, `Activation`, ..., `OperationLayer` for all others;
    - activations that a kernel's layer ends in are split off, as by
      `split_activations`;
    - separable convolutions become a depthwise one and one of size 1, `Average` a sum
      and a `Rescaling`, hard sigmoids relu6(x + 3) / 6, `SqueezeExcitation` its parts;
    - `LayerNormalization`, `RMSNormalization` and `GroupNormalization` become means,
      differences, products and a `ScaleAndShift`; `MultiHeadAttention` without masks
      its products and softmax, the scale in the kernel of the queries;
    - an input of the model that is joined with other tensors gets a `Reshape` to its
      own shape, at which it is quantized;
    - models in float16, bfloat16 or mixed precision become float32.

    Args:
        model: a built Sequential or Functional model; it stays as it is.
        fold: whether `Rescaling`, `Normalization` and arithmetic with constants go into
            the kernels beside them where that is exact. The file gets smaller; to train
            on, leave it: kernels behind inputs from 0 to 255 get very small weights.

    Returns:
        A new model with the same weights, nested models included. Its outputs differ by
        float rounding only.

    Raises:
        ConfigError: for a subclassed model.
        ModelError: for a model whose layers cannot be built anew.

    Example:
        >>> import keras
        >>> x = keras.Input((8,))
        >>> y = keras.layers.Dense(8, activation="tanh", name="d")(x / 255.0)
        >>> net = keras.Model(x, keras.layers.Dense(2, name="end")(y + x))
        >>> [type(layer).__name__ for layer in prepare(net).layers[1:]]
        ['Rescaling', 'Dense', 'Activation', 'Reshape', 'Add', 'Dense']
    """
    if as_functional(model) is None:
        raise ConfigError(
            f"prepare takes a built Sequential or Functional model. Received: {model!r}"
            ". The calls inside a subclassed model cannot be changed from outside: "
            "write its operations and activations as layers."
        )
    made = prepared(model, fold=fold)
    return rebuilt(model, {}) if made is model else made


def prepared(model: Any, *, fold: bool) -> Any:
    """As `prepare`, but a model that is in normal form already is returned itself."""
    source = in_float32(model)
    change = _Change(as_functional(source))
    if change.pieces or change.arguments:
        source = rebuilt(source, change.pieces, Reshaped({}, change.arguments))
    return folded(source, _AFFINE) if fold else source


class _Change:
    """What `rebuilt` is to do.

    Attributes:
        pieces: id of a layer or operation -> what gives the layers in its place.
        arguments: id of one -> what gives the arguments of its call.
    """

    def __init__(self, model: Any):
        self.pieces: dict[int, Callable[[], Any]] = {}
        self.arguments: dict[int, _Arguments] = {}
        self.names = Names(layer.name for layer in layers_below(model))
        self.found = self._nodes(model)
        # A mask ends at an operation, and most layers would let it pass.
        self.masks = any(
            isinstance(one, layers.Masking) or getattr(one, "mask_zero", False)
            for one in layers_below(model)
        )
        between = any(not isinstance(n.operation, layers.Layer) for n in self.found)
        if between and not self.masks:
            self._scale(model)
        for node in self.found:
            if id(node.operation) not in self.pieces:
                self._change(node)
        self._split_off_inputs(model)

    @staticmethod
    def _nodes(model: Any) -> list[Node]:
        found: list[Node] = []
        for _, layer, parents in walk(model):
            if is_functional(layer) and reaches(parents):
                graph = as_functional(layer)
                found += nodes(graph) if graph is not None else []
        return found

    def _scale(self, model: Any) -> None:
        """Arithmetic with constants: one Rescaling for what stands in a row."""
        found = {id(node.operation): node for node in self.found}
        for row, factor, offset in scalings(trace(model), found):
            first, *rest = row
            name = first.layer.name
            self.pieces[id(first.layer)] = functools.partial(
                _rescaling, factor, offset, name
            )
            self.arguments[id(first.layer)] = _tensors
            self.pieces |= {id(call.layer): list for call in rest}

    def _change(self, node: Node) -> None:
        what = node.operation
        if isinstance(what, layers.Layer):
            if (make := in_parts(node, self.names, _parts_of)) is not None:
                self.pieces[id(what)] = make
            elif self._alone(what) and (make := joined_in_parts(node, _parts_of)):
                self.pieces[id(what)] = make
                self.arguments[id(what)] = each_once
        elif (make := layer_of(node, plain=self.masks)) is not None:
            self.pieces[id(what)] = make
            self.arguments[id(what)] = _tensors

    def _alone(self, layer: Any) -> bool:
        """Whether a layer is called once, and without masks."""
        calls = sum(node.operation is layer for node in self.found)
        return calls == 1 and not self.masks

    def _split_off_inputs(self, model: Any) -> None:
        """Gives an input that is joined with others a layer that quantizes it."""
        given = {id(t) for t in model.inputs if keras.backend.is_float_dtype(t.dtype)}
        for node in nodes(model):
            at = [n for n, t in enumerate(node.inputs) if id(t) in given]
            joined = len({id(t) for t in node.inputs}) > 1
            concatenated = isinstance(node.operation, layers.Concatenate)
            if not at or not joined or concatenated or is_functional(node.operation):
                continue
            if any(None in node.inputs[n].shape[1:] for n in at):
                continue  # no Reshape to what is open
            before = self.arguments.get(id(node.operation), _as_they_are)
            names = {n: self.names.new(f"{node.operation.name}_input") for n in at}
            self.arguments[id(node.operation)] = functools.partial(
                _reshaped, before, names
            )


def _rescaling(factor: Any, offset: Any, name: str) -> list[Piece]:
    return [(layers.Rescaling(factor, offset, name=name), [])]


def _parts_of(model: Any) -> Any:
    """A model that was made of one layer, in normal form."""
    return prepared(model, fold=False)


def _tensors(args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs]:
    """The tensors alone: one, or a list of them."""
    given = keras.tree.flatten((args, kwargs))
    found = [t for t in given if isinstance(t, keras.KerasTensor)]
    return (found[0] if len(found) == 1 else found,), {}


def _as_they_are(args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs]:
    return args, kwargs


def _reshaped(
    before: _Arguments, names: dict[int, str], args: Args, kwargs: Kwargs
) -> tuple[Args, Kwargs]:
    """The arguments, some of the tensors reshaped to the shape they have."""
    args, kwargs = before(args, kwargs)
    flat, count = keras.tree.flatten((args, kwargs)), -1
    for place, value in enumerate(flat):
        if isinstance(value, keras.KerasTensor):
            count += 1
            if count in names:
                layer = layers.Reshape(value.shape[1:], name=names[count])
                flat[place] = layer(value)
    made: tuple[Args, Kwargs] = keras.tree.pack_sequence_as((args, kwargs), flat)
    return made
