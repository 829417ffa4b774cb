"""Residual blocks without convolutions: perceptron and transformer."""

import keras

from keras_dlopt import checks
from keras_dlopt.config import Configured
from keras_dlopt.errors import ConfigError
from keras_dlopt.layers import _shared
from keras_dlopt.layers._shared import counts
from keras_dlopt.layers.blocks import dropouts
from keras_dlopt.layers.residual import Residual


@keras.saving.register_keras_serializable("keras_dlopt")
class ResidualMLPBlock(Residual):
    """Two dense layers around an activation, and a shortcut.

        y = W2 act(W1 layer_norm(x) + b1) + b2 + x

    Args:
        units: width of the input and of the output.
        hidden: width inside; None means 4 * `units`.
        inner: activation inside.
        normalize: normalize the input first.
        dropout: rate after the activation, in [0, 1).
        zero_init: start W2 at 0, so that the block starts as its shortcut.
        **kwargs: of `Residual`.

    Raises:
        ConfigError: for counts below 1, a dropout outside [0, 1), and as `Residual`
            does.

    Example:
        >>> ResidualMLPBlock(2)(np.ones((1, 2), "float32")).numpy().tolist()
        [[1.0, 1.0]]

    Source: He et al., "Identity mappings in deep residual networks"
    (arXiv:1603.05027), with dense layers.
    """

    def __init__(
        self,
        units: int,
        *,
        hidden: int | None = None,
        inner: str = "gelu",
        normalize: bool = True,
        dropout: float = 0.0,
        zero_init: bool = True,
        **kwargs,
    ):
        owner = kwargs.get("name") or type(self).__name__
        (units,) = counts(owner, units=units)
        width = 4 * units if hidden is None else hidden
        (width,) = counts(owner, hidden=width)
        dropout = checks.decay(dropout, name=f"{owner}: dropout")
        dtype = kwargs.get("dtype")
        body: list[keras.layers.Layer] = []
        if normalize:
            norm = keras.layers.LayerNormalization(
                epsilon=1e-6, dtype=dtype, name="norm"
            )
            body.append(norm)
        body += [
            keras.layers.Dense(width, activation=inner, dtype=dtype, name="expand"),
            *dropouts(owner, dropout, dtype),
            keras.layers.Dense(
                units,
                kernel_initializer="zeros" if zero_init else "glorot_uniform",
                dtype=dtype,
                name="project",
            ),
        ]
        super().__init__(body, **kwargs)
        self.units, self.hidden = units, None if hidden is None else width
        self.inner = inner
        self.normalize, self.dropout = normalize, dropout
        self.zero_init = zero_init


@keras.saving.register_keras_serializable("keras_dlopt")
class SelfAttention(Configured, keras.layers.Layer):
    """Multi-head attention of a sequence to itself, as a layer of one input.

    Args:
        units: width of the sequence, a multiple of `heads`.
        heads: number of heads, each of width `units / heads`.
        dropout: rate on the attention weights, in [0, 1).
        causal: let each position see only itself and those before.
        **kwargs: of `keras.layers.Layer`.

    Raises:
        ConfigError: for counts below 1, units that heads do not divide, or a dropout
            outside [0, 1).

    Example:
        >>> SelfAttention(8, heads=2)(np.ones((1, 5, 8), "float32")).shape
        TensorShape([1, 5, 8])

    Source: Vaswani et al., "Attention is all you need" (arXiv:1706.03762), section
    3.2.2; computed by `keras.layers.MultiHeadAttention`.
    """

    def __init__(
        self,
        units: int,
        *,
        heads: int = 4,
        dropout: float = 0.0,
        causal: bool = False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        units, heads = counts(self.name, units=units, heads=heads)
        if units % heads:
            raise ConfigError(
                f"{self.name}: heads must divide units. Received: units={units} and "
                f"heads={heads}."
            )
        self.units, self.heads = units, heads
        self.dropout = checks.decay(dropout, name=f"{self.name}: dropout")
        self.causal = causal
        self.attention = keras.layers.MultiHeadAttention(
            heads,
            units // heads,
            dropout=dropout,
            dtype=self.dtype_policy,
            name="attention",
        )

    def build(self, input_shape=None):
        self.attention.build(input_shape, input_shape)

    def call(self, inputs, training=None):
        return self.attention(
            inputs, inputs, use_causal_mask=self.causal, training=training
        )

    def compute_output_shape(self, input_shape):
        return input_shape


@keras.saving.register_keras_serializable("keras_dlopt")
class TransformerBlock(Configured, keras.layers.Layer):
    """Self-attention and a perceptron, each with its shortcut.

        pre:   x <- x + attention(norm(x));   y = x + mlp(norm(x))
        post:  x <- norm(x + attention(x));   y = norm(x + mlp(x))

    Args:
        units: width of the sequence, a multiple of `heads`.
        heads: of the attention.
        hidden: width inside the perceptron; None means 4 * `units`.
        norm: `"pre"`, which trains deep stacks without warm-up, or `"post"`.
        dropout: rate on attention weights and inside the perceptron, in [0, 1).
        survival: probability that an example keeps a branch; see `StochasticDepth`.
        scale: on both branches; see `Residual`.
        causal: let each position see only itself and those before.
        seed: of stochastic depth.
        **kwargs: of `keras.layers.Layer`.

    Raises:
        ConfigError: for unknown or impossible arguments.

    Example:
        >>> TransformerBlock(8, heads=2)(np.ones((1, 5, 8), "float32")).shape
        TensorShape([1, 5, 8])

    Source: Vaswani et al. (arXiv:1706.03762), section 3.1; pre-norm from Xiong et al.
    (arXiv:2002.04745), figure 1.
    """

    def __init__(
        self,
        units: int,
        *,
        heads: int = 4,
        hidden: int | None = None,
        norm: str = "pre",
        dropout: float = 0.0,
        survival: float = 1.0,
        scale: str | None = None,
        causal: bool = False,
        seed: int | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        owner = self.name
        units, heads = counts(owner, units=units, heads=heads)
        hidden = checks.optional(checks.count, hidden, name=f"{owner}: hidden")
        norm = checks.choice(norm, name=f"{owner}: norm", choices=("pre", "post"))
        dropout = checks.decay(dropout, name=f"{owner}: dropout")
        survival = _shared.survival(owner, survival)
        seed = checks.optional(checks.seed, seed, name=f"{owner}: seed")
        self.units, self.heads, self.hidden = units, heads, hidden
        self.norm, self.dropout = norm, dropout
        self.survival, self.scale = survival, scale
        self.causal, self.seed = causal, seed
        policy = self.dtype_policy
        common = {"survival": survival, "scale": scale, "dtype": policy}
        attention = SelfAttention(
            units,
            heads=heads,
            dropout=dropout,
            causal=causal,
            dtype=policy,
            name="self_attention",
        )
        pre = [self._normalization("attention_norm")] if norm == "pre" else []
        self.attention = Residual(
            [*pre, attention], seed=seed, name="attention", **common
        )
        self.mlp = ResidualMLPBlock(
            units,
            hidden=hidden,
            normalize=norm == "pre",
            dropout=dropout,
            zero_init=False,
            seed=None if seed is None else seed + 1,
            name="mlp",
            **common,
        )
        self.norms: list[keras.layers.Layer] = []
        if norm == "post":
            self.norms = [
                self._normalization("attention_norm"),
                self._normalization("mlp_norm"),
            ]

    def _normalization(self, name: str) -> keras.layers.Layer:
        return keras.layers.LayerNormalization(
            epsilon=1e-6, dtype=self.dtype_policy, name=name
        )

    def build(self, input_shape=None):
        if input_shape[-1] != self.units:
            raise ConfigError(
                f"{self.name}: units must be the width of the input. Received: "
                f"units={self.units} and an input of shape {tuple(input_shape)}."
            )
        for layer in (self.attention, self.mlp, *self.norms):
            layer.build(input_shape)

    def call(self, inputs, training=None):
        x = inputs
        for i, branch in enumerate((self.attention, self.mlp)):
            x = branch(x, training=training)
            if self.norms:
                x = self.norms[i](x)
        return x

    def compute_output_shape(self, input_shape):
        return input_shape
