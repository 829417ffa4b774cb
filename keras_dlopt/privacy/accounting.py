r"""How much privacy a training spends, from the sampling that it really uses.

A step of DP-SGD adds Gaussian noise of deviation sigma C to the sum of gradients, each
of norm C at most. What that spends depends on how the examples of a step were drawn:

- `"poisson"`: each example is in each batch with probability q, on its own. Steps are
  Poisson-subsampled Gaussian mechanisms, composed by `dp-accounting`.
- `"shuffled"`: each example is in one batch of each pass. No published bound makes the
  order count, so a pass costs what one Gaussian mechanism costs, without subsampling.

Neighbours differ by one example, added or left out (`"shuffled"`: put to nothing, so
that the other batches stay).
"""

import functools
import math
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np

from keras_dlopt import checks
from keras_dlopt.config import Value, frozen
from keras_dlopt.errors import ConfigError, require

SAMPLINGS = ("poisson", "shuffled")
ACCOUNTANTS = ("pld", "rdp")
# Width of the cells in which losses of privacy are counted, always rounded up.
_CELL = 1e-3
# Of Renyi divergences. Those below 2 fail to converge for large rates.
_ORDERS = (*(1 + x / 4 for x in range(4, 100)), *range(26, 128), 256, 512)
# More noise than this hides everything anyhow.
_MOST_NOISE = 1e6
# With less a single step costs more than any budget, and takes long to count.
_LEAST_NOISE = 0.2
# How near below the target the epsilon of the noise must be, and what is aimed at.
_NEAR, _AIM = 0.995, 0.998
# How often is counted in a search, and how often by a guess at most.
_TURNS, _GUESSES = 100, 12
_MOST_STEPS = 10**9


@keras.saving.register_keras_serializable("keras_dlopt")
@frozen(kw_only=True)
class Spent(Value):
    """Steps of one kind: what a ledger of privacy holds.

    Attributes:
        noise_multiplier: deviation of the noise in units of the clipping norm.
        rate: share of the examples that a batch has, in the mean.
        steps: how many.
        sampling: `"poisson"` or `"shuffled"`.
    """

    noise_multiplier: float
    rate: float
    steps: int
    sampling: str = "poisson"

    def __post_init__(self) -> None:
        self.keep(
            noise_multiplier=checks.rate(
                self.noise_multiplier, name="noise_multiplier"
            ),
            rate=checks.share(self.rate, name="rate"),
            steps=checks.whole(self.steps, name="steps", least=0),
            sampling=checks.choice(self.sampling, name="sampling", choices=SAMPLINGS),
        )

    @property
    def passes(self) -> int:
        """How often one example may have been used, where batches are shuffled."""
        batches = math.ceil(1 / self.rate - 1e-9)
        return math.ceil(self.steps / batches)

    @property
    def charged(self) -> int:
        """How many mechanisms one example is counted for."""
        return self.steps if self.sampling == "poisson" else self.passes

    @property
    def kind(self) -> "Spent":
        """One step of the same."""
        return Spent(**self.get_config() | {"steps": 1})


def epsilon(
    spent: Spent | Iterable[Spent],
    *,
    delta: float = 1e-5,
    accountant: str = "pld",
) -> float:
    """The epsilon of (epsilon, delta) differential privacy that steps have spent.

    Args:
        spent: steps of one kind, or of several one after the other.
        delta: probability that the bound does not hold, below 1 / examples.
        accountant: `"pld"`, distributions of the privacy loss, the tighter one;
            `"rdp"`, Renyi divergences.

    Returns:
        An upper bound; `inf` without noise.

    Raises:
        ConfigError: for anything that is no `Spent`, and a delta not in (0, 1).
        MissingDependencyError: without `dp-accounting`.

    Example:
        >>> day = Spent(noise_multiplier=1.1, rate=256 / 60_000, steps=60 * 234)
        >>> 2.0 < epsilon(day) < epsilon(day, accountant="rdp") < 3.0
        True
    """
    ledger = (spent,) if isinstance(spent, Spent) else tuple(spent)
    for i, one in enumerate(ledger):
        checks.instance(one, Spent, name=f"spent[{i}]")
    delta = checks.fraction(delta, name="delta")
    checks.choice(accountant, name="accountant", choices=ACCOUNTANTS)
    ledger = tuple(one for one in ledger if one.steps)
    return _epsilon(ledger, delta, accountant)


@functools.lru_cache(maxsize=512)
def _epsilon(ledger: tuple[Spent, ...], delta: float, accountant: str) -> float:
    if not ledger:
        return 0.0
    if any(one.noise_multiplier == 0 for one in ledger):
        return math.inf
    needed()
    return (_by_rdp if accountant == "rdp" else _by_pld)(ledger, delta)


def needed() -> None:
    """Raises `MissingDependencyError` where the accountant is not installed."""
    require("dp_accounting", extra="privacy", purpose="counting what privacy is spent")


def _by_pld(ledger: tuple[Spent, ...], delta: float) -> float:
    from dp_accounting.pld import PLDAccountant

    counted = PLDAccountant(value_discretization_interval=_CELL)
    for one in ledger:
        counted.compose(_event(one), one.charged)
    return float(counted.get_epsilon(delta))


def _by_rdp(ledger: tuple[Spent, ...], delta: float) -> float:
    from dp_accounting.rdp import compute_epsilon

    total = sum(one.charged * _divergences(one.kind) for one in ledger)
    return float(compute_epsilon(_ORDERS, total, delta)[0])


@functools.lru_cache(maxsize=512)
def _divergences(one: Spent) -> np.ndarray:
    """Renyi divergences of one step; they add up."""
    from dp_accounting.rdp import RdpAccountant

    rdp: np.ndarray = RdpAccountant(_ORDERS).compose(_event(one)).rdp
    return rdp


def _event(one: Spent) -> Any:
    import dp_accounting

    gaussian = dp_accounting.GaussianDpEvent(one.noise_multiplier)
    if one.sampling == "shuffled" or one.rate == 1:
        return gaussian
    return dp_accounting.PoissonSampledDpEvent(one.rate, gaussian)


def noise_multiplier(
    target: float,
    *,
    rate: float,
    steps: int,
    delta: float = 1e-5,
    sampling: str = "poisson",
    accountant: str = "pld",
    after: Iterable[Spent] = (),
) -> float:
    """The least noise under which so many steps stay within an epsilon.

    Args:
        target: the epsilon to stay within.
        rate: batch size / examples.
        steps: how many are planned.
        delta: as of `epsilon`.
        sampling: `"poisson"` or `"shuffled"`.
        accountant: as of `epsilon`.
        after: what has been spent before.

    Returns:
        A noise multiplier whose epsilon is at most the target, and at least 99.5 % of
        it; 0.2 where less would do.

    Raises:
        ConfigError: where what was spent before leaves nothing.

    Example:
        >>> sigma = noise_multiplier(3.0, rate=256 / 60_000, steps=60 * 234)
        >>> 0.9 < sigma < 1.1
        True
    """
    target = checks.positive(target, name="target")
    steps = checks.count(steps, name="steps")
    before = tuple(after)
    used = epsilon(before, delta=delta, accountant=accountant)
    if used >= target:
        raise spent_text(used, target)

    def of(sigma: float) -> float:
        more = Spent(noise_multiplier=sigma, rate=rate, steps=steps, sampling=sampling)
        return epsilon((*before, more), delta=delta, accountant=accountant)

    low, high, guess = _LEAST_NOISE, math.inf, 1.0
    for turn in range(_TURNS):
        found = of(guess)
        if found <= target:
            high = guess
            if found >= _NEAR * target or low >= high:
                break
        else:
            low = guess
            if low > _MOST_NOISE:
                raise spent_text(used, target)
        # Epsilon falls about as the noise grows.
        guess = guess * min(found / (_AIM * target), 4.0)
        guess = _inside(guess, low, min(high, 4 * low), turn)
    return high


def _inside(guess: float, low: float, high: float, turn: int) -> float:
    """A guess between two bounds; the middle where guessing takes long."""
    if low < guess < high and turn < _GUESSES:
        return guess
    return (low + high) / 2


def steps_within(
    target: float,
    *,
    noise_multiplier: float,
    rate: float,
    delta: float = 1e-5,
    sampling: str = "poisson",
    accountant: str = "pld",
    after: Iterable[Spent] = (),
) -> int:
    """How many steps fit into an epsilon; 0 where not even one does.

    Args:
        target: the epsilon to stay within.
        noise_multiplier: deviation of the noise in units of the clipping norm.
        rate: batch size / examples.
        delta: as of `epsilon`.
        sampling: `"poisson"` or `"shuffled"`.
        accountant: as of `epsilon`.
        after: what has been spent before.

    Example:
        >>> steps_within(3.0, noise_multiplier=1.1, rate=256 / 60_000) > 60 * 234
        True
    """
    target = checks.positive(target, name="target")
    before = tuple(after)

    def of(steps: int) -> float:
        more = Spent(
            noise_multiplier=noise_multiplier,
            rate=rate,
            steps=steps,
            sampling=sampling,
        )
        return epsilon((*before, more), delta=delta, accountant=accountant)

    low, high, guess = 0, _MOST_STEPS, 1
    for turn in range(_TURNS):
        found = of(guess)
        low, high = (guess, high) if found <= target else (low, guess)
        if high - low <= 1:
            break
        # Epsilon grows about as the root of the steps does.
        share = (target / found) ** 2 if found else 16.0
        top = min(high, 16 * guess + 1)
        guess = round(_inside(math.floor(guess * min(share, 16.0)), low, top, turn))
        guess = min(max(guess, low + 1), high - 1)
    return low


def spent_text(used: float, target: float) -> ConfigError:
    """The error for a budget that leaves nothing."""
    return ConfigError(
        f"The privacy budget is spent: epsilon {used:.4g} of {target:.4g} is used up, "
        "and what is left pays for no step. Train no more on these examples, or decide "
        "for a larger epsilon."
    )
