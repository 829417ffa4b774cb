"""What a transformed model shows of the graph inside it: inputs, layers, features."""

from typing import Any

import keras

from keras_dlopt import _compat
from keras_dlopt.errors import ModelError
from keras_dlopt.graph.rebuilding import like
from keras_dlopt.graph.walk import as_functional, is_functional


class TransformedPart(keras.layers.Layer):
    """One layer of a transformed model, run with its transformed weights.

    Args:
        host: the transformed model.
        layer: one of those inside it.
    """

    def __init__(self, host: Any, layer: Any):
        super().__init__(name=layer.name, dtype="float32")
        _compat.attach(self, "host", host)
        self.layer = layer
        self.supports_masking = layer.supports_masking
        self.built = True

    def call(self, inputs, *args, training=None, **kwargs):
        def call():
            return self.layer(inputs, *args, training=training, **kwargs)

        host = _compat.attached(self, "host")
        return host.run(call, training=bool(training), part=self.layer)

    def get_config(self):
        """Refuses: the values would be saved without their transforms."""
        raise ModelError(
            f"The layer {self.name!r} is a part of a transformed model and is not "
            "saved by itself. Build the same from finalize(model), an ordinary model."
        )


class Face:
    """The graph of a Sequential or Functional model, with transformed layers.

    Args:
        host: the transformed model.
        model: the model inside it.
    """

    def __init__(self, host: Any, model: Any):
        self.parts: dict[int, TransformedPart] = {}

        def clone(layer: Any) -> Any:
            if not isinstance(layer, keras.layers.Layer):
                return like(layer)
            self.parts[id(layer)] = TransformedPart(host, layer)
            return self.parts[id(layer)]

        self.graph: Any = keras.models.clone_model(
            as_functional(model), clone_function=clone
        )

    def view(self, layer: Any) -> Any:
        """The layer itself, with its places in this graph."""
        part = self.parts.get(id(layer))
        if part is None:  # an input, which computes nothing
            part = self.graph.get_layer(layer.name)
        places = {
            "input": property(lambda _: part.input),
            "output": property(lambda _: part.output),
            "__call__": lambda _, *args, **kwargs: part(*args, **kwargs),
        }
        if is_functional(layer):
            places |= {name: property(_refuse_inside) for name in ("inputs", "outputs")}
        return _compat.seen_as(layer, places)


def _refuse_inside(nested: Any) -> Any:
    raise ModelError(
        f"The graph of {nested.name!r}, a model inside a transformed one, would run "
        "without its transforms. Take its parts from finalize(model)."
    )
