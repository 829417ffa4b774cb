"""How much a weight matters."""

import keras
import numpy as np

from keras_dlopt import checks
from keras_dlopt.config import Value, frozen
from keras_dlopt.transforms.base import Member, State


class Score(Value):
    """An importance for each weight; the lowest are removed.

    Called with a group's member, whose `weight` has its removed entries at zero, it
    returns numbers of at least 0 in the weight's shape.
    """

    #: What `Member.statistics` must hold: `"gradient"`, `"squared_gradient"`.
    statistics: tuple[str, ...] = ()
    #: Whether removed weights are judged like the others, and may come back.
    judges_removed: bool = False

    def __call__(self, member: Member) -> np.ndarray:
        """The scores."""
        raise TypeError(f"{type(self).__name__} must define __call__().")

    def init(self, weight: np.ndarray) -> dict[str, State]:
        """State that the score keeps beside the mask."""
        return {}


@keras.saving.register_keras_serializable("keras_dlopt")
class Magnitude(Score):
    """|w|.

    Example:
        >>> from keras_dlopt.graph.targets import Target
        >>> Magnitude()(Member(Target("w"), np.array([-2.0, 1.0]), {})).tolist()
        [2.0, 1.0]

    Source: Han et al. (arXiv:1506.02626), section 3.1.
    """

    def __call__(self, member):
        return np.abs(member.weight)


@keras.saving.register_keras_serializable("keras_dlopt")
class Lamp(Score):
    """Layer-adaptive magnitude: comparable between weights, so meant for `Global()`.

        w_i^2 / (sum of w_j^2 over all |w_j| >= |w_i| of the same tensor)

    Within one tensor the order is that of the magnitudes.

    Example:
        >>> from keras_dlopt.graph.targets import Target
        >>> Lamp()(Member(Target("w"), np.array([2.0, 1.0]), {})).tolist()
        [1.0, 0.2]

    Source: Lee et al., "Layer-adaptive Sparsity for the Magnitude-based Pruning"
    (arXiv:2010.07611), equation 4.
    """

    def __call__(self, member):
        squares = np.square(member.weight.ravel().astype("float64"))
        order = np.argsort(squares, kind="stable")
        rest = np.cumsum(squares[order][::-1])[::-1]
        scores = np.empty_like(squares)
        scores[order] = squares[order] / np.where(rest > 0, rest, 1.0)
        return scores.reshape(member.weight.shape)


@keras.saving.register_keras_serializable("keras_dlopt")
class Taylor(Score):
    """|g w|: the change of the loss, to first order, when the weight becomes zero.

    g is the mean gradient over some batches of the training data, taken at the weights
    that the layers see; it is computed only when an update is due.

    Example:
        >>> from keras_dlopt.graph.targets import Target
        >>> w, g = np.array([2.0, 1.0]), np.array([-0.5, 3.0])
        >>> Taylor()(Member(Target("w"), w, {}, {"gradient": g})).tolist()
        [1.0, 3.0]

    Source: Molchanov et al., "Importance Estimation for Neural Network Pruning"
    (arXiv:1906.10771), equation 8.
    Differs from the paper: the gradient is averaged over the batches before the
    product, and its absolute value is taken instead of its square.
    """

    statistics = ("gradient",)

    def __call__(self, member):
        return np.abs(member.statistics["gradient"] * member.weight)


@keras.saving.register_keras_serializable("keras_dlopt")
class SNIP(Taylor):
    """|g w| at the start: the effect of a connection on the loss, before training.

    The formula is Taylor's; the use is another: once, at step 0, over all weights
    together, `Prune(0.9, score=SNIP(), distribution=Global())`.

    Source: Lee et al., "SNIP: Single-shot Network Pruning based on Connection
    Sensitivity" (arXiv:1810.02340), equation 6 and algorithm 1.
    Differs from the paper: not divided by the sum over all weights, which does not
    change the order; several batches instead of one.
    """


@keras.saving.register_keras_serializable("keras_dlopt")
class HessianDiagonal(Score):
    """h w^2 / 2 with h the diagonal of the empirical Fisher matrix, the mean of g^2.

    g is the gradient of one batch. The Fisher matrix is that of single examples: with
    `UpdateTransforms(batch_size=1)` it is exact, with larger batches the mean gradient
    counts for more.

    Example:
        >>> from keras_dlopt.graph.targets import Target
        >>> w, h = np.array([2.0, 1.0]), np.array([0.5, 4.0])
        >>> HessianDiagonal()(
        ...     Member(Target("w"), w, {}, {"squared_gradient": h})).tolist()
        [1.0, 2.0]

    Source: LeCun et al., "Optimal Brain Damage" (1990), equation 5; the Fisher matrix
    for the Hessian as in Theis et al. (arXiv:1801.05787), section 3.1.
    """

    statistics = ("squared_gradient",)

    def __call__(self, member):
        return 0.5 * member.statistics["squared_gradient"] * np.square(member.weight)


@keras.saving.register_keras_serializable("keras_dlopt")
@frozen
class Random(Score):
    """Numbers from a uniform distribution: the baseline that a score must beat.

    Args:
        seed: with the weight's place in the recipe entry it decides the numbers.

    Raises:
        ConfigError: for a seed that is not a whole number of at least 0.

    Example:
        >>> Random(seed=1)
        Random(seed=1)
    """

    seed: int = 0

    def __post_init__(self):
        self.keep(seed=checks.seed(self.seed))

    def __call__(self, member):
        return np.random.default_rng([self.seed, member.place]).random(
            member.weight.shape
        )


@keras.saving.register_keras_serializable("keras_dlopt")
class Movement(Score):
    """A trained score s, which falls where training moves a weight towards zero.

        w_new = w * mask(s),   dL/ds = dL/dw_new * w    (straight-through)

    With gradient descent s = -lr * sum of g w. It decides by itself, also for weights
    that are removed: they may come back. Meant for fine-tuning with a schedule that
    begins later than step 0; at step 0 every score is 0.

    State: one more trained float32 a weight.

    Example:
        >>> Movement().judges_removed
        True

    Source: Sanh et al., "Movement Pruning" (arXiv:2005.07683), section 4.
    Differs from the paper: the mask is chosen at the schedule's updates, not at every
    step, which costs nothing in between.
    """

    judges_removed = True

    def __call__(self, member):
        return member.state["score"]

    def init(self, weight):
        return {"score": State(np.zeros(weight.shape, "float32"), trainable=True)}
