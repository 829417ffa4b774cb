"""Minimal random coding: weights learn what they may be, and chance picks values."""

import math
import zlib
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_dlopt import checks
from keras_dlopt.codecs import candidates
from keras_dlopt.codecs.dtypes import dtype_of
from keras_dlopt.codecs.hints import Grid
from keras_dlopt.errors import ConfigError
from keras_dlopt.transforms.base import State
from keras_dlopt.transforms.towards_bytes import TowardsBytes

# Shares of the training between `begin` and `end`.
FALLEN, CUT, CODED = 0.5, 0.55, 0.98
FASTER = 10.0  # times that a deviation's logarithm changes as fast as a weight
NARROW = 0.1  # of the prior's deviation, that of a weight at the start
LESS = 1.0  # bits of a block's number that its divergence leaves free
FACTORS = (1e-2, 1e2)  # of the price of a block
_CANDIDATES = 2**21  # that are looked at together


@keras.saving.register_keras_serializable("keras_dlopt")
class MinimalRandomCode(TowardsBytes):
    r"""Trains a distribution of weights, and stores the number of a sample of it.

    A weight is the mean of a Gaussian q = N(w, sigma^2) whose deviation is trained too.
    The loss gets the price of the bits that tell a sample of q to one who knows the
    prior p = N(0, prior^2), one deviation a weight tensor:

        training    w_new = w + sigma * epsilon,   epsilon ~ N(0, 1)
        loss + price * sum of KL(q, p) / log(2),
        KL(q, p) = log(prior / sigma) + (sigma^2 + w^2) / (2 prior^2) - 1 / 2

    The price is steered until these bits are the goal, which comes down geometrically
    over half of the training. Then each tensor is cut into blocks whose bits are `bits`
    less one, each with a price of its own, and block by block is written: of 2^bits
    candidates, drawn from p in the same way everywhere, one is chosen with probability
    q / p, and stays; the others learn to live with it. A block takes `bits` bits in a
    file, however many weights it has: those that may be anything take none.

    Start from a trained network, and select biases as well (`rank(1, 2, 4)`). Beside
    the blocks a file has some ten bytes a tensor and the description of the model.

    State: five float32 a weight (logarithm of sigma, which is trained, price, the value
    it was given and whether it was), some numbers a tensor and the price.

    Args:
        goal: bytes of all blocks of the recipe entry. A weight takes 5 bits at most, so
            that a goal above these is not used up.
        end: step at which the training ends.
        begin: step at which it begins.
        bits: of a block, 4 to 16. Twice the time to write for one more, and a sample
            that is nearer to q.
        frequency: steps between two counts.
        seed: of the choice among the candidates.

    Raises:
        ConfigError: for no bytes, other bits, or steps out of order; for a weight of
            more than 2^24 numbers.

    Example:
        >>> MinimalRandomCode(2_000, end=10_000).goal_at(0.0, first=60_000)
        60000.0

    Source: Havasi et al., "Minimal Random Code Learning" (arXiv:1810.00440),
    algorithms 1 and 2.
    Differs from the paper: the goal is reached before the blocks are cut, so that their
    number follows from it; blocks are of one tensor; candidates are whole numbers, with
    deviations from an integer hash, so that every machine decodes the same.
    """

    random = True
    sets_weight = True
    fallen = FALLEN
    start = 1e-8

    def __init__(
        self,
        goal: int,
        *,
        end: int,
        begin: int = 0,
        bits: int = 12,
        frequency: int = 10,
        seed: int = 0,
    ):
        super().__init__(goal, end=end, begin=begin, frequency=frequency)
        self.bits = checks.whole(bits, name="bits", least=4, most=16)
        self.seed = checks.seed(seed)

    def init_group(self, targets, weights):
        for target, weight in zip(targets, weights, strict=True):
            if weight.size > candidates.PLACES:
                raise ConfigError(
                    f"{target.path!r} has {weight.size} numbers, and a random code at "
                    f"most {candidates.PLACES}. Leave it out of the recipe entry, or "
                    "hash it first: hashed_layers()."
                )
        shared = self.shared()
        return [{**shared, **_own(weight)} for weight in weights]

    def init(self, target, weight):
        return self.init_group([target], [weight])[0]

    def apply(self, weight, state, context):
        written = state["written"] > 0
        if not context.training:
            return ops.where(written, state["value"], weight)
        log_sigma = FASTER * state["log_sigma"]
        bits = _divergence(weight, log_sigma, state["prior"], ops)
        price = state["price"] * state["factor"]
        context.add_loss(ops.sum(ops.where(written, 0.0, price * bits)))
        noise = keras.random.normal(weight.shape, seed=context.seed, dtype=weight.dtype)
        drawn = weight + ops.exp(log_sigma) * noise
        return ops.where(written, state["value"], drawn)

    def update(self, group, step):
        if step < self.begin:
            return [{} for _ in group]
        done = self.progress(step)
        found = [self._updated(member, done) for member in group]
        size = sum(bits for bits, _ in found) / 8
        shared = self.steer(group[0].state, size, done, until=CUT)
        return [own | shared for _, own in found]

    def _updated(self, member, done: float) -> tuple[float, dict[str, np.ndarray]]:
        """Bits that a tensor takes in a file, and its new state."""
        own, state = _Posterior(member.target, member.weight, member.state), {}
        if not own.blocks:
            state["prior"] = own.prior = _short(own.spread())
        bits = own.bits()
        size = float(bits[own.first :].sum()) * self.bits / self.wanted
        size += self.bits * own.chosen
        if done >= CUT:
            if not own.blocks:
                own.cut(bits, self.wanted, self.bits)
            state["factor"] = own.placed(own.steered(bits, self.wanted))
            due = (done - CUT) / (CODED - CUT)
            self._write(own, min(own.blocks, math.ceil(own.blocks * due)))
            state |= own.state()
        return size, state

    @property
    def wanted(self) -> float:
        """Bits of a block's divergence."""
        return self.bits - LESS

    def _write(self, own: "_Posterior", last: int) -> None:
        """Chooses values for the blocks below `last` that have none."""
        for block in range(own.chosen, last):
            where = zlib.crc32(own.target.path.encode())
            rng = np.random.default_rng((self.seed, where, block))
            own.write(block, self.bits, rng)

    def finalize(self, target, weight, state):
        own = _Posterior(target, weight, state)
        if not own.blocks:
            own.cut(own.bits(), self.wanted, self.bits)
        self._write(own, own.blocks)
        value, unit = own.state()["value"].astype(weight.dtype), own.unit
        return value, Grid(codes=np.rint(value / unit).astype("int64"), scale=unit)


def _own(weight: np.ndarray) -> dict[str, State]:
    spread = float(np.sqrt(np.mean(np.square(weight, dtype="float64"))))
    # Biases that are still 0 have no spread of their own.
    prior = _short(max(spread, 0.02))
    sigma = np.full(weight.shape, np.log(NARROW * prior) / FASTER, "float32")
    return {
        "log_sigma": State(sigma, trainable=True),
        "prior": State(prior),
        "factor": State(np.ones(weight.shape, "float32")),
        "value": State(np.zeros(weight.shape, "float32")),
        "written": State(np.zeros(weight.shape, "float32")),
        "length": State(np.array(0.0, "float32")),
        "chosen": State(np.array(0.0, "float32")),
    }


def _short(prior) -> np.ndarray:
    """A deviation whose candidates' unit has 2 bytes in a file."""
    unit = np.float32(prior / candidates.DEVIATION)
    short = unit.astype(dtype_of("bfloat16")).astype("float32")
    return np.asarray(short * candidates.DEVIATION, "float32")


def _divergence(mean, log_sigma, prior, xp):
    """Bits of each weight."""
    size = (xp.exp(2 * log_sigma) + mean * mean) / (2 * prior * prior)
    return (xp.log(prior) - log_sigma + size - 0.5) / math.log(2)


class _Posterior:
    """The distribution of a tensor on the host, flat, in the order of places."""

    def __init__(self, target, weight, state):
        self.target, self.shape = target, weight.shape
        self.order = candidates.scattered(weight.size)
        self.prior = state["prior"]
        self.length, self.chosen = int(state["length"]), int(state["chosen"])
        self.mean = self.taken(weight).astype("float64")
        self.log_sigma = FASTER * self.taken(state["log_sigma"]).astype("float64")
        self.value = self.taken(state["value"])
        self.factor = self.taken(state["factor"])

    def taken(self, array):
        """An array of the tensor's shape in the order of places."""
        return array.reshape(-1)[self.order]

    def placed(self, values):
        """The inverse, as float32."""
        flat = np.empty(values.size, "float32")
        flat[self.order] = values
        return flat.reshape(self.shape)

    @property
    def blocks(self) -> int:
        """How many there are, of `length` weights; 0 if it is not cut."""
        return -(-self.mean.size // self.length) if self.length else 0

    @property
    def first(self) -> int:
        """Of the weights that have no value yet."""
        return min(self.chosen * self.length, self.mean.size)

    @property
    def unit(self) -> np.ndarray:
        """What a candidate is a multiple of."""
        return np.asarray(self.prior / candidates.DEVIATION, "float32")

    def spread(self) -> float:
        """The deviation of a prior that costs the fewest bits."""
        return float(np.sqrt(np.mean(self.mean**2 + np.exp(2 * self.log_sigma))))

    def bits(self):
        """The divergence of each weight."""
        return _divergence(self.mean, self.log_sigma, float(self.prior), np)

    def cut(self, bits, wanted: float, number: int) -> None:
        """Cuts it into blocks of so many bits, of lengths that a file can have.

        Args:
            bits: of each weight.
            wanted: bits of the weights of a block.
            number: bits of its number.
        """
        length = math.ceil(bits.size * wanted / max(float(bits.sum()), wanted))
        least, most = number // candidates.DEAR + 1, number * candidates.PER_BIT
        self.length = min(max(length, least), most)

    def steered(self, bits, wanted: float):
        """Factors of the price, which brings each block to its bits."""
        sums = np.add.reduceat(bits, np.arange(0, bits.size, self.length))
        above = np.log(np.maximum(sums, 1e-3) / wanted)
        change = np.exp(np.clip(0.3 * above, -0.1, 0.1))
        factor = self.factor * np.repeat(change, self.length)[: bits.size]
        return np.clip(factor, *FACTORS)

    def write(self, block: int, bits: int, rng) -> None:
        """Chooses a candidate with probability q / p (algorithm 1)."""
        start = block * self.length
        some = slice(start, min(start + self.length, self.mean.size))
        unit = float(self.unit)
        mean, sigma = self.mean[some] / unit, np.exp(self.log_sigma[some]) / unit
        # log q / p is this in powers of the candidate, but for a constant.
        square = 0.5 / candidates.DEVIATION**2 - 0.5 / sigma**2
        square, plain = square.astype("f4"), (mean / sigma**2).astype("f4")
        begin, end = start // candidates.LANES, start + mean.size
        draws = np.arange(begin, -(-end // candidates.LANES))
        own = slice(start - begin * candidates.LANES, end - begin * candidates.LANES)
        step = max(1, _CANDIDATES // mean.size)
        best: tuple[float, Any] = (-np.inf, None)
        for first in range(0, 2**bits, step):
            numbers = np.arange(first, min(first + step, 2**bits))
            codes = candidates.drawn(numbers[:, None], draws)[:, own]
            x = codes.astype("f4")
            likely = x @ plain + (x * x) @ square + rng.gumbel(size=numbers.size)
            at = int(np.argmax(likely))
            best = max(best, (likely[at], codes[at]), key=lambda one: one[0])
        self.value[some] = best[1] * unit
        self.chosen = block + 1

    def state(self) -> dict[str, np.ndarray]:
        """Values so far."""
        numbers = {"length": self.length, "chosen": self.chosen}
        return {
            "value": self.placed(self.value),
            "written": self.placed(np.arange(self.mean.size) < self.first),
            **{name: np.array(one, "float32") for name, one in numbers.items()},
        }
