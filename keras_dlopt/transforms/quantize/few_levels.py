"""Binary and ternary weights."""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_dlopt.codecs.hints import Codebook, Grid
from keras_dlopt.errors import ConfigError
from keras_dlopt.transforms.base import State, Transform
from keras_dlopt.transforms.quantize.layout import Layout, layout
from keras_dlopt.transforms.quantize.through import custom_gradient, limited, sum_to
from keras_dlopt.transforms.quantize.weight import check_limit


def _layout(transform: Any, target: Any, shape: Any) -> Layout:
    return layout(target, tuple(shape), per_channel=transform.per_channel)


@keras.saving.register_keras_serializable("keras_dlopt")
class Binary(Transform):
    """One bit a weight: its sign, times one scale.

    With n weights that share a scale and u the gradient of w_b:

        a = mean|w|,   w_b = a sign(w),   sign(0) = 1
        dL/dw = (1/n sum u sign(w)) sign(w) + a u where |w| <= 1, else the first term

    which is the derivative of a times that of the sign, the sign straight-through
    within [-1, 1].

    State: none.

    Args:
        per_channel: one scale per output channel, as in the paper; False for one scale
            a weight.
        clip_gradient: bound of each element of the gradient that reaches the weight.

    Raises:
        ConfigError: for a bound that is not positive.

    Example:
        >>> from keras_dlopt.graph.targets import Target
        >>> w = np.array([[0.5], [-1.0], [0.3]], "float32")
        >>> Binary().evaluate(Target("kernel"), w, {}).ravel().tolist()
        [0.6, -0.6, 0.6]

    Source: Rastegari et al., "XNOR-Net" (arXiv:1603.05279), sections 3.1 and 3.2; the
    sign's gradient from Courbariaux et al. (arXiv:1602.02830), equation 4.
    Differs from the paper: the first term is the exact derivative of mean|w|; the
    paper writes 1/n u.
    """

    def __init__(self, *, per_channel: bool = True, clip_gradient: float | None = None):
        self.per_channel = per_channel
        self.clip_gradient = check_limit(clip_gradient)

    def apply(self, weight, state, context):
        axes = _layout(self, context.target, weight.shape).reduced

        def run(w):
            sign = ops.cast(ops.where(w >= 0, 1.0, -1.0), w.dtype)
            scale = ops.mean(ops.abs(w), axis=axes, keepdims=True)

            def gradient(upstream):
                through_scale = ops.mean(upstream * sign, axis=axes, keepdims=True)
                inside = ops.cast(ops.abs(w) <= 1, upstream.dtype)
                whole = through_scale * sign + scale * upstream * inside
                return limited(whole, self.clip_gradient)

            return sign * scale, gradient

        return custom_gradient(run, weight)

    def finalize(self, target, weight, state):
        cut = _layout(self, target, weight.shape)
        scale = np.abs(weight).mean(axis=cut.reduced, keepdims=True, dtype="float64")
        scale = scale.astype("float32")
        codes = np.where(weight >= 0, 1, -1).astype("int32")
        return (codes * scale).astype(weight.dtype), Grid(codes=codes, scale=scale)


def _check_threshold(threshold: float, most: float) -> float:
    if not 0 < threshold < most:
        raise ConfigError(
            f"threshold must be in (0, {most}), the share of the weights' size below "
            f"which they are 0. Received: {threshold!r}."
        )
    return threshold


@keras.saving.register_keras_serializable("keras_dlopt")
class Ternary(Transform):
    """Three values a weight: -a, 0 and a.

        d = threshold * mean|w|,   a = mean of |w| over |w| > d
        w_t = a sign(w) where |w| > d, else 0

    The gradient passes unchanged.

    State: none.

    Args:
        per_channel: one a and d per output channel; False, as in the paper, for one a
            weight.
        threshold: d over the mean magnitude, in (0, 4). 0.7 is nearly optimal for
            normally and for evenly distributed weights.
        clip_gradient: bound of each element of the gradient that reaches the weight.

    Raises:
        ConfigError: for a threshold outside (0, 4).

    Example:
        >>> from keras_dlopt.graph.targets import Target
        >>> w = np.array([[0.9], [-1.1], [0.1]], "float32")
        >>> Ternary().evaluate(Target("kernel"), w, {}).ravel().tolist()
        [1.0, -1.0, 0.0]

    Source: Li et al., "Ternary Weight Networks" (arXiv:1605.04711), equations 5 and 6.
    """

    def __init__(
        self,
        *,
        per_channel: bool = False,
        threshold: float = 0.7,
        clip_gradient: float | None = None,
    ):
        self.per_channel = per_channel
        self.threshold = _check_threshold(threshold, 4.0)
        self.clip_gradient = check_limit(clip_gradient)

    def apply(self, weight, state, context):
        axes = _layout(self, context.target, weight.shape).reduced

        def run(w):
            size = ops.abs(w)
            limit = self.threshold * ops.mean(size, axis=axes, keepdims=True)
            used = ops.cast(size > limit, w.dtype)
            count = ops.sum(used, axis=axes, keepdims=True)
            scale = ops.sum(size * used, axis=axes, keepdims=True)
            scale = scale / ops.maximum(count, 1.0)
            value = ops.sign(w) * used * scale
            return value, lambda upstream: limited(upstream, self.clip_gradient)

        return custom_gradient(run, weight)

    def finalize(self, target, weight, state):
        axes = _layout(self, target, weight.shape).reduced
        size = np.abs(weight)
        used = size > self.threshold * size.mean(axis=axes, keepdims=True)
        count = np.maximum(used.sum(axis=axes, keepdims=True), 1)
        total = (size * used).sum(axis=axes, keepdims=True, dtype="float64")
        scale = (total / count).astype("float32")
        codes = (np.sign(weight) * used).astype("int32")
        return (codes * scale).astype(weight.dtype), Grid(codes=codes, scale=scale)


@keras.saving.register_keras_serializable("keras_dlopt")
class TrainedTernary(Transform):
    """Three values a weight: -n, 0 and p, with n and p trained.

        d = threshold * max|w|
        w_t = p where w > d,  -n where w < -d,  else 0
        dL/dp = sum of u where w > d,   dL/dn = -sum of u where w < -d
        dL/dw = p u,  n u  or  u in the three regions

    with u the gradient of w_t. n and p start at the mean magnitude of their weights.

    State: two trained numbers.

    Args:
        threshold: d over the largest magnitude, in (0, 1).
        clip_gradient: bound of each element of the gradient that reaches the weight.

    Raises:
        ConfigError: for a threshold outside (0, 1).

    Example:
        >>> TrainedTernary(threshold=0.1).threshold
        0.1

    Source: Zhu et al., "Trained Ternary Quantization" (arXiv:1612.01064), equations 6
    to 8.
    Differs from the paper: n and p are kept as they are for weights that are not
    normalized to [-1, 1] first.
    """

    def __init__(self, *, threshold: float = 0.05, clip_gradient: float | None = None):
        self.threshold = _check_threshold(threshold, 1.0)
        self.clip_gradient = check_limit(clip_gradient)

    def init(self, target, weight):
        limit = self.threshold * np.abs(weight).max(initial=0)
        above, below = weight[weight > limit], weight[weight < -limit]
        start = {
            "positive": above.mean() if above.size else 1.0,
            "negative": -below.mean() if below.size else 1.0,
        }
        return {
            k: State(np.array(v, "float32"), trainable=True) for k, v in start.items()
        }

    def apply(self, weight, state, context):
        def run(w, positive, negative):
            limit = self.threshold * ops.max(ops.abs(w))
            above = ops.cast(w > limit, w.dtype)
            below = ops.cast(w < -limit, w.dtype)
            value = positive * above - negative * below

            def gradient(upstream):
                factor = positive * above + negative * below + (1 - above - below)
                return (
                    limited(upstream * factor, self.clip_gradient),
                    sum_to(upstream * above, positive),
                    -sum_to(upstream * below, negative),
                )

            return value, gradient

        return custom_gradient(run, weight, state["positive"], state["negative"])

    def finalize(self, target, weight, state):
        limit = np.float32(self.threshold) * np.abs(weight).max(initial=0)
        values = np.array(
            [0.0, state["positive"], -state["negative"]], dtype=weight.dtype
        )
        indices = np.where(weight > limit, 1, np.where(weight < -limit, 2, 0))
        return values[indices], Codebook(indices=indices, values=values)
