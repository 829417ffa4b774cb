"""Sparse variational dropout: weights learn how much noise they stand."""

import keras
import numpy as np
from keras import ops

from keras_dlopt import checks
from keras_dlopt.schedules.parts import check_steps
from keras_dlopt.transforms.base import State, Transform

# Molchanov et al. (arXiv:1701.05369), equation 14: a fit of the negative KL divergence.
K1, K2, K3 = 0.63576, 1.87320, 1.48695
_TINY = 1e-8  # under logarithms


@keras.saving.register_keras_serializable("keras_dlopt")
class VariationalDropout(Transform):
    """Learns a noise level for each weight, and drops those that are only noise.

    The weight becomes the mean of a Gaussian whose variance is trained too:

        training    w_new = w + sigma * epsilon,   epsilon ~ N(0, 1)
        otherwise   w_new = w where log alpha < threshold, else 0
        log alpha = log sigma^2 - log w^2

    and the loss gets the divergence from a prior that prefers noise,

        KL = -k1 sigmoid(k2 + k3 log alpha) + k1 + log(1 + 1/alpha) / 2

    summed over the weights, divided by `examples`, and multiplied by a factor that
    rises from 0 at step `begin` to 1 at step `warm_up`. The sparsity is a result, not a
    setting. Start from a trained network, or give the warm-up several epochs.

    State: one trained float32 a weight (log sigma^2), and the factor.

    Args:
        examples: number of training examples, N in "loss + KL / N" when the loss is a
            mean over examples; a smaller number asks for more sparsity.
        warm_up: step at which the divergence counts in full.
        begin: step at which it starts to count.
        threshold: log alpha above which a weight is dropped; 3 is a noise 4.5 times
            the weight.
        initial: log sigma^2 at the start.
        frequency: steps between two changes of the factor.

    Raises:
        ConfigError: for no examples, steps out of order, or a frequency below 1.

    Example:
        >>> VariationalDropout(60_000, warm_up=5_000).factor(2_500)
        0.5

    Source: Molchanov et al., "Variational Dropout Sparsifies Deep Neural Networks"
    (arXiv:1701.05369), sections 4.1 to 4.3; the warm-up from Soenderby et al.
    (arXiv:1602.02282).
    Differs from the paper: the noise is drawn for weights, once a batch, instead of for
    pre-activations, once an example; this serves layers of any kind and makes the
    gradient noisier. Use larger batches or smaller rates than without it.
    """

    random = True

    def __init__(
        self,
        examples: int,
        *,
        warm_up: int = 0,
        begin: int = 0,
        threshold: float = 3.0,
        initial: float = -10.0,
        frequency: int = 100,
    ):
        self.examples = check_steps(examples, name="examples", unit="training examples")
        self.begin = check_steps(begin, name="begin", least=0)
        self.warm_up = check_steps(warm_up, name="warm_up", least=0)
        self.frequency = check_steps(frequency, name="frequency")
        checks.ordered(
            begin=self.begin,
            warm_up=self.warm_up,
            hint="The divergence begins to count at step `begin` and counts in full at "
            "step `warm_up`.",
        )
        self.threshold = checks.number(threshold, name="threshold")
        self.initial = checks.number(initial, name="initial")

    def factor(self, step: int) -> float:
        """What the divergence is multiplied with at `step`, from 0 to 1."""
        if self.warm_up == self.begin:
            return 1.0 if step >= self.begin else 0.0
        progress = (step - self.begin) / (self.warm_up - self.begin)
        return min(max(progress, 0.0), 1.0)

    def init(self, target, weight):
        return {
            "log_sigma2": State(
                np.full(weight.shape, self.initial, "float32"), trainable=True
            ),
            "factor": State(np.array(self.factor(0), "float32")),
        }

    def apply(self, weight, state, context):
        log_alpha = _log_alpha(weight, state["log_sigma2"], ops)
        if not context.training:
            return ops.where(log_alpha < self.threshold, weight, 0.0)
        context.add_loss(
            state["factor"] / self.examples * ops.sum(divergence(log_alpha))
        )
        noise = keras.random.normal(weight.shape, seed=context.seed, dtype=weight.dtype)
        return weight + ops.exp(0.5 * state["log_sigma2"]) * noise

    def next_due(self, step):
        if step >= self.warm_up or self.warm_up == 0:
            return None
        if step < self.begin:
            return self.begin
        return min(step + self.frequency, self.warm_up)

    def update(self, group, step):
        return [{"factor": np.array(self.factor(step), "float32")} for _ in group]

    def finalize(self, target, weight, state):
        log_alpha = _log_alpha(weight, state["log_sigma2"], np)
        zero = np.zeros((), weight.dtype)
        return np.where(log_alpha < self.threshold, weight, zero), None

    def remaining(self, step):
        if step >= self.warm_up or self.warm_up == 0:
            return None
        return (
            f"the divergence of VariationalDropout counts {self.factor(step):.3g} of "
            f"what it will at step {self.warm_up}"
        )


def _log_alpha(weight, log_sigma2, xp):
    # Bounded as in the authors' program, so that a dead weight keeps a finite gradient.
    value = log_sigma2 - xp.log(xp.square(weight) + _TINY)
    return xp.clip(value, -8.0, 8.0)


def divergence(log_alpha):
    """The KL divergence of each weight, up to a constant; 0 for pure noise."""
    fit = K1 * ops.sigmoid(K2 + K3 * log_alpha)
    return K1 - fit + 0.5 * ops.softplus(-log_alpha)
