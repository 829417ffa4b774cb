"""Learning-rate callbacks and guards."""

from catalogue import CONTRACTS, Case
from keras_dlopt import callbacks, schedules


def _momentum():
    return callbacks.ScheduledMomentum(schedules.OneCycle(0.1, steps=4))


CASES = [
    Case(
        "AveragedWeights",
        "callback",
        callbacks.AveragedWeights,
        exempt=dict.fromkeys(
            [contract for contract in CONTRACTS if contract != "config"],
            "refuses the contracts' SGD, which keeps no averages; "
            "tests/callbacks/test_averaged.py trains it",
        ),
    ),
    Case(
        "LossDrivenLearningRate",
        "callback",
        lambda: callbacks.LossDrivenLearningRate(
            start=1e-2, smoothing=2, patience=2, climb=1.5
        ),
    ),
    Case(
        "ReduceOnPlateau",
        "callback",
        lambda: callbacks.ReduceOnPlateau("loss", patience=1, min_delta=10.0),
    ),
    Case(
        "HypergradientLearningRate",
        "callback",
        lambda: callbacks.HypergradientLearningRate(beta=0.2),
    ),
    Case(
        "LearningRateFinder",
        "callback",
        lambda: callbacks.LearningRateFinder(low=1e-4, steps=10),
    ),
    Case(
        "DivergenceGuard",
        "callback",
        lambda: callbacks.DivergenceGuard(explosion=1.0001, smoothing=1),
    ),
    Case(
        "ScheduledMomentum",
        "callback",
        _momentum,
        exempt=dict.fromkeys(
            [contract for contract in CONTRACTS if contract != "config"],
            "refuses the contracts' SGD, which has no momentum; "
            "tests/callbacks/test_momentum.py trains it",
        ),
    ),
]
