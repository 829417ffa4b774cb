"""Rounding that lets gradients through."""

from collections.abc import Callable
from typing import Any

import keras
from keras import ops


def straight_through(function: Callable[[Any], Any], x: Any) -> Any:
    """`function(x)` forward, the identity backward.

    A custom gradient, not `x + stop_gradient(f(x) - x)`: that sum rounds, and the
    quantized value must be exact.

    Source: Bengio et al., "Estimating or Propagating Gradients Through Stochastic
    Neurons" (arXiv:1308.3432), section 4.
    """
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        # Outside of a graph a weight arrives as a variable, which a custom gradient
        # may not take; on a tensor this does nothing.
        x = tf.convert_to_tensor(x)

    @ops.custom_gradient
    def run(x):
        def grad(*args, upstream=None):
            return args[0] if upstream is None else upstream

        return function(x), grad

    return run(x)
