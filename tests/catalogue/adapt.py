"""What fine-tuning adds: transforms that hold or widen weights, unfreezing."""

import keras_dlopt as dlopt
from catalogue import Case
from keras_dlopt import adapt

RETRACED = {"no_retrace": "each stage is a train step of its own, traced anew"}
CASES = [
    Case("LowRankDelta", "transform", lambda: adapt.LowRankDelta(2, alpha=4.0)),
    Case("Frozen", "transform", lambda: adapt.Frozen() >> dlopt.FakeQuant(bits=8)),
    Case("L2SP", "transform", lambda: dlopt.Prune(0.5) >> adapt.L2SP(0.1)),
    Case(
        "GradualUnfreezing",
        "callback",
        lambda: adapt.GradualUnfreezing([(2, dlopt.named("kernel"))], unit="step"),
        exempt={
            **RETRACED,
            "built_late": "refused: its stages name weights",
            "jax": "refused by name: the train step is TensorFlow's",
        },
    ),
]
