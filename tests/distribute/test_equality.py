"""Replicas train like one device: weights, history, and all that callbacks are told.

Equal to 1e-6 in float32, after 20 steps.
"""

import pathlib

import pytest

from catalogue import modules
from contracts.equality import AMPLIFIES, TOLERANCE

SCRIPT = pathlib.Path(__file__).with_name("equality.py")
FAST = (
    "keras_clipnorm",
    "ours_accumulating",
    "ours_ema_overwrite",
    "batch_normalization",
    "apart_2",
    "apart_4",
    "distillation",
    "steps_per_execution_not_dividing",
    "uneven_batches",
    "unknown_in_calls_of_three",
    "loss_before_replicas_meet",
)
FAST_LOGS = ("two_outputs_unknown", "divided_by_weights", "masked", "sum_and_mean")
TOLERANCE_FLOAT64 = 1e-11
# AdamW divides the rounding error of a gradient that is 0 in exact arithmetic, such as
# that of a key's bias, by its own size. Measured: 4e-5 and 3e-6.
LARGER = {
    ("transformer_adamw", 2): 2e-4,
    ("transformer_adamw", 4): 2e-4,
    ("resnet_adamw", 2): 1e-5,
    ("resnet_adamw", 4): 1e-5,
}

pytestmark = pytest.mark.dist


def check(found, tolerances=None, usual=TOLERANCE):
    wrong = [
        [name, count, difference, text[-1500:]]
        for name, count, difference, text in found
        if text or not 0 <= difference <= (tolerances or {}).get((name, count), usual)
    ]
    assert not wrong
    assert found


@pytest.mark.timeout(600)
def test_a_few_set_ups(results):
    check(results(SCRIPT, "own:", "2,4", *FAST, seconds=580), AMPLIFIES)


@pytest.mark.timeout(600)
def test_logs_on_batches_that_replicas_share_unequally(results):
    check(results(SCRIPT, "logs:", "4", *FAST_LOGS, seconds=580))


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_logs_of_every_kind_of_loss(results):
    check(results(SCRIPT, "logs:", "2,4", seconds=2900))


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_every_set_up(results):
    check(results(SCRIPT, "own:", "2,4", seconds=2900), AMPLIFIES)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("model", ["transformer", "resnet", "embedding"])
def test_a_larger_model_in_float64(results, model):
    found = results(SCRIPT, "models:", "2", f"{model}_adamw", "--float64", seconds=580)
    check(found, usual=TOLERANCE_FLOAT64)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_larger_models(results, precision):
    wide = precision == "float64"
    options = ["--float64"] if wide else []
    found = results(SCRIPT, "models:", "2,4", *options, seconds=1700)
    if wide:
        check(found, usual=TOLERANCE_FLOAT64)
    else:
        check(found, LARGER)


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
