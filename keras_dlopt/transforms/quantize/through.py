"""Quantization functions with the gradients that their papers give them.

All take tensors of any backend, compute in the dtype of `x` and are written once, as a
forward formula with its backward formula beside it.
"""

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

# A learned step may be driven through zero; from here on it counts as this.
SMALLEST_STEP = 1e-8


def custom_gradient(function: Callable[..., Any], *tensors: Any) -> Any:
    """Calls `function`, which returns a value and its gradient function, on tensors.

    The gradient function takes the gradient of the value and returns one for each of
    `tensors`, or for the only one.
    """
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        # Outside of a graph a weight arrives as a variable, which a custom gradient
        # may not take; on a tensor this does nothing.
        tensors = tuple(tf.convert_to_tensor(t) for t in tensors)

    @ops.custom_gradient
    def run(*tensors):
        value, gradient = function(*tensors)

        def grad(*args, upstream=None):
            return gradient(args[0] if upstream is None else upstream)

        return value, grad

    return run(*tensors)


def limited(gradient: Any, limit: float | None) -> Any:
    """The gradient, each element clipped to [-limit, limit]; None leaves it."""
    return gradient if limit is None else ops.clip(gradient, -limit, limit)


def on_grid(
    x: Any,
    scale: Any,
    low: Any,
    high: Any,
    *,
    clips: bool = True,
    noise: Any = None,
    clip_gradient: float | None = None,
) -> Any:
    """`x` on a grid of integers times `scale`, straight through but where clipped.

        code = clip(round(x / scale), low, high),   x_q = code * scale
        dL/dx = dL/dx_q where round(x / scale) is within [low, high], else 0

    Args:
        x: float tensor.
        scale: step, positive, broadcastable to `x`; gets no gradient.
        low: smallest code, broadcastable.
        high: largest code, broadcastable.
        clips: False for ranges that hold all of `x`: saves work.
        noise: uniform in [0, 1), like `x`: rounds up with the probability of the
            fraction; None rounds to the nearest, halves to even.
        clip_gradient: bound of each element of the gradient that comes in.

    Source: Jacob et al. (arXiv:1712.05877), section 3; stochastic rounding from Gupta
    et al. (arXiv:1502.02551), section 3.
    """
    scale, low, high = (ops.stop_gradient(t) for t in (scale, low, high))

    def run(x):
        steps = x / scale
        whole = ops.round(steps) if noise is None else ops.floor(steps + noise)
        if not clips and noise is None:
            return whole * scale, lambda upstream: limited(upstream, clip_gradient)
        codes = ops.clip(whole, low, high)

        def gradient(upstream):
            passed = limited(upstream, clip_gradient)
            # Rounding noise must not clip what lies on the last level.
            inside = ops.equal(codes, whole) if noise is None else _near(steps, codes)
            return ops.where(inside, passed, ops.zeros_like(passed))

        return codes * scale, gradient

    return custom_gradient(run, x)


def _near(steps: Any, codes: Any) -> Any:
    return ops.abs(steps - codes) <= 1.0


def learned_step(
    x: Any,
    scale: Any,
    offset: Any,
    low: float,
    high: float,
    *,
    gradient_scale: Any,
    clip_gradient: float | None = None,
) -> Any:
    """`x` on a grid whose step and offset are trained.

    With v = (x - offset) / scale, g = `gradient_scale` and u = dL/dx_q:

        x_q = round(clip(v, low, high)) * scale + offset
        dL/dx      = u          where low < v < high, else 0
        dL/dscale  = g sum u * (round(v) - v)   where low < v < high,
                     g sum u * low  or  high    where v is clipped
        dL/doffset = g sum u    where v is clipped

    Args:
        x: float tensor.
        scale: step, broadcastable to `x`.
        offset: value of the code 0, broadcastable to `x`.
        low: smallest code.
        high: largest code.
        gradient_scale: factor of the gradients of `scale` and `offset`.
        clip_gradient: bound of each element of the gradient that comes in.

    Source: Esser et al., "Learned Step Size Quantization" (arXiv:1902.08153), equations
    1 to 5; the offset from Bhalgat et al., "LSQ+" (arXiv:2004.09576), equations 4 to 7.
    """

    def run(x, scale, offset):
        step = ops.where(scale > SMALLEST_STEP, scale, SMALLEST_STEP)
        steps = (x - offset) / step
        inside = ops.logical_and(steps > low, steps < high)
        codes = ops.round(ops.clip(steps, low, high))

        def gradient(upstream):
            upstream = limited(upstream, clip_gradient)
            nothing = ops.zeros_like(upstream)
            for_step = upstream * ops.where(inside, codes - steps, codes)
            return (
                ops.where(inside, upstream, nothing),
                sum_to(for_step, scale) * gradient_scale,
                sum_to(ops.where(inside, nothing, upstream), offset) * gradient_scale,
            )

        return codes * step + offset, gradient

    return custom_gradient(run, x, scale, offset)


def sum_to(x: Any, like: Any) -> Any:
    """`x` summed over the axes that were broadcast from the shape of `like`."""
    lead = len(x.shape) - len(like.shape)
    axes = [*range(lead)]
    axes += [
        i + lead
        for i, size in enumerate(like.shape)
        if size == 1 and x.shape[i + lead] != 1
    ]
    summed = ops.sum(x, axis=tuple(axes), keepdims=True) if axes else x
    return ops.reshape(summed, like.shape)
