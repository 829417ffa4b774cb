"""Stochastic depth: whole bodies of residual blocks dropped at random."""

import keras
from keras import ops

from keras_dlopt import checks
from keras_dlopt.config import Configured
from keras_dlopt.layers import _shared


@keras.saving.register_keras_serializable("keras_dlopt")
class StochasticDepth(Configured, keras.layers.Layer):
    """Zeroes whole examples at random in training, and keeps the mean.

        y = x * b / survival,  b ~ Bernoulli(survival) once per example
        y = x                  outside training

    Args:
        survival: probability that an example is kept, in (0, 1].
        seed: of the draws.
        **kwargs: of `keras.layers.Layer`.

    Raises:
        ConfigError: for a survival outside (0, 1].

    Example:
        >>> drop = StochasticDepth(0.5, seed=1)
        >>> drop(np.ones((2, 3), "float32"), training=False).numpy().tolist()
        [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]

    Source: Huang et al., "Deep networks with stochastic depth" (arXiv:1603.09382),
    section 3.
    Differs from the paper: one draw per example, not per batch, and the division by
    `survival` in training, not the product at test time. The expectations are equal.
    """

    def __init__(self, survival: float = 0.8, *, seed: int | None = None, **kwargs):
        super().__init__(**kwargs)
        self.survival = _shared.survival(self.name, survival)
        self.seed = checks.optional(checks.seed, seed, name=f"{self.name}: seed")
        self.seed_generator = keras.random.SeedGenerator(self.seed)
        self.built = True

    def call(self, inputs, training=False):
        if not training or self.survival == 1.0:
            return inputs
        shape = (ops.shape(inputs)[0],) + (1,) * (len(inputs.shape) - 1)
        draw = keras.random.uniform(shape, dtype="float32", seed=self.seed_generator)
        kept = ops.cast(draw < self.survival, inputs.dtype)
        return inputs * kept / ops.cast(self.survival, inputs.dtype)

    def compute_output_shape(self, input_shape):
        return input_shape
