"""What is spent, against other ways to count it."""

import math

import numpy as np
import pytest

from keras_dlopt import privacy
from keras_dlopt.errors import ConfigError
from keras_dlopt.privacy import Spent

DELTA = 1e-5


def normal(x):
    """The distribution function of the normal distribution."""
    return np.vectorize(lambda v: 0.5 * math.erfc(-v / math.sqrt(2)))(x)


def solved(delta_of, delta):
    """The epsilon at which a falling function is delta."""
    low, high = 0.0, 100.0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (low, middle) if delta_of(middle) < delta else (middle, high)
    return high


def gaussian(sigma, delta):
    """Balle and Wang 2018, theorem 8."""

    def delta_of(epsilon):
        a, b = 1 / (2 * sigma), epsilon * sigma
        return normal(a - b) - math.exp(epsilon) * normal(-a - b)

    return solved(delta_of, delta)


def subsampled(sigma, rate, steps, delta, *, cell=5e-4, span=40.0):
    """Losses of the Poisson-subsampled Gaussian, convolved with NumPy's FFT.

    Cells hold the loss rounded to the nearest; both directions of neighbours.
    """

    def one(added):
        x = np.linspace(-60 * sigma, 60 * sigma, 1_000_001)
        width = x[1] - x[0]
        plain = np.exp(-(x**2) / (2 * sigma**2))
        moved = np.exp(-((x - 1) ** 2) / (2 * sigma**2))
        scale = width / (sigma * math.sqrt(2 * math.pi))
        mixed = (1 - rate) * plain + rate * moved
        up, down = (plain, mixed) if added else (mixed, plain)
        with np.errstate(divide="ignore", invalid="ignore"):
            loss = np.log(up / down)
        good = np.isfinite(loss) & (up * scale > 1e-18)
        count = int(2 * span / cell)
        cells = np.rint((loss[good] + span) / cell).astype(int)
        mass = np.bincount(
            np.clip(cells, 0, count - 1), (up * scale)[good], minlength=count
        )
        shifted = np.roll(mass, -count // 2)  # loss 0 first
        total = np.fft.ifft(np.fft.fft(shifted) ** steps).real
        losses = (np.arange(count) - count // 2) * cell
        total = np.roll(total, count // 2)

        def delta_of(epsilon):
            over = losses > epsilon
            return np.sum(total[over] * (1 - np.exp(epsilon - losses[over])))

        return solved(delta_of, delta)

    return max(one(True), one(False))


@pytest.mark.parametrize("sigma", [0.7, 1.0, 3.0])
def test_one_step_on_all_is_the_gaussian_mechanism(sigma):
    exact = gaussian(sigma, DELTA)
    once = Spent(noise_multiplier=sigma, rate=1.0, steps=1)
    # The accountant's cells, 1e-3 wide, are rounded up.
    assert exact <= privacy.epsilon(once, delta=DELTA) <= exact + 2e-3
    assert privacy.epsilon(once, delta=DELTA, accountant="rdp") > exact


@pytest.mark.parametrize(
    ("sigma", "rate", "steps"), [(1.0, 0.01, 500), (2.5, 0.07, 300), (0.8, 0.004, 2000)]
)
def test_many_steps_agree_with_a_convolution(sigma, rate, steps):
    spent = Spent(noise_multiplier=sigma, rate=rate, steps=steps)
    tight = privacy.epsilon(spent, delta=DELTA)
    own = subsampled(sigma, rate, steps, DELTA)
    assert tight == pytest.approx(own, rel=0.01)
    loose = privacy.epsilon(spent, delta=DELTA, accountant="rdp")
    assert tight < loose < 1.35 * tight


def test_a_known_figure():
    """The tutorial of TensorFlow Privacy: 60 epochs of MNIST, by moments."""
    spent = Spent(noise_multiplier=1.1, rate=256 / 60_000, steps=60 * 60_000 // 256)
    assert privacy.epsilon(spent, accountant="rdp") == pytest.approx(2.6, abs=0.02)


def test_shuffled_passes_are_gaussians():
    """An example is in one batch of a pass; the steps of a pass cost what one does."""
    spent = Spent(noise_multiplier=4.0, rate=0.1, steps=30, sampling="shuffled")
    assert spent.passes == 3
    exact = gaussian(4.0 / math.sqrt(3), DELTA)
    assert exact <= privacy.epsilon(spent, delta=DELTA) <= exact + 5e-3
    begun = Spent(noise_multiplier=4.0, rate=0.1, steps=21, sampling="shuffled")
    assert begun.passes == 3
    poisson = Spent(noise_multiplier=4.0, rate=0.1, steps=30)
    assert privacy.epsilon(poisson) < privacy.epsilon(spent) / 3


@pytest.mark.parametrize("examples", range(1, 40))
def test_passes_count_the_last_small_batch(examples):
    for size in range(1, examples + 1):
        steps = -(-examples // size)
        made = {"noise_multiplier": 1.0, "rate": size / examples}
        for passes in (1, 3):
            spent = Spent(**made, steps=passes * steps, sampling="shuffled")
            assert spent.passes == passes


def test_noise_and_steps_are_inverse():
    plan = {"rate": 0.05, "delta": DELTA}
    sigma = privacy.noise_multiplier(2.0, steps=200, **plan)
    spent = Spent(noise_multiplier=sigma, rate=0.05, steps=200)
    assert 1.99 < privacy.epsilon(spent, delta=DELTA) <= 2.0
    steps = privacy.steps_within(2.0, noise_multiplier=sigma, **plan)
    assert 200 <= steps <= 203
    more = Spent(noise_multiplier=sigma, rate=0.05, steps=steps + 1)
    assert privacy.epsilon(more, delta=DELTA) > 2.0


def test_what_was_spent_before_counts():
    before = (Spent(noise_multiplier=1.0, rate=0.01, steps=100),)
    fresh = privacy.steps_within(2.0, noise_multiplier=2.0, rate=0.05)
    left = privacy.steps_within(2.0, noise_multiplier=2.0, rate=0.05, after=before)
    assert 0 < left < fresh
    plan = {"rate": 0.05, "steps": 50, "accountant": "rdp"}
    more = privacy.noise_multiplier(2.0, after=before, **plan)
    assert more > privacy.noise_multiplier(2.0, **plan)
    assert privacy.steps_within(0.01, noise_multiplier=0.5, rate=0.5) == 0


def test_nothing_and_no_noise():
    assert privacy.epsilon(()) == 0.0
    assert privacy.epsilon(Spent(noise_multiplier=1.0, rate=0.1, steps=0)) == 0.0
    bare = Spent(noise_multiplier=0.0, rate=0.1, steps=1)
    assert privacy.epsilon(bare) == math.inf


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: privacy.epsilon([3]), r"spent[0] must be a Spent. Received: 3."),
        (
            lambda: privacy.epsilon((), delta=0),
            "delta must be a number in (0, 1). Received: 0.",
        ),
        (
            lambda: privacy.epsilon((), accountant="moments"),
            "accountant must be 'pld' or 'rdp'. Received: 'moments'.",
        ),
        (
            lambda: Spent(noise_multiplier=1.0, rate=2, steps=1),
            "rate must be a number in (0, 1]. Received: 2.",
        ),
        (
            lambda: Spent(noise_multiplier=1.0, rate=1, steps=1, sampling="shufled"),
            "Did you mean 'shuffled'?",
        ),
    ],
)
def test_refusals(call, text):
    with pytest.raises(ConfigError) as caught:
        call()
    assert text in str(caught.value)


def test_a_spent_budget_pays_for_nothing():
    before = (Spent(noise_multiplier=1.0, rate=0.5, steps=100),)
    with pytest.raises(ConfigError, match="The privacy budget is spent: epsilon .* of"):
        privacy.noise_multiplier(1.0, rate=0.5, steps=1, after=before)
