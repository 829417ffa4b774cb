"""A frozen weight and a trained difference of low rank: LoRA for any kernel."""

import math
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_dlopt import checks
from keras_dlopt.errors import ConfigError
from keras_dlopt.transforms.base import State, Transform
from keras_dlopt.transforms.lookup import without_gradient


@keras.saving.register_keras_serializable("keras_dlopt")
class LowRankDelta(Transform):
    """Keeps a weight and trains a difference of low rank to it (LoRA).

        w_t = w_0 + alpha / rank * a b,   a: (inputs, rank), b: (rank, outputs)

    A kernel of a convolution is flattened to (everything else) x (outputs): `a` is a
    convolution of `rank` filters, `b` a 1x1 convolution. `b` starts at 0, so the model
    starts as it was; `a` starts uniform in +-1 / sqrt(inputs).

    State: `a` and `b`, trained. The weight itself is no longer trained; `finalize` adds
    the difference to it.

    Args:
        rank: columns of `a`; more than a weight has means all of them.
        alpha: the factor on a b times the rank; None for the rank, a factor of 1.
        seed: of `a`.

    Raises:
        ConfigError: for a rank below 1 or an alpha that is not positive; when built,
            for weights with fewer than two dimensions.

    Example:
        >>> from keras_dlopt import Recipe, named, transform
        >>> net = keras.Sequential([keras.Input((64,)), keras.layers.Dense(64)])
        >>> tuned = transform(net, Recipe([(named("kernel"), LowRankDelta(2))]))
        >>> [tuple(v.shape) for v in tuned.trainable_variables]
        [(64, 2), (2, 64), (64,)]

    Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models"
    (arXiv:2106.09685), section 4.1; the start of `a` as in the authors' code.
    """

    own_weight = True
    keeps_weight = True

    def __init__(self, rank: int, *, alpha: float | None = None, seed: int = 0):
        self.rank = checks.count(rank, name="rank")
        self.alpha = checks.optional(checks.positive, alpha, name="alpha")
        self.seed = checks.seed(seed)

    def init(self, target, weight):
        return self._started(target, weight, 0)

    def init_group(self, targets, weights):
        pairs = zip(targets, weights, strict=True)
        return [self._started(*pair, place) for place, pair in enumerate(pairs)]

    def _started(self, target: Any, weight: Any, place: int) -> dict[str, State]:
        if weight.ndim < 2:
            raise ConfigError(
                f"LowRankDelta needs weights of two or more dimensions. {target.path!r}"
                f" has shape {weight.shape}. Select kernels only: named('kernel')."
            )
        inputs, outputs = math.prod(weight.shape[:-1]), weight.shape[-1]
        rank = min(self.rank, inputs, outputs)
        rng = np.random.default_rng([self.seed, place])
        limit = 1 / math.sqrt(inputs)
        first = rng.uniform(-limit, limit, (inputs, rank)).astype("float32")
        last = np.zeros((rank, outputs), "float32")
        return {"first": State(first, True), "last": State(last, True)}

    def apply(self, weight, state, context):
        factor = 1.0 if self.alpha is None else self.alpha / self.rank
        delta = factor * ops.matmul(state["first"], state["last"])
        delta = ops.cast(ops.reshape(delta, weight.shape), weight.dtype)
        return without_gradient(weight, ops.stop_gradient(weight) + delta)


@keras.saving.register_keras_serializable("keras_dlopt")
class Frozen(Transform):
    """Keeps a weight as it is, as part of the recipe.

    Unlike a flag on a variable it is there again after saving and loading, and other
    transforms may follow: `Frozen() >> FakeQuant(bits=4)`.

    State: none.

    Example:
        >>> from keras_dlopt import Recipe, named, transform
        >>> net = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> half = transform(net, Recipe([(named("kernel"), Frozen())]))
        >>> [v.name for v in half.trainable_variables]
        ['bias']
    """

    own_weight = True
    keeps_weight = True

    def __init__(self):
        pass

    def apply(self, weight, state, context):
        return ops.stop_gradient(weight)
