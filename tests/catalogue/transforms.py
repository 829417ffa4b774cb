"""The weight and activation transforms."""

import keras_dlopt as dlopt
from catalogue import Case
from keras_dlopt.schedules import ConstantSparsity, PolynomialSparsity

CASES = [
    Case("Prune", "transform", lambda: dlopt.Prune(0.5)),
    Case(
        "Prune-polynomial",
        "transform",
        lambda: dlopt.Prune(PolynomialSparsity(0.7, begin=2, end=6, frequency=2)),
    ),
    Case(
        "Prune-constant",
        "transform",
        lambda: dlopt.Prune(ConstantSparsity(0.5, begin=2, frequency=2)),
    ),
    Case("FakeQuant", "transform", lambda: dlopt.FakeQuant(bits=4)),
    Case(
        "FakeQuant-per-tensor",
        "transform",
        lambda: dlopt.FakeQuant(bits=8, per_channel=False),
    ),
    Case("FakeQuantActivation", "transform", lambda: dlopt.FakeQuantActivation()),
    Case(
        "Chain",
        "transform",
        lambda: (
            dlopt.Prune(PolynomialSparsity(0.5, end=4, frequency=2))
            >> dlopt.Cluster(4, begin=4)
            >> dlopt.FakeQuant(bits=8)
        ),
    ),
]
