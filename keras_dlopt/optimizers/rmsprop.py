"""RMSprop, the formulas of Keras on TensorFlow's fused kernels."""

import keras
from keras import ops

from keras_dlopt import checks
from keras_dlopt.optimizers._hyper import hyper
from keras_dlopt.optimizers._options import share_kept
from keras_dlopt.optimizers.base import Optimizer


@keras.saving.register_keras_serializable("keras_dlopt")
class RMSprop(Optimizer, keras.optimizers.RMSprop):
    r"""RMSprop: the gradient over the root of its running mean square.

    With gradient g:

        v <- rho v + (1 - rho) g^2
        d = lr g / sqrt(v + epsilon)          (centered: v less the squared mean of g)
        w <- w - d                            (momentum: m <- momentum * m + d; w - m)

    Same arguments, results and state names as `keras.optimizers.RMSprop`. The fused
    kernel needs the momentum's state, so it serves when momentum is not 0. State: 4
    bytes a parameter, 4 more each for momentum and centering.

    Args:
        learning_rate: float, schedule, or callable without arguments.
        rho: share of the running mean kept at each step, in [0, 1).
        momentum: share of the last change that is repeated, in [0, 1).
        epsilon: added under the root, in squared units of the gradient.
        centered: divide by the deviation from the mean gradient.
        **options: see `keras_dlopt.optimizers.Optimizer`.

    Raises:
        ConfigError: for rho or momentum outside [0, 1), a negative rate or epsilon.

    Example:
        >>> v = keras.Variable([10.0])
        >>> RMSprop(0.1).apply([keras.ops.array([10.0])], [v])
        >>> v.numpy().round(4).tolist()
        [9.6838]

    Source: Tieleman and Hinton, lecture 6.5 (2012). Differs from the source: epsilon
    stands under the root, as in Keras.
    """

    elementwise = True
    takes_sparse = True
    follows_momentum = True
    by_position = True

    rho: float = hyper(default=0.9, check=share_kept)
    momentum: float = hyper(default=0.0, check=share_kept)
    epsilon: float = hyper(default=1e-7, check=checks.rate)
    centered: bool = hyper(default=False, check=checks.boolean)

    @property
    def slot_names(self) -> tuple[str, ...]:
        names = ["velocity"]
        names += ["momentum"] if self.momentum else []
        names += ["average_gradient"] if self.centered else []
        return tuple(names)

    @property
    def fusable(self) -> bool:
        return self.momentum > 0

    def rule(self, gradient, weight, slots, lr, step):
        rho = self.rho
        v = rho * slots["velocity"] + (1 - rho) * ops.square(gradient)
        new = {"velocity": v}
        if "average_gradient" in slots:
            mean = rho * slots["average_gradient"] + (1 - rho) * gradient
            new["average_gradient"] = mean
            v = v - ops.square(mean)
        change = lr * gradient / ops.sqrt(v + self.epsilon)
        if "momentum" in slots:
            change = new["momentum"] = self.momentum * slots["momentum"] + change
        return change, new

    def fused(self, gradient, weight, slots, lr, step):
        import tensorflow as tf

        arguments = {
            "var": weight.handle,
            "ms": slots["velocity"].handle,
            "mom": slots["momentum"].handle,
            "lr": lr,
            "rho": tf.constant(self.rho, weight.dtype),
            "momentum": tf.convert_to_tensor(self.momentum, weight.dtype),
            "epsilon": tf.constant(self.epsilon, weight.dtype),
            "grad": gradient,
        }
        if self.centered:
            mean = slots["average_gradient"].handle
            tf.raw_ops.ResourceApplyCenteredRMSProp(mg=mean, **arguments)
        else:
            tf.raw_ops.ResourceApplyRMSProp(**arguments)
