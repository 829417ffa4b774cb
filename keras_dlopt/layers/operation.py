"""An operation of `keras.ops` as a layer."""

from typing import Any

import keras

_TENSOR = "<tensor>"


@keras.saving.register_keras_serializable("keras_dlopt")
class OperationLayer(keras.layers.Layer):
    """Runs what a Functional model computes between its layers, as a layer of its own.

    Quantizers sit at layers, and so does all that is chosen by path.

    Args:
        operation: a `keras.Operation`, such as the one behind `keras.ops.mean`.
        arguments: [args, kwargs] of its call, `"<tensor>"` for each tensor; see `of`.
        **kwargs: of `keras.layers.Layer`.

    Example:
        >>> x = keras.Input((4, 3))
        >>> node = (x[:, 1:3])._keras_history.operation
        >>> layer = OperationLayer.of(node, (x, (slice(None), slice(1, 3))), {})
        >>> layer(np.ones((2, 4, 3), "float32")).shape
        TensorShape([2, 2, 3])
    """

    def __init__(self, operation: Any, arguments: Any, **kwargs: Any):
        super().__init__(**kwargs)
        self.operation = operation
        self._arguments = arguments
        # A mask is not for what comes after: operations let none pass.
        self.supports_masking = True
        self.built = True

    @classmethod
    def of(
        cls, operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any], **more: Any
    ) -> "OperationLayer":
        """The layer that calls an operation as these arguments do.

        Args:
            operation: a `keras.Operation`.
            args: by position, of one call; its symbolic tensors become the inputs.
            kwargs: by name.
            **more: of `keras.layers.Layer`.
        """
        template = keras.tree.map_structure(
            lambda a: _TENSOR if isinstance(a, keras.KerasTensor) else a,
            [list(args), dict(kwargs)],
        )
        return cls(operation, template, **more)

    def call(self, inputs):
        given = iter(keras.tree.flatten(inputs))
        args, kwargs = keras.tree.map_structure(
            lambda a: next(given) if isinstance(a, str) and a == _TENSOR else a,
            self._arguments,
        )
        return self.operation(*args, **kwargs)

    def compute_mask(self, inputs, previous_mask=None):
        return None

    def get_config(self):
        serialize = keras.saving.serialize_keras_object
        return {
            **super().get_config(),
            "operation": serialize(self.operation),
            "arguments": serialize(self._arguments),
        }

    @classmethod
    def from_config(cls, config):
        """The layer that `get_config` describes."""
        known = {
            name: keras.saving.deserialize_keras_object(config[name])
            for name in ("operation", "arguments")
        }
        return cls(**{**config, **known})
