"""Which layer runs: to name the one whose operation fails, and to see its shapes."""

import math
import re
from typing import Any

import keras

from keras_dlopt.graph import hooks
from keras_dlopt.graph.channels import is_depthwise, output_axes
from keras_dlopt.graph.targets import Target
from keras_dlopt.graph.walk import children, own_weights
from keras_dlopt.tpu.padding import Product


class Watched:
    """Hooks the `call` of every layer below a model, in a process of its own.

    Attributes:
        failed: path of the innermost layer whose `call` raised, if one did.
        shapes: path of each layer -> shape of its (first) output.
        layers: path -> layer.
    """

    def __init__(self, model: keras.Model):
        self.failed = ""
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.layers: dict[str, Any] = {}
        self._walk(model, "")
        for path, layer in self.layers.items():
            hooks.attach(layer, self._hook(path))

    def _walk(self, layer: Any, path: str) -> None:
        for child in children(layer):
            below = f"{path}/{child.name}".lstrip("/")
            if not any(child is known for known in self.layers.values()):
                self.layers[below] = child
                self._walk(child, below)

    def _hook(self, path: str) -> hooks.Hook:
        def watched(call, given):
            try:
                outputs = call(given)
            except Exception:
                self.failed = self.failed or path
                raise
            first = keras.tree.flatten(outputs)[:1]
            if first and hasattr(first[0], "shape"):
                self.shapes[path] = tuple(n or 1 for n in first[0].shape)
            return outputs

        return watched

    def path_in(self, name: str) -> str:
        """The deepest layer that a compiler's name for an operation mentions."""
        parts = re.split(r"[/()\s]+", name)
        best, depth = "", 0
        for path in self.layers:
            last = path.rsplit("/", 1)[-1]
            # Keras makes scope names unique with a number: "conv", "conv_1".
            hits = [i for i, p in enumerate(parts) if re.sub(r"_\d+$", "", p) == last]
            hits += [i for i, p in enumerate(parts) if p == last]
            if hits and max(hits) >= depth:
                best, depth = path, max(hits)
        return best

    def products(self) -> list[Product]:
        """The matrix products of the layers that ran."""
        return [
            product
            for path, layer in self.layers.items()
            if path in self.shapes
            for product in _products(path, layer, self.shapes[path])
        ]


def _products(path: str, layer: Any, output: tuple[int, ...]) -> list[Product]:
    found = []
    for variable in own_weights(layer):
        target = Target(variable.name, variable=variable, layer=layer)
        shape = tuple(variable.shape)
        if not variable.name.endswith("kernel") or len(shape) < 2:
            continue
        if is_depthwise(target):
            continue  # no matrix product: the vector unit does it
        outputs = math.prod(shape[a] for a in output_axes(target, len(shape)))
        inputs = math.prod(shape) // outputs
        places = max(1, math.prod(output[1:]) // max(outputs, 1))
        found.append(Product(path, inputs, outputs, 2.0 * inputs * outputs * places))
    return found
