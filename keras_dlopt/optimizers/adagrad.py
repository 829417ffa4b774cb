"""Adagrad, the formulas of Keras on TensorFlow's fused kernel."""

from typing import Any

import keras
from keras import ops

from keras_dlopt.optimizers import _options
from keras_dlopt.optimizers.base import Optimizer


def adagrad_rule(
    gradient: Any, slots: dict[str, Any], *, lr: Any, epsilon: float
) -> tuple[Any, dict[str, Any]]:
    """One Adagrad step: what to subtract, and the new sum of squares."""
    total = slots["accumulator"] + ops.square(gradient)
    return lr * gradient / ops.sqrt(total + epsilon), {"accumulator": total}


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

    def __init__(
        self,
        learning_rate: Any = 0.001,
        initial_accumulator_value: float = 0.1,
        epsilon: float = 1e-7,
        **options: Any,
    ):
        _options.check_rate(initial_accumulator_value, name="initial_accumulator_value")
        _options.check_rate(epsilon, name="epsilon")
        super().__init__(
            learning_rate=learning_rate,
            initial_accumulator_value=initial_accumulator_value,
            epsilon=epsilon,
            **options,
        )

    @property
    def fusable(self) -> bool:
        return self.epsilon <= 1e-6 * self.initial_accumulator_value

    def rule(self, gradient, weight, slots, lr, step):
        return adagrad_rule(gradient, slots, lr=lr, epsilon=self.epsilon)

    def fused(self, gradient, weight, slots, lr, step):
        import tensorflow as tf

        tf.raw_ops.ResourceApplyAdagrad(
            var=weight.handle,
            accum=slots["accumulator"].handle,
            lr=lr,
            grad=gradient,
        )
