"""LARS: momentum with a learning rate per layer, for large batches."""

import dataclasses
from typing import Any

import keras
from keras import ops

from keras_dlopt import checks, runtime
from keras_dlopt.optimizers import _options
from keras_dlopt.optimizers._hyper import hyper
from keras_dlopt.optimizers._options import share_kept
from keras_dlopt.optimizers.base import Optimizer
from keras_dlopt.optimizers.sgd import sgd_kernel, sgd_rule


def lars_gradient(gradient: Any, weight: Any, *, decay: float, trust: float) -> Any:
    """The gradient with decay, scaled by the ratio of the weight's norm to its own."""
    size = ops.sqrt(ops.sum(ops.square(weight)))
    length = ops.sqrt(ops.sum(ops.square(gradient))) + decay * size
    usable = ops.logical_and(size > 0, length > 0)
    ratio = ops.where(usable, trust * size / ops.maximum(length, 1e-30), 1.0)
    return ops.cast(ratio, gradient.dtype) * (gradient + decay * weight)


@keras.saving.register_keras_serializable("keras_dlopt")
class LARS(Optimizer):
    r"""LARS: every layer moves by a share of its own weights' norm.

    With gradient g, decay b = weight_decay, and weights of two dimensions or more:

        k = trust |w| / (|g| + b |w|)            (1 where |w| or |g| is 0)
        m <- momentum * m - lr * k (g + b w)
        w <- w + m

    Vectors (biases, normalization) take plain momentum without decay. State: 4 bytes a
    parameter.

    Args:
        learning_rate: float, schedule, or callable without arguments; with the trust
            ratio about 1 to 30, with a warm-up.
        momentum: share of the last change that is repeated, in [0, 1).
        trust: ratio of update norm to weight norm at lr 1, dimensionless, about 1e-3.
        nesterov: look ahead along the momentum.
        **options: see `keras_dlopt.optimizers.Optimizer`; `weight_decay` is part of
            the gradient here.

    Raises:
        ConfigError: for arguments out of range.

    Example:
        >>> v = keras.Variable([[3.0, 4.0]])
        >>> LARS(1.0, trust=0.1).apply([keras.ops.array([[0.0, 2.0]])], [v])
        >>> v.numpy().round(4).tolist()
        [[3.0, 3.5]]

    Source: You et al., "Large Batch Training of Convolutional Networks"
    (arXiv:1708.03888), algorithm 1. Differs from the paper: vectors are left out, as
    usual in practice.
    """

    slot_names = ("momentum",)
    couples_weights = True  # needs the weight decay inside the gradient
    fusable = True
    elementwise = True

    learning_rate: Any = hyper(default=1.0, check=_options.learning_rate)
    momentum: float = hyper(default=0.9, check=share_kept)
    trust: float = hyper(default=0.001, check=checks.positive)
    nesterov: bool = hyper(default=False, check=checks.boolean)

    def update(self, grads, cells, lr, step, *, shared):
        scaled = [
            lars_gradient(
                g, runtime.read(c.weight), decay=c.decay or 0.0, trust=self.trust
            )
            if len(c.weight.shape) > 1
            else g
            for g, c in zip(grads, cells, strict=True)
        ]
        cells = [dataclasses.replace(c, decay=None) for c in cells]
        super().update(scaled, cells, lr, step, shared=shared)

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
