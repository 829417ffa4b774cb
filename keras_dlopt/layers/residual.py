"""Residual: any layers, plus a shortcut around them."""

from collections.abc import Sequence
from typing import Any, ClassVar

import keras
from keras import ops

from keras_dlopt import checks
from keras_dlopt.config import Configured
from keras_dlopt.errors import ConfigError
from keras_dlopt.layers import _shared
from keras_dlopt.layers.scale import LayerScale, ReZero
from keras_dlopt.layers.shortcut import infer_strides, projection, subsample_and_pad
from keras_dlopt.layers.stochastic_depth import StochasticDepth

SHORTCUTS = ("auto", "identity", "projection", "pad")
SCALES = (None, "layerscale", "rezero")
DISTANCES = ("mse", "cosine")


@keras.saving.register_keras_serializable("keras_dlopt")
class Residual(Configured, keras.layers.Layer):
    r"""Adds a shortcut around a layer or a list of layers.

        y = activation(drop(scale(body(x))) + shortcut(x))

    With `shortcut_loss = lambda` the term that balances body and shortcut enters the
    model's loss, in training and in evaluation, as regularizers do:

        L_total = L_original + lambda * L_shortcut
        L_shortcut = mean((body(x) - shortcut(x))^2)                   for "mse"
        L_shortcut = mean over examples of 1 - cos(body(x), shortcut(x))   for "cosine"

    where `body(x)` is taken before scale and drop. On the TensorFlow backend
    L_shortcut (without lambda) is a metric as well, named `<layer>_shortcut_loss`; on
    JAX it is not, since Keras drops there what a layer writes to a metric.

    Args:
        body: a layer or a list of layers, applied one after the other.
        shortcut: `"identity"`; `"projection"` (a 1x1 convolution, or a dense layer for
            vectors, without bias); `"pad"` (every stride-th position, and zeros for
            the channels that are missing); `"auto"`, which takes the identity where
            shapes are equal and a projection where they are not. The strides follow
            from the body's shapes.
        survival: probability that an example keeps its body in a training step; see
            `StochasticDepth`.
        scale: None, `"layerscale"` (a factor per channel, 1e-6 at first) or `"rezero"`
            (one factor, 0 at first), on the body.
        shortcut_loss: lambda, dimensionless; 0 adds no term.
        distance: `"mse"` or `"cosine"`.
        activation: applied to the sum; None for none.
        data_format: `"channels_last"` or `"channels_first"`; None is Keras' global one.
        seed: of stochastic depth.
        **kwargs: of `keras.layers.Layer`.

    Attributes:
        body: the layers of the body, in order.
        projection: the layers of a projecting shortcut; empty for other shortcuts.
        pad: `(strides, zero channels)` of a padding shortcut, or None.
        adds: whether there is a shortcut; `InvertedResidualBlock` may have none.

    Raises:
        ConfigError: for unknown arguments, or a body and a shortcut that cannot be
            added (when it is built).

    Example:
        >>> block = Residual(keras.layers.Dense(2, kernel_initializer="zeros"))
        >>> block(np.ones((1, 2), "float32")).numpy().tolist()
        [[1.0, 1.0]]

    Source: He et al., "Deep residual learning for image recognition"
    (arXiv:1512.03385), equations 1 and 2.
    """

    encoders: ClassVar = {
        "activation": keras.activations.serialize,
        "body": keras.saving.serialize_keras_object,
    }
    # Blocks whose papers leave the shortcut out where shapes differ say so here.
    _shortcut_may_be_absent = False

    def __init__(
        self,
        body: keras.layers.Layer | Sequence[keras.layers.Layer],
        *,
        shortcut: str = "auto",
        survival: float = 1.0,
        scale: str | None = None,
        shortcut_loss: float = 0.0,
        distance: str = "mse",
        activation: Any = None,
        data_format: str | None = None,
        seed: int | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        owner = self.name
        self.body = _as_layers(body, owner)
        self.shortcut = checks.choice(
            shortcut, name=f"{owner}: shortcut", choices=SHORTCUTS
        )
        self.survival = _shared.survival(owner, survival)
        self.scale = checks.choice(scale, name=f"{owner}: scale", choices=SCALES)
        self.shortcut_loss = checks.number(
            shortcut_loss,
            name=f"{owner}: shortcut_loss",
            least=0,
            hint="It multiplies the distance of body and shortcut.",
        )
        self.distance = checks.choice(
            distance, name=f"{owner}: distance", choices=DISTANCES
        )
        self.activation = keras.activations.get(activation)
        self.data_format = _shared.data_format(self.name, data_format)
        self.seed = checks.optional(checks.seed, seed, name=f"{owner}: seed")
        self.projection: list[keras.layers.Layer] = []
        self.adds = True
        self.pad: tuple[tuple[int, ...], int] | None = None
        self.scaler = self._make_scaler()
        self.drop = None
        if self.survival < 1.0:
            self.drop = StochasticDepth(
                self.survival, seed=seed, dtype=self.policy, name="drop"
            )
        self.loss_tracker = None
        if self.shortcut_loss and keras.backend.backend() != "jax":
            self.loss_tracker = keras.metrics.Mean(name=f"{self.name}_shortcut_loss")

    @property
    def policy(self) -> keras.DTypePolicy:
        """The dtype policy, handed to the layers made here."""
        return self.dtype_policy

    def _make_scaler(self) -> keras.layers.Layer | None:
        if self.scale == "layerscale":
            return LayerScale(
                data_format=self.data_format, dtype=self.policy, name="scale"
            )
        if self.scale == "rezero":
            return ReZero(dtype=self.policy, name="scale")
        return None

    def _make_projection(
        self, rank: int, channels: int, strides: tuple[int, ...]
    ) -> list[keras.layers.Layer]:
        """The layers of a projecting shortcut; blocks add a normalization."""
        return [
            projection(
                rank,
                channels,
                strides=strides,
                data_format=self.data_format,
                dtype=self.policy,
            )
        ]

    def build(self, input_shape=None):
        shape = tuple(input_shape)
        out = _build_chain(self.body, shape, self.compute_dtype)
        chosen = self.shortcut
        if chosen == "auto":
            chosen = "identity" if out == shape else "projection"
            if out != shape and self._shortcut_may_be_absent:
                self.adds = False
                return
        short = shape
        if chosen != "identity":
            short = self._build_shortcut(chosen, shape, out)
        if not _shared.addable(out, short):
            raise ConfigError(
                f"{self.name}: the body gives shape {out} and the {chosen} shortcut "
                f"{short}, from an input of {shape}. Make the body keep its input's "
                "shape, divide the positions by a whole stride, or use shortcut='auto' "
                "or 'projection'."
            )
        for layer in (self.scaler, self.drop):
            if layer is not None:
                layer.build(out)

    def _build_shortcut(self, chosen: str, shape, out) -> tuple:
        """Makes the projection or the padding; returns the shortcut's output shape."""
        axis = _shared.channel_axis(self.data_format) if len(shape) > 2 else -1
        strides = infer_strides(self.body, shape, out, axis)
        if strides is None or len(shape) < 2 or out[axis] is None:
            return shape
        if chosen == "projection":
            if not self.projection:
                self.projection = self._make_projection(len(shape), out[axis], strides)
            return _build_chain(self.projection, shape, self.compute_dtype)
        extra = out[axis] - shape[axis]
        if extra < 0:
            raise ConfigError(
                f"{self.name}: a pad shortcut cannot drop channels: the input has "
                f"shape {shape} and the body gives {out}. Use shortcut='projection'."
            )
        self.pad = (strides, extra)
        return out

    def _short(self, inputs):
        for layer in self.projection:
            inputs = layer(inputs)
        if self.pad is not None:
            strides, extra = self.pad
            inputs = subsample_and_pad(inputs, strides, extra, self.data_format)
        return inputs

    def call(self, inputs, training=None):
        outputs = inputs
        for layer in self.body:
            outputs = layer(outputs)
        if not self.adds:
            return self.activation(outputs)
        short = self._short(inputs)
        if self.shortcut_loss:
            term = shortcut_distance(outputs, short, distance=self.distance)
            if self.loss_tracker is not None:
                self.loss_tracker.update_state(term)
            self.add_loss(self.shortcut_loss * term)
        for layer in (self.scaler, self.drop):
            if layer is not None:
                outputs = layer(outputs)
        return self.activation(outputs + short)

    def compute_output_shape(self, input_shape):
        for layer in self.body:
            input_shape = layer.compute_output_shape(input_shape)
        return tuple(input_shape)


def shortcut_distance(body, short, *, distance: str):
    """Distance of two tensors of equal shape, a float32 scalar.

    Args:
        body: the body's output, first axis the example.
        short: the shortcut's output.
        distance: `"mse"`, the mean squared difference over all elements, or
            `"cosine"`, one minus the cosine of the flattened examples, on average.
    """
    body, short = ops.cast(body, "float32"), ops.cast(short, "float32")
    if distance == "mse":
        return ops.mean(ops.square(body - short))
    axes = tuple(range(1, len(body.shape)))
    dot = ops.sum(body * short, axis=axes)
    norms = ops.sum(body * body, axis=axes) * ops.sum(short * short, axis=axes)
    # Squared norms and 1e-12 keep the gradient finite where a branch is all zeros.
    return ops.mean(1.0 - dot * ops.rsqrt(norms + 1e-12))


def _as_layers(body, owner: str) -> list[keras.layers.Layer]:
    layers = [body] if isinstance(body, keras.layers.Layer) else body
    if not isinstance(layers, Sequence) or not layers:
        raise ConfigError(
            f"{owner}: body must be a Keras layer or a list of layers. Received: "
            f"{body!r}."
        )
    for layer in layers:
        if not isinstance(layer, keras.layers.Layer):
            raise ConfigError(
                f"{owner}: body must hold Keras layers. Received: {layer!r}. Wrap a "
                "function in keras.layers.Lambda or write it as a layer."
            )
    return list(layers)


def _build_chain(layers, shape: tuple, dtype: str) -> tuple:
    """Builds layers one on the other by a symbolic call; returns the last shape."""
    x = keras.KerasTensor(shape, dtype=dtype)
    for layer in layers:
        x = layer(x)
    return tuple(x.shape)
