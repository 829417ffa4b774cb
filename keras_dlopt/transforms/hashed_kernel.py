"""The layer that stores the buckets of a hashed kernel and nothing else of it."""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_dlopt.errors import ConfigError
from keras_dlopt.graph.kinds import PRODUCTS
from keras_dlopt.transforms.lookup import lookup
from keras_dlopt.transforms.share import hashed

KINDS = tuple(kind.__name__ for kind in PRODUCTS)
OPTIONS = ("strides", "padding", "dilation_rate", "data_format")


@keras.saving.register_keras_serializable("keras_dlopt")
class HashedKernel(keras.layers.Layer):
    """A dense or convolution layer whose kernel is few numbers and a hash.

    The hash follows from the kernel's shape and the seed, so a file holds the buckets
    and the bias only. `hashed_layers` makes these out of a trained model.

    Args:
        kind: `"Dense"`, `"Conv1D"`, `"Conv2D"` or `"Conv3D"`.
        size: units or filters.
        buckets: how many numbers.
        kernel_size: of a convolution.
        options: of a convolution: strides, padding, dilation_rate, data_format.
        activation: its name, or None.
        use_bias: whether there is a bias.
        signs: whether the hash changes signs.
        seed: of the hash.

    Raises:
        ConfigError: for another kind.

    Example:
        >>> layer = HashedKernel("Dense", 4, buckets=3)
        >>> layer(np.ones((2, 5), "float32")).shape, layer.count_params()
        (TensorShape([2, 4]), 7)
    """

    def __init__(
        self,
        kind: str,
        size: int,
        *,
        buckets: int,
        kernel_size: tuple[int, ...] = (),
        options: dict[str, Any] | None = None,
        activation: str | None = None,
        use_bias: bool = True,
        signs: bool = True,
        seed: int = 0,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        if kind not in KINDS:
            raise ConfigError(f"kind must be one of {KINDS}. Received: {kind!r}.")
        self.kind, self.size, self.count = kind, size, buckets
        self.kernel_size = tuple(kernel_size)
        self.options = {k: v for k, v in (options or {}).items() if k in OPTIONS}
        self.activation = keras.activations.get(activation)
        self.use_bias, self.signs, self.seed = use_bias, signs, seed

    def build(self, input_shape=None):
        first = self.options.get("data_format") == "channels_first"
        channels = input_shape[1 if first else -1]
        self.kernel_shape = (*self.kernel_size, channels, self.size)
        index = hashed(self.kernel_shape, self.count, seed=self.seed)
        self._index = index if self.signs else index % self.count
        # With about this deviation a kernel starts as a Glorot-uniform one does.
        limit = float(np.sqrt(6 / (np.prod(self.kernel_shape[:-1]) + self.size)))
        self.buckets = self.add_weight(
            name="buckets",
            shape=(self.count,),
            initializer=keras.initializers.RandomUniform(-limit, limit),
        )
        self.bias = None
        if self.use_bias:
            self.bias = self.add_weight(
                name="bias", shape=(self.size,), initializer="zeros"
            )
        self.built = True

    def kernel(self) -> Any:
        """The kernel as a tensor."""
        buckets = ops.convert_to_tensor(self.buckets)
        table = ops.concatenate([buckets, -buckets]) if self.signs else buckets
        zeros = ops.zeros(self.kernel_shape, table.dtype)
        return lookup(zeros, table, ops.convert_to_tensor(self._index))

    def call(self, inputs):
        if self.kind == "Dense":
            outputs = ops.matmul(inputs, self.kernel())
        else:
            outputs = ops.conv(inputs, self.kernel(), **self._options())
        if self.bias is not None:
            bias = ops.convert_to_tensor(self.bias)
            if self.options.get("data_format") == "channels_first":
                bias = ops.reshape(bias, (-1, *(1,) * len(self.kernel_size)))
            outputs = ops.add(outputs, bias)
        return self.activation(outputs)

    def _options(self) -> dict[str, Any]:
        return {
            k: list(v) if isinstance(v, list | tuple) else v
            for k, v in self.options.items()
        }

    def compute_output_shape(self, input_shape):
        if self.kind == "Dense":
            return (*input_shape[:-1], self.size)
        twin = getattr(keras.layers, self.kind)(
            self.size, self.kernel_size, **self._options()
        )
        return twin.compute_output_shape(input_shape)

    def get_config(self) -> dict[str, Any]:
        """Keras' own entries and the constructor's arguments."""
        return {
            **super().get_config(),
            "kind": self.kind,
            "size": self.size,
            "buckets": self.count,
            "kernel_size": list(self.kernel_size),
            "options": self._options(),
            "activation": keras.activations.serialize(self.activation),
            "use_bias": self.use_bias,
            "signs": self.signs,
            "seed": self.seed,
        }
