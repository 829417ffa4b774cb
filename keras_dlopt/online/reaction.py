"""What a learner does when it sees a drift."""

import keras

from keras_dlopt import checks
from keras_dlopt.config import Value, frozen

# A rate this near to the plain one, as a share of it, is the plain one.
_NEAR = 0.01


@keras.saving.register_keras_serializable("keras_dlopt")
@frozen
class OnDrift(Value):
    """The rate rises and decays back; what is stale is forgotten, or kept.

    `rate(t) = rate * (1 + (factor - 1) * 2^(-t / half_life))`, t samples after the
    drift.

    Args:
        factor: of the learning rate right after a drift; 1 leaves it alone.
        half_life: samples in which half of the rise is gone.
        forget: whether the memory drops what came before, and EWC and snapshots let
            go. Where the old concept comes back, keep.
        recent: samples before the alarm that stay, since a detector is late.

    Raises:
        ConfigError: for numbers out of range.

    Example:
        >>> reaction = OnDrift(factor=3.0, half_life=100)
        >>> [reaction.at(t) for t in (0, 100, 200, 900)]
        [3.0, 2.0, 1.5, 1.0]
    """

    factor: float = 1.0
    half_life: float = 500.0
    forget: bool = False
    recent: int = 0

    def __post_init__(self):
        self.keep(
            factor=checks.number(self.factor, name="factor", least=1),
            half_life=checks.positive(self.half_life, name="half_life"),
            forget=checks.boolean(self.forget, name="forget"),
            recent=checks.whole(self.recent, name="recent", least=0),
        )

    def at(self, samples: int) -> float:
        """What the rate is multiplied with, this many samples after a drift."""
        extra = (self.factor - 1.0) * 2.0 ** (-samples / self.half_life)
        return 1.0 + extra if extra > _NEAR else 1.0
