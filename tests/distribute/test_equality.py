"""Replicas train like one device: float32 weights after 20 steps equal to 1e-6."""

import pathlib

import pytest

from catalogue import modules

SCRIPT = pathlib.Path(__file__).with_name("equality.py")
FAST = (
    "keras_clipnorm",
    "ours_accumulating",
    "steps_per_execution_not_dividing",
    "uneven_batches",
    "loss_before_replicas_meet",
)
# Relative to max(1, |weight|). The sums over a batch are taken in another order, which
# moves the last bit of a gradient (6e-8); 20 steps add some of those up.
TOLERANCE = 1e-6
# These turn a last bit into more: eigenvectors of nearly equal eigenvalues, quotients
# of small differences, a normalization of two examples. They are held to float64's
# rounding below.
AMPLIFIES = {
    ("SOAP", 2): 5e-4,
    ("SOAP", 4): 5e-4,
    ("LBFGS", 2): 5e-4,
    ("LBFGS", 4): 5e-3,
    ("apart_4", 4): 1e-2,
}
TOLERANCE_FLOAT64 = 1e-11

pytestmark = pytest.mark.dist


def check(found, tolerances=None, usual=TOLERANCE):
    wrong = [
        [name, count, difference, text[-1500:]]
        for name, count, difference, text in found
        if text or not 0 <= difference <= (tolerances or {}).get((name, count), usual)
    ]
    assert not wrong
    assert found


@pytest.mark.timeout(300)
def test_a_few_set_ups(results):
    check(results(SCRIPT, "own:", "2", *FAST, seconds=280))


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_every_set_up(results):
    check(results(SCRIPT, "own:", "2,4", seconds=2900), AMPLIFIES)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("module", modules())
def test_the_whole_catalogue(results, module):
    found = results(SCRIPT, f"catalogue:{module}", "2,4", seconds=3500)
    check(found, AMPLIFIES)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["SOAP", "LBFGS", "apart_4"])
def test_those_that_amplify_are_equal_in_float64(results, name):
    group = "own:" if name == "apart_4" else "catalogue:optimizers"
    options = (group, "2,4", name, "--float64")
    check(results(SCRIPT, *options, seconds=880), usual=TOLERANCE_FLOAT64)
