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
]
