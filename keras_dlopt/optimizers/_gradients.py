"""What is done to gradients before a rule sees them: clipping, centralization."""

from typing import Any

from keras import ops

from keras_dlopt import runtime


def prepare(
    grads: list[Any],
    weights: list[Any],
    *,
    center: bool,
    adaptive_clip: float | None,
    clipnorm: float | None,
    global_clipnorm: float | None,
    clipvalue: float | None,
) -> list[Any]:
    """Centralizes and clips gradients, in this order, as far as it is asked for.

    Args:
        grads: one gradient per weight, in the precision that the rule computes in.
        weights: their variables.
        center: see `centralize`.
        adaptive_clip: see `clip_adaptively`.
        clipnorm: see `clip_each`.
        global_clipnorm: see `clip_together`.
        clipvalue: see `clip_values`.
    """
    if center:
        grads = [centralize(g) for g in grads]
    if adaptive_clip is not None:
        grads = [
            clip_adaptively(g, runtime.read(w), adaptive_clip)
            for g, w in zip(grads, weights, strict=True)
        ]
    if clipnorm:
        return clip_each(grads, clipnorm)
    if global_clipnorm:
        return clip_together(grads, global_clipnorm)
    return clip_values(grads, clipvalue) if clipvalue else grads


def clip_each(grads: list[Any], norm: float) -> list[Any]:
    """Each gradient scaled down to an L2 norm of at most `norm`."""
    clipped = []
    for g in grads:
        squared = ops.sum(ops.square(g))
        length = ops.where(squared > 0, ops.sqrt(squared), squared)
        clipped.append(g * norm / ops.maximum(length, norm))
    return clipped


def clip_together(grads: list[Any], norm: float) -> list[Any]:
    """All gradients scaled by one factor to a joint L2 norm of at most `norm`.

    A norm that is not finite makes every gradient NaN rather than zero, so that the
    trouble shows.
    """
    total = ops.sqrt(ops.sum(ops.stack([ops.sum(ops.square(g)) for g in grads])))
    scale = norm * ops.minimum(1.0 / total, 1.0 / norm) + (total - total)
    return [g * ops.cast(scale, g.dtype) for g in grads]


def clip_values(grads: list[Any], limit: float) -> list[Any]:
    """Every entry limited to [-limit, limit]."""
    return [ops.clip(g, -limit, limit) for g in grads]


def centralize(gradient: Any) -> Any:
    """The gradient with zero mean over each output unit's inputs.

    g <- g - mean(g) over all axes but the last; vectors stay as they are. Source: Yong
    et al., "Gradient Centralization" (arXiv:2004.01461), equation 1.
    """
    axes = tuple(range(len(gradient.shape) - 1))
    return gradient - ops.mean(gradient, axis=axes, keepdims=True) if axes else gradient


def clip_adaptively(gradient: Any, weight: Any, ratio: float) -> Any:
    """Each output unit's gradient limited to `ratio` times its weights' norm.

    g_i <- g_i * min(1, ratio * max(|w_i|, 1e-3) / |g_i|), i over the last axis. Source:
    Brock et al., "High-Performance Large-Scale Image Recognition Without Normalization"
    (arXiv:2102.06171), equation 3. Differs from the paper: vectors count as one unit
    per entry, where the paper leaves the last layer out by hand.
    """
    limit = ratio * ops.maximum(_unit_norm(weight), 1e-3)
    length = ops.maximum(_unit_norm(gradient), 1e-6)
    return gradient * ops.minimum(limit / length, 1.0)


def all_finite(grads: list[Any]) -> Any:
    """One boolean: no gradient holds NaN or infinity."""
    return ops.all(ops.stack([ops.all(ops.isfinite(g)) for g in grads]))


def _unit_norm(x: Any) -> Any:
    axes = tuple(range(len(x.shape) - 1))
    if not axes:
        return ops.abs(x)
    return ops.sqrt(ops.sum(ops.square(x), axis=axes, keepdims=True))
