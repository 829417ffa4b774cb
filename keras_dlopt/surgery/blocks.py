"""Whole residual blocks: finding those that can leave, and taking out the weakest."""

import dataclasses
from typing import Any

import keras
import numpy as np

from keras_dlopt import _compat, checks
from keras_dlopt.errors import ConfigError
from keras_dlopt.graph import live
from keras_dlopt.graph.normalization import measure_normalization
from keras_dlopt.graph.rebuilding import Reshaped, rebuilt
from keras_dlopt.graph.symbolic import Node, functional_twin, graph_of, nodes
from keras_dlopt.transforms.batches import DrawnBatches


@dataclasses.dataclass(frozen=True)
class ResidualBlock:
    """A body with a shortcut around it that has the shape of their sum.

    Attributes:
        name: of the layer or operation that adds.
        layers: names of what the body consists of.
        influence: 1 - cos(x, x + body(x)), mean over the data: 0 if the block does
            nothing but scale.
    """

    name: str
    layers: tuple[str, ...]
    influence: float


def remove_blocks(
    model: keras.Model,
    *,
    count: int,
    data: Any,
    batches: int = 8,
    batch_size: int = 64,
    seed: int = 0,
) -> tuple[keras.Model, tuple[ResidualBlock, ...]]:
    """A shallower model without the residual blocks that change least.

    A block can leave if nothing but its sum reads its body and the shortcut passes the
    input on as it is: not where a block changes the number of channels or the size. The
    statistics of BatchNormalization are measured anew. Train the result on.

    Args:
        model: a built Sequential or Functional model; it is not changed. Blocks inside
            nested models stay.
        count: how many blocks leave.
        data: `(x, y)`, x alone or a data set of batches: what blocks change is measured
            on it.
        batches: how many batches of data are used.
        batch_size: examples a batch, for arrays.
        seed: of the draw of examples.

    Returns:
        A new model, and all blocks that could leave, those that did first.

    Raises:
        ModelError: for a model that is not built, cannot be traced or built anew.
        ConfigError: if there are fewer blocks that can leave.

    Example:
        >>> x = keras.Input((4,))
        >>> y = keras.layers.Add(name="sum")([x, keras.layers.Dense(4, name="a")(x)])
        >>> net = keras.Model(x, keras.layers.Dense(2, name="b")(y))
        >>> small, blocks = remove_blocks(net, count=1, data=np.ones((8, 4)))
        >>> blocks[0].name, blocks[0].layers, [layer.name for layer in small.layers[1:]]
        ('sum', ('a',), ['b'])

    Source: Men et al., "ShortGPT" (arXiv:2403.03853), equation 1.
    """
    checks.count(count, name="count")
    twin = functional_twin(model)
    found = _found(twin)
    if len(found) < count:
        raise ConfigError(
            f"{model.name!r} has {len(found)} residual blocks that can leave. "
            f"Received: count={count}. Lower count, or make layers smaller with "
            "prune_channels."
        )
    drawn = DrawnBatches(data, count=batches, batch_size=batch_size, seed=seed)
    inputs = [x for x, _, _ in drawn.at(0)]
    influence = _influence(twin, found, inputs)
    order = np.argsort(influence, kind="stable").tolist()
    blocks = tuple(
        ResidualBlock(found[i].name, found[i].body, float(influence[i])) for i in order
    )
    gone = [found[i] for i in order[:count]]
    source = twin if graph_of(model) is None else model
    if isinstance(source, keras.Sequential):
        source = twin
    small = rebuilt(
        source,
        {id(one.sum): list for one in gone},
        Reshaped({}, {id(one.sum): one.passed for one in gone}),
    )
    live.carry_settings(source, small)
    measure_normalization(small, inputs)
    return small, blocks


@dataclasses.dataclass(frozen=True, eq=False)
class _Found:
    """A block in the graph: what adds, its shortcut's place and tensors, its body."""

    sum: Any
    shortcut: int
    before: Any
    after: Any
    body: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.sum.name

    def passed(self, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        """Of the arguments of the sum, the shortcut alone."""
        given = keras.tree.flatten((args, kwargs))
        tensors = [x for x in given if isinstance(x, keras.KerasTensor)]
        return (tensors[self.shortcut],), {}


def _found(model: Any) -> list[_Found]:
    graph = nodes(model)
    takers: dict[int, list[Node]] = {}
    for node in graph:
        for tensor in node.inputs:
            takers.setdefault(id(tensor), []).append(node)
    kept = {id(tensor) for tensor in model.outputs}
    calls: dict[int, int] = {}
    for node in graph:
        calls[id(node.operation)] = calls.get(id(node.operation), 0) + 1
    found = []
    for node in graph:
        adds = isinstance(node.operation, keras.layers.Add)
        adds = adds or _compat.operation_name(node.operation) == "Add"
        if not adds or len(node.inputs) != 2 or calls[id(node.operation)] > 1:
            continue
        for place in (0, 1):
            short, end = node.inputs[place], node.inputs[1 - place]
            body = _body(short, end, graph)
            if short.shape != node.outputs[0].shape or not body:
                continue
            inside = {id(one) for one in body} | {id(node)}
            made = [t for one in body for t in one.outputs]
            if all(
                id(t) not in kept
                and all(id(taker) in inside for taker in takers.get(id(t), ()))
                for t in made
            ):
                names = tuple(one.operation.name for one in body)
                out = node.outputs[0]
                found.append(_Found(node.operation, place, short, out, names))
    return found


def _body(start: Any, end: Any, graph: list[Node]) -> list[Node]:
    """The nodes between two tensors, in the order of the graph; empty if none are."""
    after, before = {id(start)}, {id(end)}
    for node in graph:
        if any(id(tensor) in after for tensor in node.inputs):
            after.update(map(id, node.outputs))
    for node in reversed(graph):
        if any(id(tensor) in before for tensor in node.outputs):
            before.update(map(id, node.inputs))
    return [
        node
        for node in graph
        if any(id(tensor) in after for tensor in node.inputs)
        and any(id(tensor) in before for tensor in node.outputs)
    ]


def _influence(model: Any, found: list[_Found], inputs: list[Any]) -> np.ndarray:
    """1 - cos of what comes in and what comes out, mean over channels' vectors."""
    ends = [tensor for one in found for tensor in (one.before, one.after)]
    probe = keras.Model(model.input, ends)
    total = np.zeros(len(found))
    for batch in inputs:
        values = [
            np.asarray(keras.ops.convert_to_numpy(v), "float64")
            for v in probe(batch, training=False)
        ]
        for i in range(len(found)):
            x, y = (v.reshape(-1, v.shape[-1]) for v in values[2 * i : 2 * i + 2])
            norms = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
            cosine = (x * y).sum(axis=1) / np.where(norms > 0, norms, 1.0)
            total[i] += 1 - np.where(norms > 0, cosine, 1.0).mean()
    return total / max(len(inputs), 1)
