"""L2-SP: weights are held near where they started."""

import keras
import numpy as np
from keras import ops

from keras_dlopt import checks
from keras_dlopt.transforms.base import State, Transform

TOWARD = ("start", "zero")


@keras.saving.register_keras_serializable("keras_dlopt")
class L2SP(Transform):
    """Adds a loss for the way that a weight went from its start.

        loss += strength / 2 * sum((w - w_start)^2)

    The start is the value when the recipe was put on, so that a trained model is pulled
    back to what it knew; a new head has no such point and takes `toward="zero"`, plain
    L2. In a chain, what stands before it is what is held: `Prune(0.5) >> L2SP(0.01)`
    looks at the weights that are left.

    State: the start, not trained, the size of the weight; nothing for `"zero"`.

    Args:
        strength: alpha of the paper for `"start"`, beta for `"zero"`.
        toward: `"start"` or `"zero"`.

    Raises:
        ConfigError: for a negative strength, or another point.

    Example:
        >>> from keras_dlopt import Recipe, at, everything
        >>> recipe = Recipe([
        ...     (at("head/kernel", "head/bias"), L2SP(0.01, toward="zero")),
        ...     (everything(), L2SP(0.1)),
        ... ])

    Source: Li, Grandvalet and Davoine, "Explicit Inductive Bias for Transfer Learning
    with Convolutional Networks" (arXiv:1802.01483), equation 2.
    """

    def __init__(self, strength: float, *, toward: str = "start"):
        self.strength = checks.rate(strength, name="strength")
        self.toward = checks.choice(toward, name="toward", choices=TOWARD)

    def init(self, target, weight):
        if self.toward == "zero":
            return {}
        return {"start": State(np.asarray(weight, "float32"))}

    def apply(self, weight, state, context):
        if context.training:
            way = ops.cast(weight, "float32")
            if self.toward == "start":
                way = way - state["start"]
            context.add_loss(0.5 * self.strength * ops.sum(ops.square(way)))
        return weight
