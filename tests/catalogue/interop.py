"""What stands in for TFMOT's objects."""

from catalogue import Case
from keras_dlopt.interop import tfmot

CASES = [
    Case(
        "tfmot.PolynomialDecay",
        "schedule",
        lambda: tfmot.PolynomialDecay(0.1, 0.5, 1, 9, frequency=2),
    ),
    Case("tfmot.ConstantSparsity", "schedule", lambda: tfmot.ConstantSparsity(0.5, 2)),
]
