"""What a model costs with some of its channels gone, without building it."""

import math
from typing import Any

import numpy as np

from keras_dlopt.surgery.dependencies import Dependencies


class Sizes:
    """Parameters, bytes and multiply-accumulates as functions of what leaves.

    Args:
        found: the dependencies of a model.
    """

    def __init__(self, found: Dependencies):
        self._found = found
        held: dict[int, list[tuple[int, np.ndarray]]] = {}
        self._uses: dict[int, int | None] = {}
        self._products: list[tuple[np.ndarray, int]] = []
        self.open: list[str] = []  # layers whose places the model leaves open
        for place in found.survey.places.values():
            for key, (_, axes) in place.weights.items():
                held[key] = [(a, found.labels[ids]) for a, ids in axes.items()]
            self._products += [(found.labels[i], n) for i, n in place.products]
            for key, uses in place.uses.items():
                self._uses[key] = uses
                if uses is None:
                    self.open.append(place.path)
        variables = {id(v): v for v in found.survey.model.weights}
        self._variables = [(v, held.get(key, [])) for key, v in variables.items()]

    def _elements(self, gone: np.ndarray | None) -> list[tuple[Any, int]]:
        counted = []
        for variable, axes in self._variables:
            shape = list(variable.shape)
            for axis, labels in axes:
                if gone is not None:
                    shape[axis] = int(len(labels) - gone[labels].sum())
            counted.append((variable, math.prod(shape)))
        return counted

    def parameters(self, gone: np.ndarray | None = None) -> int:
        """Elements of all weights."""
        return sum(n for _, n in self._elements(gone))

    def bytes(self, gone: np.ndarray | None = None) -> int:
        """Bytes of all weights in memory, as `report.measure` counts them."""
        return sum(
            n * np.dtype(_numpy_name(v.dtype)).itemsize for v, n in self._elements(gone)
        )

    def macs(self, gone: np.ndarray | None = None) -> int:
        """Multiply-accumulates of the layers that have a rule, for one example."""
        total = sum(n * (self._uses.get(id(v)) or 0) for v, n in self._elements(gone))
        for labels, each in self._products:
            left = len(labels) if gone is None else len(labels) - gone[labels].sum()
            total += each * int(left)
        return total


def _numpy_name(dtype: str) -> str:
    return "uint16" if dtype == "bfloat16" else dtype
