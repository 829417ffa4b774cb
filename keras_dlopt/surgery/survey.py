"""One pass over a model's graph: which channels there are, who reads, who holds them.

Each layer's rule (`surgery/rules`) says through a `Site` what it does with ids: hands
them on, makes new ones, ties its weights and sizes to them, reads them, or pins them.
What no rule is for pins all that it touches.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np

from keras_dlopt import _compat
from keras_dlopt.graph.symbolic import (
    Node,
    functional_twin,
    graph_of,
    known_kind,
    nodes,
)
from keras_dlopt.graph.walk import children
from keras_dlopt.surgery.channels import Channels, Classes

# Bounds of what may take any value.
ANY = (np.asarray(-np.inf), np.asarray(np.inf))
Write = Callable[[dict[str, Any], np.ndarray], None]


@dataclasses.dataclass(eq=False)
class Place:
    """What of a layer or operation hangs on channels, over all its calls.

    Attributes:
        path: of the layer, names from below the model down.
        operation: the layer or operation.
        weights: id of a variable -> the variable, and axis -> ids along it.
        sizes: name -> ids, and what writes the ones that stay (a mask of the ids) into
            the layer's config.
        arguments: for operations: what changes the arguments of the call.
        calls: how often it is called.
        nodes: the first tensors of the nodes that call it.
        uses: id of a variable -> how often each of its numbers is multiplied, for one
            example; None where the model leaves a size open.
        products: ids, and the multiplications that each takes without a weight.
    """

    path: str
    operation: Any
    weights: dict[int, tuple[Any, dict[int, np.ndarray]]] = dataclasses.field(
        default_factory=dict
    )
    sizes: dict[str, tuple[np.ndarray, Write]] = dataclasses.field(default_factory=dict)
    arguments: Callable[..., Any] | None = None
    calls: int = 0
    nodes: set[int] = dataclasses.field(default_factory=set)
    uses: dict[int, int | None] = dataclasses.field(default_factory=dict)
    products: list[tuple[np.ndarray, int]] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True, eq=False)
class Read:
    """A place where a layer mixes channels into new ones.

    Attributes:
        place: of the layer.
        facts: of what it reads.
        out: ids of what it makes, a row for each group.
        kernel: (taps, groups, inputs, outputs).
        bias: name of the config entry that says whether there is a bias, which can take
            what a fixed input amounts to; None where it cannot.
        padded: whether zeros are read beside the values.
    """

    place: Place
    facts: Channels
    out: np.ndarray
    kernel: np.ndarray
    bias: str | None
    padded: bool


@dataclasses.dataclass(frozen=True, eq=False)
class Pin:
    """Channels that must stay.

    Attributes:
        path: of the layer or tensor that holds them.
        kind: its class.
        reason: why they must stay.
        ids: of the channels.
    """

    path: str
    kind: str
    reason: str
    ids: np.ndarray


class Survey:
    """The graph of a model with the ids of all channels.

    Args:
        model: a built model.
        rules: a class of layers, or the name of an operation -> its rule.
        example: a batch of inputs, for models that do not know their input's shape.
        largest: no value in the model is assumed to be larger than this.

    Raises:
        ModelError: for a model that has no graph.
    """

    def __init__(
        self, model: Any, rules: Mapping[Any, Any], *, example: Any, largest: float
    ):
        self.model = functional_twin(model, example)
        #: What is built anew: the model itself where it knows its graph.
        self.source = self.model if graph_of(model) is None else model
        self.rules, self.largest = rules, largest
        self.classes = Classes()
        self._trains = False  # inside a model that is called with training=True
        self.places: dict[int, Place] = {}
        self.reads: list[Read] = []
        self.pins: list[Pin] = []
        self.shapes: dict[int, list[Channels]] = {}
        # What makes channels -> their ids; nothing may lose them all.
        self.made: dict[str, np.ndarray] = {}
        # Paths of layers whose channels are heads, which no kernel wants in multiples.
        self.heads: set[str] = set()
        given = []
        for tensor in self.model.inputs:
            facts = self.unknown(tensor)
            self.pin("", tensor.name, "Input", "an input of the model", facts.ids)
            given.append(facts)
        for tensor, facts in zip(
            self.model.outputs, self._through(self.model, given, ""), strict=True
        ):
            name = tensor.name
            self.pin("", name, "Output", "an output of the model", facts.ids)

    def unknown(self, tensor: Any, axis: int | None = None) -> Channels:
        """New channels of a tensor, of which nothing is known."""
        axis = len(tensor.shape) - 1 if axis is None else axis
        known = len(tensor.shape) > 1 and tensor.shape[axis] is not None
        ids = self.classes.fresh(tensor.shape[axis] if known else 0)
        return Channels(axis, ids, np.asarray(-self.largest), np.asarray(self.largest))

    def pin(self, path: str, name: str, kind: str, reason: str, ids: Any) -> None:
        """These channels must stay."""
        if len(ids):
            full = f"{path}/{name}".lstrip("/")
            self.pins.append(Pin(full, kind, reason, np.unique(ids)))

    def _through(self, model: Any, given: list[Channels], path: str) -> list[Channels]:
        """The facts of a graph's outputs, from those of its inputs."""
        facts: dict[int, Channels] = {}
        for tensor, one in zip(model.inputs, given, strict=True):
            facts[id(tensor)] = one
        for node in nodes(model):
            taken = [facts.get(id(tensor)) for tensor in node.inputs]
            if not node.inputs or any(one is None for one in taken):
                continue  # an input, or beside the way to the outputs
            made = self._at(node, [one for one in taken if one is not None], path)
            for tensor, one in zip(node.outputs, made, strict=True):
                facts[id(tensor)] = one
        return [facts[id(tensor)] for tensor in model.outputs]

    def _at(self, node: Node, given: list[Channels], path: str) -> list[Channels]:
        operation = node.operation
        inner = f"{path}/{operation.name}".lstrip("/")
        graph = graph_of(operation)
        if graph is not None and len(given) == len(graph.inputs):
            before, trains = self._trains, bool(node.kwargs.get("training"))
            self._trains = before or trains
            made = self._nested(operation, graph, given, inner)
            self._trains = before
            return made
        place = self.places.setdefault(id(operation), Place(inner, operation))
        place.calls += 1
        place.nodes.add(id(node.outputs[0]))
        site = Site(self, place, node, given)
        found, reason = self._by_rule(site)
        if found is None:
            return site.opaque(reason)
        if self._trains or node.kwargs.get("training"):
            # Statistics of the batch, noise: bounds are those of inference.
            found = [one.bounded(*ANY) for one in found]
        return [self._clipped(one) for one in found]

    def _nested(self, model: Any, graph: Any, given: list[Channels], path: str):
        before = self.shapes.setdefault(id(model), given)
        for one, other in zip(before, given, strict=True):
            if one is not other and one.axis == other.axis and one.n == other.n:
                self.classes.join(one.ids, other.ids)
            elif one is not other:
                for facts in (one, other):
                    reason = "called on channels along different axes"
                    self.pin("", path, type(model).__name__, reason, facts.ids)
        return self._through(graph, given, path)

    def _by_rule(self, site: "Site") -> tuple[list[Channels] | None, str]:
        rule = self.rule_of(site.operation)
        if isinstance(rule, str):
            return None, rule
        if _compat.operation_name(site.operation) and len(site.place.nodes) > 1:
            return None, "an operation that is called more than once"
        made = rule(site)
        if isinstance(made, str):
            return None, made
        return (made if isinstance(made, list) else [made]), ""

    def rule_of(self, operation: Any) -> Any:
        """The rule of a layer or operation, or a text that says why it has none."""
        kind = _compat.operation_name(operation) or known_kind(operation, self.rules)
        rule = self.rules.get(kind, _no_rule(operation))
        changed = ("quantization_mode", "lora_enabled")
        if any(getattr(operation, key, None) for key in changed):
            return "quantized by Keras, or with LoRA weights"
        return rule

    def _clipped(self, facts: Channels) -> Channels:
        most = self.largest
        low = np.nan_to_num(np.clip(facts.low, -most, most), nan=-most)
        high = np.nan_to_num(np.clip(facts.high, -most, most), nan=most)
        return facts.bounded(low, high)


def consists_of_layers(layer: Any) -> bool:
    """Whether a layer is not of Keras and has no weights but those of layers inside."""
    if type(layer).__module__.startswith("keras.src.layers"):
        return False
    inner = {id(v) for sub in children(layer) for v in sub.variables}
    return all(id(v) in inner for v in layer.variables)


def _no_rule(operation: Any) -> str:
    text = f"no rule for {type(operation).__name__}"
    if isinstance(operation, keras.layers.Layer) and consists_of_layers(operation):
        text += " (surgery.opened takes it apart where its call can be traced)"
    return text


class Site:
    """One call of a layer or operation, as its rule sees it.

    Attributes:
        operation: the layer or operation.
        given: facts of the tensors it takes.
        args: what it was called with by position.
        kwargs: by name.
        taken: the symbolic tensors it takes.
        outputs: the symbolic tensors it makes.
    """

    def __init__(self, survey: Survey, place: Place, node: Node, given: list[Channels]):
        self.survey, self.place, self.given = survey, place, given
        self.operation, self.args, self.kwargs = node.operation, node.args, node.kwargs
        self.taken, self.outputs = node.inputs, node.outputs
        self._lay_masks_aside()

    def _lay_masks_aside(self) -> None:
        """What a layer is given as a mask says where it looks, and is no channel."""
        masks = {
            id(tensor)
            for name, value in self.kwargs.items()
            if name.endswith("mask") and isinstance(self.operation, keras.layers.Layer)
            for tensor in keras.tree.flatten(value)
        }
        pairs = list(zip(self.taken, self.given, strict=True))
        for tensor, facts in pairs:
            if id(tensor) in masks:
                self.pin(facts.ids, "a mask")
        kept = [pair for pair in pairs if id(pair[0]) not in masks]
        self.taken = [tensor for tensor, _ in kept]
        self.given = [facts for _, facts in kept]

    @property
    def first(self) -> Channels:
        """Channels of the first tensor."""
        return self.given[0]

    def without(self, shape: Any, axis: int) -> tuple[int | None, ...]:
        """A shape but for the batch and one axis."""
        return tuple(n for i, n in enumerate(shape) if i not in (0, axis))

    @property
    def shape(self) -> Any:
        """Of the first tensor that is made."""
        return tuple(self.outputs[0].shape)

    def pin(self, ids: np.ndarray, reason: str) -> None:
        """These channels must stay because of this layer."""
        parts = self.place.path.rpartition("/")
        kind = type(self.operation).__name__
        self.survey.pin(parts[0], parts[2], kind, reason, ids)

    def opaque(self, reason: str) -> list[Channels]:
        """Channels of the outputs where nothing is known: in and out, all must stay."""
        made = [self.survey.unknown(tensor) for tensor in self.outputs]
        ids = [one.ids for one in (*self.given, *made)]
        self.pin(np.concatenate([np.zeros(0, int), *ids]), reason)
        return made

    def along(self, axis: int, *, index: int = 0) -> Channels:
        """The facts of a tensor along an axis; pinned if its channels lie elsewhere."""
        facts, tensor = self.given[index], self.taken[index]
        if facts.axis == axis and facts.n:
            return facts
        self.pin(facts.ids, "read along another axis")
        low = facts.low.min(initial=self.survey.largest)
        high = facts.high.max(initial=-self.survey.largest)
        if not facts.n:
            low, high = high, low
        new = self.survey.unknown(tensor, axis)
        self.pin(new.ids, "read along another axis")
        return new.bounded(low, high)

    def fresh(self, count: int) -> np.ndarray:
        """New channels."""
        return self.survey.classes.fresh(count)

    def join(self, one: np.ndarray, other: np.ndarray) -> None:
        """These channels stand or fall together, position by position."""
        self.survey.classes.join(one, other)

    def weight(self, variable: Any, axis: int, ids: np.ndarray) -> None:
        """A weight of the layer has these channels along an axis; None is no weight."""
        if variable is None:
            return
        axes = self.place.weights.setdefault(id(variable), (variable, {}))[1]
        axis %= len(variable.shape)
        self.join(axes.setdefault(axis, ids), ids)

    def multiplies(self, variable: Any, shape: Any) -> None:
        """Each number of a kernel is multiplied once a place of this shape."""
        before = self.place.uses.get(id(variable), 0)
        open_ = before is None or None in shape
        total = None if open_ else before + math.prod(shape)
        self.place.uses[id(variable)] = total

    def size(
        self,
        name: str,
        ids: np.ndarray,
        write: Write | None = None,
        *,
        makes: str | None = "",
    ) -> None:
        """An argument of the layer counts these channels.

        Args:
            name: of the argument.
            ids: of the channels.
            write: sets it; by default to the number of those that stay.
            makes: what comes behind the path of the layer to name them; None if they
                are counted elsewhere.
        """

        def count(config: dict[str, Any], stays: np.ndarray) -> None:
            config[name] = int(stays.sum())

        before = self.place.sizes.setdefault(name, (ids, write or count))[0]
        self.join(before, ids)
        if makes is not None:
            self.keeps_one(ids, makes)

    def keeps_one(self, ids: np.ndarray, part: str = "") -> None:
        """Not all of these may leave."""
        self.survey.made.setdefault(f"{self.place.path}{part}", ids)

    def read(
        self,
        facts: Channels,
        out: np.ndarray,
        kernel: np.ndarray,
        *,
        bias: str | None = None,
        padded: bool = False,
    ) -> None:
        """The layer mixes channels with a kernel (taps, groups, inputs, outputs)."""
        rows = out.reshape(kernel.shape[1], kernel.shape[3])
        self.survey.reads.append(Read(self.place, facts, rows, kernel, bias, padded))
