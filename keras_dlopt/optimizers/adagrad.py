"""Adagrad, the formulas of Keras on TensorFlow's fused kernel."""

import keras
from keras import ops

from keras_dlopt import checks
from keras_dlopt.optimizers._hyper import hyper
from keras_dlopt.optimizers.base import Optimizer


@keras.saving.register_keras_serializable("keras_dlopt")
class Adagrad(Optimizer, keras.optimizers.Adagrad):
    r"""Adagrad: the gradient over the root of the sum of all its squares.

    With gradient g:

        a <- a + g^2
        w <- w - lr g / sqrt(a + epsilon)

    Same arguments, results and state names as `keras.optimizers.Adagrad`. The fused
    kernel knows no epsilon: it serves when epsilon is at most a millionth of
    `initial_accumulator_value` (as it is by default), where leaving it out changes a
    step by less than one part in two million. State: 4 bytes a parameter.

    Args:
        learning_rate: float, schedule, or callable without arguments.
        initial_accumulator_value: starting value of the sum, not negative.
        epsilon: added under the root, in squared units of the gradient.
        **options: see `keras_dlopt.optimizers.Optimizer`.

    Raises:
        ConfigError: for a negative rate, epsilon or starting value.

    Example:
        >>> v = keras.Variable([1.0])
        >>> Adagrad(0.5, initial_accumulator_value=0.0).apply([keras.ops.ones(1)], [v])
        >>> v.numpy().round(4).tolist()
        [0.5]

    Source: Duchi et al., "Adaptive Subgradient Methods" (JMLR 2011), figure 1. Differs
    from the paper: epsilon stands under the root, as in Keras.
    """

    slot_names = ("accumulator",)
    elementwise = True
    takes_sparse = True
    couples_weights = True  # its state does not start at 0
    by_position = True

    initial_accumulator_value: float = hyper(default=0.1, check=checks.rate)
    epsilon: float = hyper(default=1e-7, check=checks.rate)

    @property
    def fusable(self) -> bool:
        return self.epsilon <= 1e-6 * self.initial_accumulator_value

    def rule(self, gradient, weight, slots, lr, step):
        total = slots["accumulator"] + ops.square(gradient)
        change = lr * gradient / ops.sqrt(total + self.epsilon)
        return change, {"accumulator": total}

    def fused(self, gradient, weight, slots, lr, step):
        import tensorflow as tf

        tf.raw_ops.ResourceApplyAdagrad(
            var=weight.handle,
            accum=slots["accumulator"].handle,
            lr=lr,
            grad=gradient,
        )
