"""Learning-rate callbacks and guards."""

import keras

from catalogue import Case
from keras_dlopt import callbacks, schedules


def _momentum():
    return callbacks.ScheduledMomentum(schedules.OneCycle(0.1, steps=4))


CASES = [
    Case(
        "AveragedWeights",
        "callback",
        callbacks.AveragedWeights,
        optimizer=lambda: keras.optimizers.SGD(0.05, use_ema=True, ema_momentum=0.9),
    ),
    Case(
        "CompressionLogger",
        "callback",
        lambda: callbacks.CompressionLogger(details=True),
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
        optimizer=lambda: keras.optimizers.SGD(0.05, momentum=0.9),
    ),
    # The model of the contract has no such layer; tests/callbacks has one that has.
    Case(
        "FreezeBatchNormalization",
        "callback",
        lambda: callbacks.FreezeBatchNormalization(epoch=1),
    ),
]
