"""Fewer parameters by sharing: kernels tied across layers, weights tied by a hash."""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_dlopt import checks
from keras_dlopt.codecs.hints import Codebook
from keras_dlopt.errors import ConfigError
from keras_dlopt.select import Selector, selector_from_dict
from keras_dlopt.transforms.base import State, Transform
from keras_dlopt.transforms.lookup import lookup, without_gradient

STARTS = ("mean", "first")
# The finalizer of SplitMix64: a bijection of 64-bit integers that mixes all bits.
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX = (
    (np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)),
    (np.uint64(27), np.uint64(0x94D049BB133111EB)),
)


@keras.saving.register_keras_serializable("keras_dlopt")
class Share(Transform):
    """One kernel for all weights that a recipe entry selects.

        w_l = s_l * w  or  s_l * w^T,   dL/dw = sum over the layers l of s_l dL/dw_l

    It starts at the mean of the weights, or as the first. With `scale` each layer
    multiplies it by a trained number of its own, which starts at the least-squares fit
    to its weight. A matrix with the shape of the first turned round gets the transpose:
    an embedding and the kernel that gives the logits.

    State: the shared kernel, once for all of them, and a number a layer. The weights
    themselves are no longer trained. `finalize` gives each layer its own copy again,
    and `save_compressed` stores what is equal once.

    Args:
        scale: whether each layer has a factor of its own.
        start: `"mean"`, for layers that were trained, or `"first"`: the mean of n
            random starts is smaller than each by sqrt(n).
        transposed: of square matrices, which get the transpose; None for none.

    Raises:
        ConfigError: for another start; when built, unless all weights have one shape,
            or matrices that shape turned round.

    Example:
        >>> from keras_dlopt import Recipe, finalize, named, transform
        >>> net = keras.Sequential([
        ...     keras.Input((4,)), keras.layers.Dense(4), keras.layers.Dense(4)])
        >>> tied = transform(net, Recipe([(named("kernel"), Share())]))
        >>> a, b = (layer.kernel.numpy() for layer in finalize(tied).layers)
        >>> bool((a == b).all())
        True

    Source: Savarese and Maire, "Learning Implicitly Recurrent CNNs Through Parameter
    Sharing" (arXiv:1902.09701), section 3, with a single template; the transpose as in
    Press and Wolf (arXiv:1608.05859).
    """

    own_weight = True

    def __init__(
        self,
        *,
        scale: bool = False,
        start: str = "mean",
        transposed: Selector | None = None,
    ):
        self.scale = checks.boolean(scale, name="scale")
        self.start = checks.choice(start, name="start", choices=STARTS)
        if isinstance(transposed, dict):
            transposed = selector_from_dict(transposed)
        self.transposed = checks.optional(_selector, transposed, name="transposed")

    def init(self, target, weight):
        return self.init_group([target], [weight])[0]

    def init_group(self, targets, weights):
        if not weights:
            return []
        shape = weights[0].shape
        turned = shape[::-1] if len(shape) == 2 else shape
        if any(w.shape not in (shape, turned) for w in weights):
            shapes = {t.path: w.shape for t, w in zip(targets, weights, strict=True)}
            raise ConfigError(
                f"Share ties weights of one shape. Received: {shapes}. Select layers "
                "of one kind, such as matching('block./conv/kernel')."
            )
        pairs = zip(targets, weights, strict=True)
        upright = [w.T if self._turns(t, w.shape, shape) else w for t, w in pairs]
        first = np.asarray(upright[0], "float64")
        mean = np.mean(upright, axis=0, dtype="float64")
        mean = mean if self.start == "mean" else first
        shared = State(mean.astype("float32"), trainable=True)
        states: list[dict[str, State]] = [{"shared": shared} for _ in weights]
        if self.scale:
            square = float(np.sum(mean**2)) or 1.0
            for state, weight in zip(states, upright, strict=True):
                fit = np.array(np.sum(mean * weight) / square, "float32")
                state["scale"] = State(fit, trainable=True)
        return states

    def _turns(self, target: Any, shape: Any, shared: Any) -> bool:
        """Whether a weight is the transpose of what is shared."""
        if len(shape) != 2 or tuple(shape) != tuple(shared)[::-1]:
            return False
        if shape[0] != shape[1]:
            return True
        return self.transposed is not None and self.transposed(target)

    def apply(self, weight, state, context):
        value = state["shared"]
        if self._turns(context.target, weight.shape, value.shape):
            value = ops.transpose(value)
        if self.scale:
            value = value * state["scale"]
        return without_gradient(weight, ops.cast(value, weight.dtype))


def _selector(value: Any, *, name: str) -> Selector:
    return checks.instance(
        value,
        Selector,
        name=name,
        wanted="a selector",
        hint="Write for example keras_dlopt.at('logits/kernel').",
    )


def hashed(shape: tuple[int, ...], buckets: int, *, seed: int) -> np.ndarray:
    """For each position of a weight a bucket, evenly and the same on every machine.

    Args:
        shape: of the weight.
        buckets: how many.
        seed: another one gives other buckets.

    Returns:
        int32 in [0, 2 * buckets): from `buckets` on, the bucket with its sign changed.

    Example:
        >>> hashed((2, 3), 4, seed=0).tolist()
        [[7, 2, 7], [2, 5, 1]]
    """
    size = int(np.prod(shape, dtype=int))
    with np.errstate(over="ignore"):
        start = np.uint64(seed) * _GOLDEN
        value = (np.arange(1, size + 1, dtype="uint64") * _GOLDEN) ^ start
        for shift, factor in _MIX:
            value = (value ^ (value >> shift)) * factor
        value ^= value >> np.uint64(31)
    bucket = (value >> np.uint64(1)) % np.uint64(buckets)
    sign = value & np.uint64(1)
    return (bucket + sign * np.uint64(buckets)).astype("int32").reshape(shape)


@keras.saving.register_keras_serializable("keras_dlopt")
class HashedWeights(Transform):
    """Every weight is one of few trained numbers, which one a hash of its place tells.

        w_i = sign(i) * bucket[h(i)],   dL/db_k = sum over {i: h(i) = k} sign(i) dL/dw_i

    A bucket starts at the signed sum of its weights over the root of their number, so
    that a random initialisation keeps its variance; a trained weight is not kept. Train
    from the start.

    State: the buckets, trained; an int32 a weight that follows from shape and seed. The
    weights themselves are no longer trained.

    Args:
        ratio: buckets by weights, in (0, 1): 1/8 trains an eighth of the numbers.
        signs: whether a second hash changes signs.
        seed: of the hash.

    Raises:
        ConfigError: for a ratio outside (0, 1) or a negative seed.

    Example:
        >>> HashedWeights(1 / 8).ratio
        0.125

    Source: Chen et al., "Compressing Neural Networks with the Hashing Trick"
    (arXiv:1504.04788), section 4.
    Differs from the paper: SplitMix64 in place of xxHash.
    """

    own_weight = True

    def __init__(self, ratio: float, *, signs: bool = True, seed: int = 0):
        self.ratio = checks.fraction(ratio, name="ratio", hint="Such as 1/8.")
        self.signs = checks.boolean(signs, name="signs")
        self.seed = checks.seed(seed)

    def init(self, target, weight):
        buckets = max(1, round(self.ratio * weight.size))
        index = hashed(weight.shape, buckets, seed=self.seed)
        if not self.signs:
            index = index % buckets
        sign = np.where(index < buckets, 1.0, -1.0)
        place = (index % buckets).ravel()
        sums = np.bincount(place, (sign * weight).ravel(), minlength=buckets)
        counts = np.bincount(place, minlength=buckets)
        values = sums / np.sqrt(np.maximum(counts, 1))
        return {
            "buckets": State(values.astype("float32"), trainable=True),
            "index": State(index),
        }

    def apply(self, weight, state, context):
        return lookup(weight, self._table(state, ops), state["index"])

    def _table(self, state: dict[str, Any], xp: Any) -> Any:
        buckets = state["buckets"]
        return xp.concatenate([buckets, -buckets]) if self.signs else buckets

    def finalize(self, target, weight, state):
        values = self._table(state, np).astype(weight.dtype)
        index = state["index"]
        return values[index], Codebook(indices=index, values=values)
