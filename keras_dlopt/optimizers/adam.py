"""Adam and AdamW, the formulas of Keras on TensorFlow's fused kernel."""

from typing import Any

import keras
from keras import ops

from keras_dlopt import checks
from keras_dlopt.optimizers._hyper import hyper
from keras_dlopt.optimizers._options import decay_rate, share_kept
from keras_dlopt.optimizers.base import Optimizer


def adam_rule(
    gradient: Any,
    slots: dict[str, Any],
    *,
    lr: Any,
    step: Any,
    beta_1: float,
    beta_2: float,
    epsilon: float,
) -> tuple[Any, dict[str, Any]]:
    """One Adam step: what to subtract, and the new moments.

    Args:
        gradient: tensor.
        slots: `"momentum"` and `"velocity"`, and `"velocity_hat"` for AMSGrad.
        lr: learning rate.
        step: number of the update, from 1.
        beta_1: decay of the first moment.
        beta_2: decay of the second moment.
        epsilon: added to the root of the second moment.
    """
    corrected = ops.sqrt(1 - ops.power(ops.cast(beta_2, lr.dtype), step))
    alpha = lr * corrected / (1 - ops.power(ops.cast(beta_1, lr.dtype), step))
    m, v = slots["momentum"], slots["velocity"]
    m = m + (gradient - m) * (1 - beta_1)
    v = v + (ops.square(gradient) - v) * (1 - beta_2)
    new = {"momentum": m, "velocity": v}
    if "velocity_hat" in slots:
        v = new["velocity_hat"] = ops.maximum(slots["velocity_hat"], v)
    return m * alpha / (ops.sqrt(v) + epsilon), new


@keras.saving.register_keras_serializable("keras_dlopt")
class Adam(Optimizer, keras.optimizers.Adam):
    r"""Adam: the gradient's running mean over the root of its running square.

    With gradient g and update number t:

        m <- beta_1 m + (1 - beta_1) g
        v <- beta_2 v + (1 - beta_2) g^2
        w <- w - lr * sqrt(1 - beta_2^t) / (1 - beta_1^t) * m / (sqrt(v) + epsilon)

    Same arguments, results and state names as `keras.optimizers.Adam`. On TensorFlow
    each large weight takes one fused kernel, and all small ones together take one (not
    with `amsgrad`, whose kernel XLA lacks).
    State: 8 bytes a parameter (12 with `amsgrad`).

    Args:
        learning_rate: float, schedule, or callable without arguments.
        beta_1: share of the first moment kept at each step, in [0, 1).
        beta_2: share of the second moment kept, in [0, 1).
        epsilon: added to the root, in units of the gradient.
        amsgrad: divide by the largest second moment so far.
        **options: see `keras_dlopt.optimizers.Optimizer`.

    Raises:
        ConfigError: for betas outside [0, 1), a negative rate or epsilon.

    Example:
        >>> v = keras.Variable([1.0, 2.0])
        >>> Adam(0.5).apply([keras.ops.array([0.1, -3.0])], [v])
        >>> v.numpy().round(4).tolist()
        [0.5, 2.5]

    Source: Kingma and Ba, "Adam" (arXiv:1412.6980), algorithm 1. Differs from the
    paper: epsilon is the "epsilon hat" of section 2, as in Keras.
    """

    elementwise = True
    takes_sparse = True
    follows_momentum = True
    by_position = True

    beta_1: float = hyper(default=0.9, check=share_kept)
    beta_2: float = hyper(default=0.999, check=share_kept)
    epsilon: float = hyper(default=1e-7, check=checks.rate)
    amsgrad: bool = hyper(default=False, check=checks.boolean)

    @property
    def fuses_anywhere(self) -> bool:
        return self.fusable

    @property
    def slot_names(self) -> tuple[str, ...]:
        names = ("momentum", "velocity")
        return (*names, "velocity_hat") if self.amsgrad else names

    @property
    def fusable(self) -> bool:
        return not self.amsgrad  # XLA has no such kernel for AMSGrad

    def rule(self, gradient, weight, slots, lr, step):
        return adam_rule(
            gradient,
            slots,
            lr=lr,
            step=step,
            beta_1=self.beta_1,
            beta_2=self.beta_2,
            epsilon=self.epsilon,
        )

    def fused(self, gradient, weight, slots, lr, step):
        import tensorflow as tf

        dtype = weight.dtype
        lr = lr * self._rounding(dtype.as_numpy_dtype)
        beta_1 = tf.convert_to_tensor(self.beta_1, dtype)
        beta_2 = tf.constant(self.beta_2, dtype)
        tf.raw_ops.ResourceApplyAdam(
            var=weight.handle,
            m=slots["momentum"].handle,
            v=slots["velocity"].handle,
            beta1_power=tf.pow(beta_1, step),
            beta2_power=tf.pow(beta_2, step),
            lr=lr,
            beta1=beta_1,
            beta2=beta_2,
            epsilon=tf.constant(self.epsilon, dtype),
            grad=gradient,
        )

    def _rounding(self, dtype: Any) -> float:
        """Makes up for the kernel's 1 - beta, which has few digits in float32.

        1 - float32(0.999) is 1.3e-5 off 0.001, and so is the second moment; its root
        enters the step, so the learning rate can undo it.
        """
        first, kept_2 = 1.0, float(dtype(self.beta_2))
        if isinstance(
            self.beta_1, float
        ):  # else a schedule's, in `dtype` from the start
            first = (1 - self.beta_1) / (1 - float(dtype(self.beta_1)))
        return first * ((1 - kept_2) / (1 - self.beta_2)) ** 0.5


@keras.saving.register_keras_serializable("keras_dlopt")
class AdamW(Adam, keras.optimizers.AdamW):
    r"""Adam with decoupled weight decay: w <- w - lr * weight_decay * w, then Adam.

    Same arguments, results and state names as `keras.optimizers.AdamW`. State: 8 bytes
    a parameter (12 with `amsgrad`).

    Args:
        learning_rate: float, schedule, or callable without arguments.
        weight_decay: share of the weight removed per unit of learning rate.
        beta_1: share of the first moment kept at each step, in [0, 1).
        beta_2: share of the second moment kept, in [0, 1).
        epsilon: added to the root, in units of the gradient.
        amsgrad: divide by the largest second moment so far.
        **options: see `keras_dlopt.optimizers.Optimizer`; `decay_on` says which weights
            decay.

    Raises:
        ConfigError: for betas outside [0, 1), a negative rate, decay or epsilon.

    Example:
        >>> v = keras.Variable([2.0])
        >>> AdamW(0.1, weight_decay=0.5).apply([keras.ops.array([0.0])], [v])
        >>> v.numpy().round(4).tolist()
        [1.9]

    Source: Loshchilov and Hutter, "Decoupled Weight Decay Regularization"
    (arXiv:1711.05101), algorithm 2. Differs from the paper: the decay is scaled by the
    learning rate itself, not by its schedule alone, as in Keras.
    """

    weight_decay: float = hyper(default=0.004, check=decay_rate)
    beta_1: float = hyper(default=0.9, check=share_kept)
    beta_2: float = hyper(default=0.999, check=share_kept)
    epsilon: float = hyper(default=1e-7, check=checks.rate)
    amsgrad: bool = hyper(default=False, check=checks.boolean)
