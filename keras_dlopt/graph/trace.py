"""Which layer feeds which, learned by running the model once on zeros.

Works for Sequential, Functional, nested and subclassed models and on every backend: a
tensor keeps its identity between the layer that makes it and the layer that takes it.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import keras
from keras import ops

from keras_dlopt.errors import ModelError
from keras_dlopt.graph.targets import activation_targets
from keras_dlopt.transforms.host import TransformHost

# Stands in for a dimension that the model leaves open, other than the batch.
_OPEN_DIMENSION = 32


@dataclasses.dataclass(frozen=True, eq=False)
class Call:
    """One call of one layer.

    Attributes:
        path: of the layer, below the model.
        layer: the layer.
        inputs: numbers of the tensors it takes.
        outputs: numbers of the tensors it returns.
        composite: whether other layers were called inside.
    """

    path: str
    layer: Any
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    composite: bool


@dataclasses.dataclass(eq=False)
class Trace:
    """All layer calls of one run of a model, in the order in which they ended.

    Attributes:
        calls: without those that return what they are given, as dropout does.
        inputs: numbers of the model's input tensors.
        outputs: numbers of its output tensors.
        integers: numbers of the tensors that are not of a floating type.
        loose: numbers of the tensors that operations between the layers of Functional
            models take (`x + y`, `keras.ops`); in other models those are not seen.
    """

    calls: list[Call]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    integers: frozenset[int] = frozenset()
    loose: frozenset[int] = frozenset()

    def producers(self) -> dict[int, Call]:
        """Tensor -> the innermost call that made it."""
        found: dict[int, Call] = {}
        for call in self.calls:
            for tensor in set(call.outputs) - set(call.inputs):
                found.setdefault(tensor, call)
        return found

    def consumers(self) -> dict[int, list[Call]]:
        """Tensor -> the calls of layers without inner layers that take it."""
        found: dict[int, list[Call]] = {}
        for call in self.calls:
            for tensor in call.inputs:
                if not call.composite:
                    found.setdefault(tensor, []).append(call)
        return found

    def only_consumer(self, tensor: int) -> Call | None:
        """The one call that takes a tensor; None if anything else takes it too."""
        calls = self.consumers().get(tensor, [])
        elsewhere = tensor in self.outputs or tensor in self.loose
        return None if elsewhere or len(calls) != 1 else calls[0]


class _Recorder:
    """Numbers tensors and collects calls."""

    def __init__(self):
        self.tensors: list[Any] = []  # held, so that no id is used twice
        self.numbers: dict[int, int] = {}
        self.calls: list[Call] = []
        self.started = 0
        self.loose: set[int] = set()

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

    def hook(self, path: str, layer: Any) -> Any:
        call = layer.call

        @functools.wraps(call)
        def recorded(*args, **kwargs):
            inputs = self.number((args, kwargs))
            self.started += 1
            before = self.started
            result = call(*args, **kwargs)
            outputs = self.number(result)
            composite = self.started > before
            if not set(outputs) <= set(inputs):
                self.calls.append(Call(path, layer, inputs, outputs, composite))
            return result

        return recorded

    def hook_operation(self, operation: Any) -> Any:
        call = operation.call

        @functools.wraps(call)
        def recorded(*args, **kwargs):
            self.loose.update(self.number((args, kwargs)))
            return call(*args, **kwargs)

        return recorded


@contextlib.contextmanager
def _recording(model: Any, recorder: _Recorder) -> Iterator[None]:
    """Replaces `call` on every layer below the model, and takes it back."""
    paths = {
        id(t.layer): (t.path.rpartition("/")[0], t.layer)
        for t in activation_targets(model)
    }
    models = [model, *(layer for _, layer in paths.values())]
    loose = {id(o): o for m in models for o in _operations(m)}
    before = {key: vars(layer).get("call") for key, (_, layer) in paths.items()}
    try:
        for path, layer in paths.values():
            layer.call = recorder.hook(path, layer)
        for operation in loose.values():
            operation.call = recorder.hook_operation(operation)
        yield
    finally:
        for key, (_, layer) in paths.items():
            if before[key] is not None:
                layer.call = before[key]
            elif "call" in vars(layer):
                del layer.call
        for operation in loose.values():
            vars(operation).pop("call", None)


def _operations(model: Any) -> list[Any]:
    """What a Functional model computes between its layers."""
    found = getattr(model, "operations", ())
    return [o for o in found if not isinstance(o, keras.layers.Layer)]


def input_specs(model: Any, example: Any = None) -> Any:
    """The structure of a model's inputs, each with `shape` and `dtype`.

    Args:
        model: a built Keras model.
        example: a batch of inputs, for models that do not know their input's shape.

    Raises:
        ModelError: if neither tells, or the model is not built.
    """
    if not isinstance(model, keras.Model) or not model.built:
        raise ModelError(
            f"The model must be a built keras.Model. Received: {model!r}. Call "
            "model.build(input_shape), or call it once on data."
        )
    if example is not None:
        return keras.tree.map_structure(_spec_of, example)
    if getattr(model, "inputs", None):
        structure = model.inputs[0] if len(model.inputs) == 1 else model.input
        return keras.tree.map_structure(_spec_of, structure)
    shape = (model.get_build_config() or {}).get("input_shape")
    if isinstance(shape, list | tuple) and all(
        d is None or isinstance(d, int) for d in shape
    ):
        return keras.KerasTensor(tuple(shape), dtype="float32")
    raise ModelError(
        f"The inputs of {model.name!r} are not known: it is a subclassed model that "
        "was not built from one input shape. Pass example=, a batch of its inputs."
    )


def _spec_of(x: Any) -> keras.KerasTensor:
    shape = (None, *tuple(x.shape)[1:])
    return keras.KerasTensor(shape, dtype=keras.backend.standardize_dtype(x.dtype))


def trace(model: Any, example: Any = None) -> Trace:
    """Runs the model once on zeros, batch size 1, and records its layers' calls.

    Args:
        model: a built Keras model; it is not changed.
        example: a batch of inputs, for models that do not know their input's shape.

    Raises:
        ModelError: for a model that is transformed already.
    """
    name = model.name
    if isinstance(model, TransformHost):
        raise ModelError(
            f"{name!r} is transformed already. Give finalize(model), or the "
            "model from before, and chain what it had: Prune(0.8) >> FakeQuant(bits=8)."
        )

    def zeros(spec):
        shape = [_OPEN_DIMENSION if d is None else d for d in spec.shape[1:]]
        return ops.zeros((1, *shape), dtype=spec.dtype)

    inputs = keras.tree.map_structure(zeros, input_specs(model, example))
    recorder = _Recorder()
    given = recorder.number(inputs)
    with _recording(model, recorder):
        outputs = model(inputs, training=False)
    returned = recorder.number(outputs)
    return Trace(
        recorder.calls,
        given,
        returned,
        recorder.integers(),
        frozenset(recorder.loose),
    )
