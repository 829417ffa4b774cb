"""The nodes of a Functional model's graph, with all that each call was given."""

from collections.abc import Iterator
from typing import Any

import keras
from keras.src.applications.convnext import LayerScale
from keras.src.applications.inception_resnet_v2 import CustomScaleLayer

#: Of Inception-ResNet: `inputs[0] + inputs[1] * scale`, a plain number.
ScaledSum = CustomScaleLayer
#: Of ConvNeXt: `inputs * gamma`, of `projection_dim` numbers.
FactorByChannel = LayerScale
NodeParts = tuple[Any, tuple[Any, ...], dict[str, Any], list[Any], list[Any]]


def graph_nodes(model: Any) -> Iterator[NodeParts]:
    """Yields (operation, args, kwargs, tensors taken, tensors made), makers first.

    Relies on: `Function._nodes_by_depth`, depth counted from the outputs, and the
    `operation`, `arguments`, `outputs` and `is_input` of its nodes.
    """
    for depth in sorted(model._nodes_by_depth, reverse=True):
        for node in model._nodes_by_depth[depth]:
            given = node.arguments
            taken = list(given.keras_tensors)
            yield node.operation, given.args, given.kwargs, taken, list(node.outputs)


def operation_name(operation: Any) -> str | None:
    """The class name of an operation of `keras.ops`; None for anything else.

    Relies on: these classes live below `keras.src.ops`.
    """
    kind = type(operation)
    own = kind.__module__.startswith("keras.src.ops.")
    return kind.__name__ if own and isinstance(operation, keras.Operation) else None
