"""What feeds what, learned by running a model once on zeros.

Works for Sequential, Functional, nested and subclassed models and on every backend: a
tensor keeps its identity between what makes it and what takes it.
"""

import dataclasses
import functools
from collections import Counter
from typing import Any, NamedTuple

import keras
from keras import ops

from keras_dlopt.errors import ModelError
from keras_dlopt.graph import hooks
from keras_dlopt.graph.targets import activation_path
from keras_dlopt.graph.walk import check_built, is_functional, operations, walk

# Stands in for a dimension that the model leaves open, other than the batch.
OPEN_DIMENSION = 32


class Spec(NamedTuple):
    """Shape and type of a tensor of a trace."""

    shape: tuple[int, ...]
    dtype: str


@dataclasses.dataclass(frozen=True, eq=False)
class Call:
    """One call of one layer, or of one operation between layers.

    Attributes:
        path: of the layer, below the model.
        layer: the layer or operation.
        inputs: numbers of the tensors it takes, by position or by keyword.
        outputs: numbers of the tensors it returns.
        composite: whether other layers were called inside.
        site: which call of this layer it is, counted from 0 in the order in which they
            begin; a shared layer has several.
        aside: numbers of the other tensors it is given, masks and states.
        arguments: of an operation between layers, what it is given by position; None
            stands for a tensor.
    """

    path: str
    layer: Any
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    composite: bool
    site: int = 0
    aside: tuple[int, ...] = ()
    arguments: tuple[Any, ...] = ()


@dataclasses.dataclass(frozen=True, eq=False)
class Trace:
    """All calls of one run of a model, in the order in which they ended.

    Attributes:
        nodes: calls of layers, without those that return what they are given, as
            dropout does; and of the operations between the layers of Functional models
            (`x + y`, `keras.ops`), which in other models are not seen.
        inputs: numbers of the model's input tensors.
        outputs: numbers of its output tensors.
        integers: numbers of the tensors that are not of a floating type.
        specs: shape and type of each tensor; the batch is 1.
    """

    nodes: list[Call]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    integers: frozenset[int] = frozenset()
    specs: tuple[Spec, ...] = ()

    @functools.cached_property
    def calls(self) -> list[Call]:
        """The calls of layers."""
        return [n for n in self.nodes if isinstance(n.layer, keras.layers.Layer)]

    @functools.cached_property
    def operations(self) -> list[Call]:
        """The operations between layers."""
        return [n for n in self.nodes if not isinstance(n.layer, keras.layers.Layer)]

    @functools.cached_property
    def loose(self) -> frozenset[int]:
        """The tensors that operations between layers take, and masks and states."""
        taken = [t for node in self.operations for t in node.inputs]
        return frozenset([*taken, *(t for node in self.nodes for t in node.aside)])

    def producers(self) -> dict[int, Call]:
        """Tensor -> the innermost call of a layer that made it."""
        found: dict[int, Call] = {}
        for call in self.calls:
            for tensor in set(call.outputs) - set(call.inputs):
                found.setdefault(tensor, call)
        return found

    def consumers(self) -> dict[int, list[Call]]:
        """Tensor -> the calls of layers without inner layers that take it."""
        return self._consumers

    @functools.cached_property
    def _consumers(self) -> dict[int, list[Call]]:
        found: dict[int, list[Call]] = {}
        for call in self.calls:
            for tensor in call.inputs:
                if not call.composite:
                    found.setdefault(tensor, []).append(call)
        return found

    @functools.cached_property
    def _unseen(self) -> frozenset[int]:
        """What layers of users' classes take, which may use it beside inner layers."""
        return frozenset(
            tensor
            for call in self.calls
            if call.composite and not _is_known(call.layer)
            for tensor in call.inputs
        )

    def only_consumer(self, tensor: int) -> Call | None:
        """The one call that takes a tensor; None if anything else takes it too."""
        calls = self._consumers.get(tensor, [])
        elsewhere = tensor in self.outputs or tensor in self.loose | self._unseen
        return None if elsewhere or len(calls) != 1 else calls[0]

    def sites(self, layer: Any) -> list[Call]:
        """The calls of one layer."""
        return [call for call in self.calls if call.layer is layer]

    def place(self, call: Call, end: str) -> str:
        """The path of an end of a call, `"input"` or `"output"`.

        It names the site where the layer is called more than once.
        """
        alone = call.site == 0 and self._counts[id(call.layer)] == 1
        return activation_path(call.path, end, None if alone else call.site)

    @functools.cached_property
    def _counts(self) -> Counter[int]:
        return Counter(id(node.layer) for node in self.nodes)


def _is_known(layer: Any) -> bool:
    """Whether all that a layer of layers does is done by those inside it."""
    own = type(layer).__module__.split(".")[0] in ("keras", "keras_dlopt")
    return is_functional(layer) or own


class _Recorder:
    """Numbers tensors and collects calls."""

    def __init__(self) -> None:
        self.tensors: list[Any] = []  # held, so that no id is used twice
        self.numbers: dict[int, int] = {}
        self.nodes: list[Call] = []
        self.started = 0

    def number(self, structure: Any) -> tuple[int, ...]:
        tensors = [t for t in keras.tree.flatten(structure) if ops.is_tensor(t)]
        for tensor in tensors:
            if id(tensor) not in self.numbers:
                self.numbers[id(tensor)] = len(self.tensors)
                self.tensors.append(tensor)
        return tuple(self.numbers[id(t)] for t in tensors)

    def integers(self) -> frozenset[int]:
        """The tensors that are not of a floating type."""
        return frozenset(
            number
            for number, tensor in enumerate(self.tensors)
            if not keras.backend.is_float_dtype(tensor.dtype)
        )

    def specs(self) -> tuple[Spec, ...]:
        """Shape and type of each tensor."""
        return tuple(
            Spec(
                # In the graph of a loop a shape may be unknown altogether.
                () if getattr(t.shape, "rank", 0) is None else tuple(t.shape),
                keras.backend.standardize_dtype(t.dtype),
            )
            for t in self.tensors
        )

    def hook(self, path: str, layer: Any) -> hooks.Hook:
        is_layer = isinstance(layer, keras.layers.Layer)

        def record(call: hooks.Called, given: hooks.Given) -> Any:
            inputs = self.number(given.inputs())
            aside = tuple(t for t in self.number(given.tensors()) if t not in inputs)
            self.started += is_layer
            before = self.started
            result = call(given)
            outputs = self.number(result)
            composite = self.started > before
            if not is_layer or not set(outputs) <= set(inputs):
                arguments = () if is_layer else _constants(given.args)
                self.nodes.append(
                    Call(
                        path,
                        layer,
                        inputs,
                        outputs,
                        composite,
                        given.site,
                        aside,
                        arguments,
                    )
                )
            return result

        return record


def _constants(args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(None if ops.is_tensor(one) else one for one in args)


def input_specs(model: Any, example: Any = None) -> Any:
    """The structure of a model's inputs, each with `shape` and `dtype`.

    Args:
        model: a built Keras model.
        example: a batch of inputs, for models that do not know their input's shape.

    Raises:
        ModelError: if neither tells, or the model is not built.
    """
    check_built(model)
    if example is not None:
        return keras.tree.map_structure(_spec_of, example)
    if getattr(model, "inputs", None):
        structure = model.inputs[0] if len(model.inputs) == 1 else model.input
        return keras.tree.map_structure(_spec_of, structure)
    shape = (model.get_build_config() or {}).get("input_shape")
    if isinstance(shape, list | tuple) and all(
        d is None or isinstance(d, int) for d in shape
    ):
        # The batch is that of the first call, which says nothing about the next.
        return keras.KerasTensor((None, *shape[1:]), dtype="float32")
    raise ModelError(
        f"The inputs of {model.name!r} are not known: it is a subclassed model that "
        "was not built from one input shape. Pass example=, a batch of its inputs."
    )


def _spec_of(x: Any) -> keras.KerasTensor:
    shape = (None, *tuple(x.shape)[1:])
    return keras.KerasTensor(shape, dtype=keras.backend.standardize_dtype(x.dtype))


def trace(model: Any, example: Any = None) -> Trace:
    """Runs the model once on zeros, batch size 1, and records its calls.

    Args:
        model: a built Keras model; it is not changed.
        example: a batch of inputs, for models that do not know their input's shape.

    Raises:
        ModelError: for a model that is not built, or whose inputs are not known.
    """

    def zeros(spec: Any) -> Any:
        shape = [OPEN_DIMENSION if d is None else d for d in spec.shape[1:]]
        return ops.zeros((1, *shape), dtype=spec.dtype)

    return _traced(
        model, keras.tree.map_structure(zeros, input_specs(model, example)), ()
    )


def trace_call(layer: Any, shape: tuple[int, ...], dtype: str = "float32") -> Trace:
    """Runs one built layer on zeros; its own call is the last, and has no path."""
    return _traced(layer, ops.zeros(shape, dtype=dtype), [("", layer)])


def _traced(model: Any, inputs: Any, itself: Any) -> Trace:
    recorder = _Recorder()
    given = recorder.number(inputs)
    places = [*itself, *((path, layer) for path, layer, _ in walk(model) if path)]
    places += operations(model)
    with hooks.hooked((one, recorder.hook(path, one)) for path, one in places):
        outputs = model(inputs, training=False)
    return Trace(
        nodes=recorder.nodes,
        inputs=given,
        outputs=recorder.number(outputs),
        integers=recorder.integers(),
        specs=recorder.specs(),
    )
