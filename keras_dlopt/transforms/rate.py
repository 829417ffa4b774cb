"""Training towards few bits: the loss gets the price of coding the weights."""

import keras
import numpy as np
from keras import ops

from keras_dlopt.codecs.dtypes import dtype_of
from keras_dlopt.codecs.hints import Grid
from keras_dlopt.transforms.base import State
from keras_dlopt.transforms.towards_bytes import TowardsBytes

# Shares of the training between `begin` and `end`.
HARD, FALLEN, PRICED, KEPT = 0.12, 0.55, 0.75, 0.85
_PRIOR = (
    10.0  # weights that a row's or column's share of zeros is believed to have seen
)


@keras.saving.register_keras_serializable("keras_dlopt")
class RateAware(TowardsBytes):
    r"""Trains weights whose integer codes take few bits, down to a number of bytes.

    A weight is a whole number of steps, one trained step a weight tensor, and the loss
    gets the price of its bits:

        phi = w / step,   w_new = step * round(phi)   (straight-through)
        loss + price * bits(phi),   bits linear between whole numbers:
        d bits / d |phi| = log2((1 - p_ij) / p_ij) + first   for |phi| < 1, else `more`

    with p_ij the share of non-zeros that row i and column j let expect, `first` the
    bits of a sign and a magnitude of 1, and `more` those of each further step, all
    counted anew on the present codes every `frequency` steps. So that rows and columns
    empty together, which a coder that looks at neighbours profits from. The price is
    steered until the code length of all weights of the recipe entry is the goal, which
    comes down geometrically over the first 55 % of the training; after 75 % it stays,
    after 85 % the zeros and the steps do, these rounded to bfloat16, which takes 2
    bytes less a tensor. Rounding comes in over the first 12 %.

    Select biases as well (`rank(1, 2, 4)`): at some kilobytes they are most of the
    file. Give the goal some tenths more than the file may have: the count is that of a
    coder without context, and the description of the model comes on top.

    State: two numbers a weight tensor (the step, trained and then fixed), two float32 a
    weight (price of becoming non-zero, mask), and the price, which all weights of the
    entry share.

    Args:
        goal: bytes of all codes of the recipe entry.
        end: step at which the training ends.
        begin: step at which it begins.
        frequency: steps between two counts.

    Raises:
        ConfigError: for no bytes, or steps out of order.

    Example:
        >>> RateAware(6_000, end=10_000).goal_at(0.0, first=60_000)
        60000.0

    Source: Oktay et al., "Scalable Model Compression by Entropy Penalized
    Reparameterization" (arXiv:1906.06624), section 2; Wiedemann et al., "DeepCABAC"
    (arXiv:1907.11900), for counts as the model of the rate.
    Differs from the paper: no density is trained; the code length of the present codes
    stands for it.
    """

    fallen = FALLEN
    start = 2e-8

    def __init__(self, goal: int, *, end: int, begin: int = 0, frequency: int = 10):
        super().__init__(goal, end=end, begin=begin, frequency=frequency)

    def init_group(self, targets, weights):
        shared = self.shared() | {"hard": State(np.array(0.0, "float32"))}
        return [{**shared, **_own(weight)} for weight in weights]

    def init(self, target, weight):
        return self.init_group([target], [weight])[0]

    def apply(self, weight, state, context):
        fixed = state["fixed"]
        step = ops.where(fixed > 0, fixed, ops.exp(state["log_step"]))
        phi = weight / step
        if context.training:
            context.add_loss(state["price"] * _rate(phi, state))
        rounded = phi + ops.stop_gradient(ops.round(phi) - phi) * state["hard"]
        return rounded * step * state["mask"]

    def update(self, group, step):
        if step < self.begin:
            return [{} for _ in group]
        done = self.progress(step)
        found = [counted(_codes(m.weight, m.state)) for m in group]
        size = sum(bits for bits, _, _ in found) / 8
        shared = {
            **self.steer(group[0].state, size, done, until=PRICED),
            "hard": np.array(min(1.0, done / HARD), "float32"),
        }
        made = []
        for member, (_, becoming, more) in zip(group, found, strict=True):
            own = {"becoming": becoming, "more": np.array(more, "float32"), **shared}
            if done >= KEPT:
                own["mask"] = (_codes(member.weight, member.state) != 0).astype("f4")
                own["fixed"] = _scale(member.state).astype(dtype_of("bfloat16"))
                own["fixed"] = own["fixed"].astype("float32")
            made.append(own)
        return made

    def finalize(self, target, weight, state):
        scale = _scale(state)
        codes = _codes(weight, state).astype("int64")
        if codes.size and np.ptp(codes) >= 1 << 16:
            return (codes * scale).astype(weight.dtype), None
        return (codes * scale).astype(weight.dtype), Grid(codes=codes, scale=scale)


def _own(weight: np.ndarray) -> dict[str, State]:
    spread = float(np.std(weight.astype("float64"))) if weight.size > 1 else 0.0
    # A bias that is still 0 has no spread of its own.
    step = max(1.5 * spread, 0.02)
    return {
        "log_step": State(np.array(np.log(step), "float32"), trainable=True),
        "fixed": State(np.array(0.0, "float32")),
        "becoming": State(np.ones(weight.shape, "float32")),
        "more": State(np.array(1.0, "float32")),
        "mask": State(np.ones(weight.shape, "float32")),
    }


def _scale(state: dict[str, np.ndarray]) -> np.ndarray:
    fixed = state["fixed"].astype("float32")
    return fixed if fixed > 0 else np.exp(state["log_step"].astype("float32"))


def _codes(weight: np.ndarray, state: dict[str, np.ndarray]) -> np.ndarray:
    return np.round(weight.astype("float32") / _scale(state)) * state["mask"]


def _rate(phi, state):
    """Bits, linear between whole numbers."""
    size = ops.abs(phi)
    near, far = ops.minimum(size, 1.0), ops.maximum(size - 1.0, 0.0)
    return ops.sum(state["mask"] * (state["becoming"] * near + state["more"] * far))


def counted(codes: np.ndarray) -> tuple[float, np.ndarray, float]:
    """Code length of whole numbers, and the slopes of it.

    Returns:
        Bits; for each element those of becoming 1 or -1 instead of 0; those of each
        further step of magnitude.
    """
    q = codes.reshape(-1, codes.shape[-1]) if codes.ndim > 1 else codes.reshape(1, -1)
    present = q != 0
    p = expected_shares(present)
    magnitudes = np.abs(q[present])
    mean = float(magnitudes.mean()) if magnitudes.size else 1.0
    rho = 1 - 1 / max(mean, 1.02)  # geometric from 1 on
    first, more = 1 - np.log2(1 - rho), -np.log2(rho)
    bits = -np.log2(np.where(present, p, 1 - p)).sum()
    bits += magnitudes.size * first + (magnitudes - 1).sum() * more
    becoming = np.maximum(np.log2((1 - p) / p) + first, 0.5)
    return float(bits), becoming.reshape(codes.shape).astype("float32"), float(more)


def expected_shares(present: np.ndarray) -> np.ndarray:
    """The share of non-zeros that its row and column let expect, for each element."""
    density = min(max(float(present.mean()), 1e-4), 0.995)
    rows, columns = present.shape
    by_row = (present.sum(1) + _PRIOR * density) / (columns + _PRIOR)
    by_column = (present.sum(0) + _PRIOR * density) / (rows + _PRIOR)
    odds = _odds(by_row)[:, None] + _odds(by_column)[None] - _odds(np.array(density))
    p: np.ndarray = np.clip(1 / (1 + np.exp(-odds)), 2e-4, 0.98)
    return p


def _odds(p: np.ndarray) -> np.ndarray:
    p = np.clip(p, 1e-5, 0.995)
    return np.log(p / (1 - p))
