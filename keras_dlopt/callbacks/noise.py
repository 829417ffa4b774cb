"""How much a loss differs from one batch to the next."""

from typing import Any, NamedTuple

from keras import ops

# A difference counts for at most this many usual ones: an explosion is no noise.
CLIP = 4.0
LEAST_STEPS = 10  # fewer differences say little


class Noise(NamedTuple):
    """Running mean of the differences between successive losses; scalars, float32.

    Neither a constant added to the loss nor the sign of the loss plays a part.

    Attributes:
        last: the last finite loss.
        size: exponential mean of the absolute differences, not yet corrected for its
            start at 0.
        weight: sum of the weights in `size`.
    """

    last: Any
    size: Any
    weight: Any

    def level(self):
        """The mean difference; 0 before there is one."""
        return self.size / ops.maximum(self.weight, 1e-30)


SILENCE = Noise(0.0, 0.0, 0.0)


def listen(noise: Noise, loss, *, finite, first, steps) -> Noise:
    """The noise after one more loss.

    Args:
        noise: before it.
        loss: of the batch.
        finite: whether the loss is finite; another one changes nothing.
        first: whether no loss has come before.
        steps: differences that the mean goes over, about.
    """
    keep = 1.0 - 1.0 / ops.maximum(steps, float(LEAST_STEPS))
    level = noise.level()
    change = ops.where(finite, ops.abs(loss - noise.last), 0.0)
    change = ops.where(level > 0.0, ops.minimum(change, CLIP * level), change)
    counts = ops.logical_and(finite, ops.logical_not(first))
    return Noise(
        last=ops.where(finite, loss, noise.last),
        size=ops.where(counts, keep * noise.size + (1 - keep) * change, noise.size),
        weight=ops.where(counts, keep * noise.weight + (1 - keep), noise.weight),
    )
