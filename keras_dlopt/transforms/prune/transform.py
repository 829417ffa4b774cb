"""Magnitude pruning with a constant or scheduled sparsity."""

import keras
import numpy as np

from keras_dlopt.errors import ConfigError
from keras_dlopt.schedules import Schedule
from keras_dlopt.schedules.sparsity import check_sparsity
from keras_dlopt.transforms.base import State, Transform


def keep_mask(scores: np.ndarray, sparsity: float) -> np.ndarray:
    """Ones for the weights to keep, zeros for the rest.

    Exactly round(sparsity * n) entries are zero: those with the smallest scores, and of
    equal scores those with the smallest index.

    Args:
        scores: importance of each weight, any shape.
        sparsity: share of zeros, in [0, 1).
    """
    zeros = round(sparsity * scores.size)
    mask = np.ones(scores.size, "float32")
    flat = scores.ravel()
    if 0 < zeros < scores.size:
        # One pass finds the threshold; only ties with it need an order.
        threshold = np.partition(flat, zeros - 1)[zeros - 1]
        mask[flat < threshold] = 0.0
        ties = np.flatnonzero(flat == threshold)
        mask[ties[: zeros - int((flat < threshold).sum())]] = 0.0
    elif zeros:
        mask[:] = 0.0
    return mask.reshape(scores.shape)


@keras.saving.register_keras_serializable("keras_dlopt")
class Prune(Transform):
    """Multiplies a weight by a 0/1 mask that keeps the largest magnitudes.

        w_new = w * mask,   sparsity = share of zeros in mask

    A number prunes once, when the model is transformed. A schedule prunes during
    training, on the steps it names; a weight that is zero stays the first to go, so the
    set of zeros grows with the sparsity. The gradient reaches the kept weights only.

    State: one float32 a weight.

    Args:
        sparsity: share of zeros in each weight, in [0, 1), or a schedule of it such as
            `schedules.PolynomialSparsity`.

    Raises:
        ConfigError: for a sparsity outside [0, 1).

    Example:
        >>> Prune(0.9) >> Prune(0.5)
        Prune(sparsity=0.9) >> Prune(sparsity=0.5)

    Source: Han et al., "Learning both Weights and Connections for Efficient Neural
    Networks" (arXiv:1506.02626), section 3; scheduled as in Zhu and Gupta
    (arXiv:1710.01878).
    """

    def __init__(self, sparsity: float | Schedule):
        if not isinstance(sparsity, Schedule):
            if not isinstance(sparsity, int | float):
                raise ConfigError(
                    "sparsity must be a number in [0, 1) or a schedule such as "
                    f"PolynomialSparsity(0.9, end=1000). Received: {sparsity!r}."
                )
            sparsity = check_sparsity(sparsity)
        self.sparsity = sparsity

    def init(self, target, weight):
        if isinstance(self.sparsity, Schedule):
            return {"mask": State(np.ones(weight.shape, "float32"))}
        return {"mask": State(keep_mask(np.abs(weight), self.sparsity))}

    def apply(self, weight, state, context):
        return weight * state["mask"]

    def next_due(self, step):
        if isinstance(self.sparsity, Schedule):
            return self.sparsity.next_due(step)
        return None

    def update(self, group, step):
        if not isinstance(self.sparsity, Schedule):
            return super().update(group, step)
        value = self.sparsity.value(step)
        return [
            {"mask": keep_mask(np.abs(m.weight * m.state["mask"]), value)}
            for m in group
        ]

    def finalize(self, target, weight, state):
        # Not weight * mask: that would leave -0.0, a second zero to the codecs.
        zero = np.zeros((), weight.dtype)
        return np.where(state["mask"] != 0, weight, zero), None

    def remaining(self, step):
        if not isinstance(self.sparsity, Schedule):
            return None
        now, end = self.sparsity.value(step), self._last_step(step)
        final = self.sparsity.value(end)
        if final <= now:
            return None
        return f"pruning is at sparsity {now:.3g} of {final:.3g}, due at step {end}"

    def _last_step(self, step):
        return getattr(self.sparsity, "end", None) or step
