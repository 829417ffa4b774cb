"""Gradient descent on all data: mini-batch gradients summed over an epoch."""

from typing import Any

import keras

from keras_dlopt import checks
from keras_dlopt.errors import ConfigError
from keras_dlopt.optimizers import _options
from keras_dlopt.optimizers._hyper import hyper
from keras_dlopt.optimizers.base import Optimizer
from keras_dlopt.optimizers.sgd import sgd_kernel, sgd_rule


@keras.saving.register_keras_serializable("keras_dlopt")
class GradientDescent(Optimizer):
    r"""Full-batch gradient descent: w <- w - lr * (mean gradient over all data).

    `fit` hands over mini-batches; their gradients are summed, and the weights move once
    every `batches`, by the mean. For least squares with m rows that is the textbook
    form w <- w - lr * (1/m) X^T (X w - y), for the loss 1/(2m) |X w - y|^2.

    State: 4 bytes a parameter, none when `batches` is 1.

    Args:
        learning_rate: float, schedule, or callable without arguments.
        batches: mini-batches in one pass over the data, `ceil(rows / batch_size)`. The
            batches should be equally large: a smaller last one weighs as much as the
            others, unlike its rows.
        **options: see `keras_dlopt.optimizers.Optimizer`, except
            `gradient_accumulation_steps`, which follows from `batches`.

    Raises:
        ConfigError: for fewer than 1 batches, a negative rate, or accumulation steps.

    Example:
        >>> v = keras.Variable([1.0])
        >>> descent = GradientDescent(0.5, batches=2)
        >>> for g in (1.0, 3.0): descent.apply([keras.ops.array([g])], [v])
        >>> v.numpy().tolist()
        [0.0]

    Source: Cauchy (1847).
    """

    fusable = True

    learning_rate: Any = hyper(default=0.01, check=_options.learning_rate)
    batches: int = hyper(default=1, check=checks.count)

    @classmethod
    def checked(cls, given: dict[str, Any]) -> dict[str, Any]:
        values = super().checked(given)
        batches, steps = values["batches"], values["gradient_accumulation_steps"]
        if steps not in (None, batches):
            raise ConfigError(
                "GradientDescent accumulates over `batches` by itself. "
                f"Received: gradient_accumulation_steps={steps}. Leave it out."
            )
        return {
            **values,
            "gradient_accumulation_steps": batches if batches > 1 else None,
        }

    def rule(self, gradient, weight, slots, lr, step):
        return sgd_rule(gradient, slots, lr=lr, momentum=0.0, nesterov=False)

    def fused(self, gradient, weight, slots, lr, step):
        sgd_kernel(gradient, weight, slots, lr=lr, momentum=0.0, nesterov=False)
