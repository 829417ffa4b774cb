"""Soft weight-sharing: a mixture of Gaussians, trained as a prior of the weights."""

import keras
import numpy as np
from keras import ops

from keras_dlopt import checks
from keras_dlopt.codecs.hints import Codebook
from keras_dlopt.transforms.base import State, Transform

# Gamma priors of the precisions (shape, rate), from the authors' published settings:
# the zero component is kept narrow harder than the others.
ZERO_PRIOR, OTHER_PRIOR = (5e3, 2.0), (2.5e2, 1e-1)


@keras.saving.register_keras_serializable("keras_dlopt")
class SoftWeightSharing(Transform):
    """Pulls the weights towards few values, which are trained with them.

    One mixture serves all weights that the recipe entry selects. Component 0 lies at
    zero and holds the share `zero_share`; means, deviations and shares of the others
    are trained. In training it adds to the loss

        strength * ( -sum_i log sum_j pi_j N(w_i; mu_j, sigma_j^2)  -  log p(sigma) )

    with Gamma priors of the precisions 1 / sigma^2. `apply` returns the weight as it
    is; `finalize` gives each weight the mean of the component that most probably made
    it, after joining components that overlap. Compare before and after: what the
    mixture has not pulled together by then moves.

    State: three trained numbers a component, for all weights together. A step looks at
    every weight under every component, which costs more than `Cluster`.

    Args:
        clusters: number of components, at least 2, the zero one not counted.
        strength: weight of the prior in the loss: the paper's 0.005 divided by the
            number of training examples.
        zero_share: share of the zero component, in (0, 1).
        join: components whose means are nearer than this many of their deviations
            become one.

    Raises:
        ConfigError: for fewer than 2 clusters or numbers out of range.

    Example:
        >>> SoftWeightSharing(16, strength=0.005 / 60_000).clusters
        16

    Source: Ullrich, Meeds and Welling, "Soft Weight-Sharing for Neural Network
    Compression" (arXiv:1702.04008), sections 3 and 4.
    Differs from the paper: the share of the zero component is constant; components are
    joined by distance, not by their Kullback-Leibler divergence; all parameters follow
    the rate of the one optimizer.
    """

    def __init__(
        self,
        clusters: int = 16,
        *,
        strength: float = 1e-7,
        zero_share: float = 0.99,
        join: float = 1.0,
    ):
        self.clusters = checks.whole(clusters, name="clusters", least=2)
        self.strength = checks.positive(
            strength,
            name="strength",
            hint="Such as 0.005 divided by the number of training examples.",
        )
        self.zero_share = checks.fraction(zero_share, name="zero_share")
        self.join = checks.number(join, name="join", least=0)

    def init(self, target, weight):
        return self.init_group([target], [weight])[0]

    def init_group(self, targets, weights):
        if not weights:
            return []
        flat = np.concatenate([np.ravel(w) for w in weights])
        low, high = float(flat.min()), float(flat.max())
        spacing = max(high - low, 1e-3) / self.clusters
        shared = {
            "means": State(
                np.linspace(low, high, self.clusters, dtype="float32"), True
            ),
            "log_deviations": State(
                np.full(self.clusters + 1, np.log(spacing), "float32"), True
            ),
            "logits": State(np.zeros(self.clusters, "float32"), True),
            # The prior of the mixture counts once, however many weights it serves.
            "part": State(np.array(1 / len(weights), "float32")),
        }
        return [dict(shared) for _ in targets]

    def apply(self, weight, state, context):
        if context.training:
            context.add_loss(self.strength * self.cost(weight, state))
        return weight

    def cost(self, weight, state):
        """The negative log-likelihood of a weight and its part of the prior."""
        w = ops.reshape(ops.cast(weight, state["means"].dtype), (-1, 1))
        means, log_deviations, log_shares = self._components(state, ops)
        distance = (w - means) * ops.exp(-log_deviations)
        logs = log_shares - log_deviations - 0.5 * ops.square(distance)
        likelihood = ops.sum(ops.logsumexp(logs, axis=1) - 0.5 * np.log(2 * np.pi))
        precision = ops.exp(-2.0 * log_deviations)
        prior = ops.zeros((), precision.dtype)
        for part, (shape, rate) in (
            (precision[:1], ZERO_PRIOR),
            (precision[1:], OTHER_PRIOR),
        ):
            prior += ops.sum((shape - 1) * ops.log(part) - rate * part)
        return -likelihood - state["part"] * prior

    def _components(self, state, xp):
        """Means, log deviations and log shares of all components, zero first."""
        logits = state["logits"]
        top = xp.max(logits)
        log_total = top + xp.log(xp.sum(xp.exp(logits - top)))
        others = logits - log_total + float(np.log(1 - self.zero_share))
        dtype = state["means"].dtype
        first = xp.full((1,), float(np.log(self.zero_share)), dtype)
        means = xp.concatenate([xp.zeros((1,), dtype), state["means"]])
        return means, state["log_deviations"], xp.concatenate([first, others])

    def finalize(self, target, weight, state):
        means, log_deviations, log_shares = self._components(state, np)
        deviations = np.exp(log_deviations)
        means, deviations, log_shares = joined(
            means, deviations, log_shares, within=self.join
        )
        best = np.full(weight.shape, -np.inf)
        index = np.zeros(weight.shape, "int32")
        for j, (mean, deviation, share) in enumerate(
            zip(means, deviations, log_shares, strict=True)
        ):
            score = share - np.log(deviation) - 0.5 * ((weight - mean) / deviation) ** 2
            index[score > best] = j
            best = np.maximum(best, score)
        values = means.astype(weight.dtype)
        return values[index], Codebook(indices=index, values=values)


def joined(
    means: np.ndarray, deviations: np.ndarray, log_shares: np.ndarray, *, within: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Components that overlap made one; component 0 keeps its mean of zero.

    Two of them become the Gaussian of the same mean and variance as their mixture.

    Args:
        means: of the components, the first one 0.
        deviations: their standard deviations.
        log_shares: logarithms of their shares.
        within: two overlap if their means are nearer than this many of the larger of
            their deviations.

    Example:
        >>> m, d, s = joined(np.array([0.0, 1.0, 1.01]), np.full(3, 0.1),
        ...                  np.log([0.5, 0.25, 0.25]), within=1.0)
        >>> m.tolist()
        [0.0, 1.005]
    """
    order = np.concatenate([[0], 1 + np.argsort(means[1:], kind="stable")])
    kept: list[tuple[float, float, float]] = []
    for mean, deviation, share in zip(
        means[order], deviations[order], np.exp(log_shares[order]), strict=True
    ):
        near = [
            i
            for i, (m, d, _) in enumerate(kept)
            if abs(mean - m) < within * max(deviation, d)
        ]
        if not near:
            kept.append((float(mean), float(deviation), float(share)))
            continue
        m, d, s = kept[near[0]]
        total = s + share
        middle = 0.0 if near[0] == 0 else (s * m + share * mean) / total
        spread = s * (d**2 + m**2) + share * (deviation**2 + mean**2)
        variance = max(spread / total - middle**2, 1e-24)
        kept[near[0]] = (middle, float(np.sqrt(variance)), total)
    found = np.array(kept, "float64").T
    return found[0], found[1], np.log(found[2])
