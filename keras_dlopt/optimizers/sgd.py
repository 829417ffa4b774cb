"""Stochastic gradient descent, the formulas of Keras on TensorFlow's fused kernels."""

from typing import Any

import keras

from keras_dlopt import checks
from keras_dlopt.optimizers import _options
from keras_dlopt.optimizers._hyper import hyper
from keras_dlopt.optimizers.base import Optimizer


def sgd_rule(
    gradient: Any, slots: dict[str, Any], *, lr: Any, momentum: float, nesterov: bool
) -> tuple[Any, dict[str, Any]]:
    """One step of gradient descent: what to subtract, and the new momentum."""
    if not slots:
        return lr * gradient, {}
    m = slots["momentum"] * momentum - gradient * lr
    change = gradient * lr - m * momentum if nesterov else -m
    return change, {"momentum": m}


def sgd_kernel(
    gradient: Any, weight: Any, slots: Any, *, lr: Any, momentum: Any, nesterov: bool
) -> None:
    """The same as one TensorFlow kernel on variables."""
    import tensorflow as tf

    if not slots:
        tf.raw_ops.ResourceApplyGradientDescent(
            var=weight.handle, alpha=lr, delta=gradient
        )
        return
    tf.raw_ops.ResourceApplyKerasMomentum(
        var=weight.handle,
        accum=slots["momentum"].handle,
        lr=lr,
        grad=gradient,
        momentum=tf.convert_to_tensor(momentum, weight.dtype),
        use_nesterov=nesterov,
    )


@keras.saving.register_keras_serializable("keras_dlopt")
class SGD(Optimizer, keras.optimizers.SGD):
    r"""Gradient descent on mini-batches, plain, with momentum or Nesterov's.

    With gradient g:

        plain:     w <- w - lr g
        momentum:  m <- momentum * m - lr g;  w <- w + m
        Nesterov:  m <- momentum * m - lr g;  w <- w + momentum * m - lr g

    Same arguments, results and state names as `keras.optimizers.SGD`. State: none, or 4
    bytes a parameter with momentum.

    Args:
        learning_rate: float, schedule, or callable without arguments.
        momentum: share of the last change that is repeated, float in [0, 1].
        nesterov: look ahead along the momentum.
        **options: see `keras_dlopt.optimizers.Optimizer`.

    Raises:
        ConfigError: for a negative rate.
        ValueError: for a momentum that is not a float in [0, 1].

    Example:
        >>> v = keras.Variable([1.0, 2.0])
        >>> SGD(0.1).apply([keras.ops.array([1.0, -1.0])], [v])
        >>> v.numpy().round(4).tolist()
        [0.9, 2.1]

    Source: Robbins and Monro (1951); Sutskever et al., "On the importance of
    initialization and momentum" (ICML 2013), equations 1 to 4.
    """

    elementwise = True
    fusable = True
    takes_sparse = True
    follows_momentum = True
    by_position = True
    of_parent = (*Optimizer.of_parent, "momentum")  # Keras refuses what is too large

    learning_rate: Any = hyper(default=0.01, check=_options.learning_rate)
    momentum: float = hyper(default=0.0, check=checks.number)
    nesterov: bool = hyper(default=False, check=checks.boolean)

    @property
    def fuses_anywhere(self) -> bool:
        return not self.momentum

    @property
    def slot_names(self) -> tuple[str, ...]:
        return ("momentum",) if self.momentum else ()

    def rule(self, gradient, weight, slots, lr, step):
        return sgd_rule(
            gradient, slots, lr=lr, momentum=self.momentum, nesterov=self.nesterov
        )

    def fused(self, gradient, weight, slots, lr, step):
        sgd_kernel(
            gradient,
            weight,
            slots,
            lr=lr,
            momentum=self.momentum,
            nesterov=self.nesterov,
        )
