"""Learning-rate callbacks and guards."""

from catalogue import Case
from keras_dlopt import callbacks

CASES = [
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
]
