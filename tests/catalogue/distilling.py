"""Distillation: the terms' configs, and models that train with them."""

import keras

import keras_dlopt as dlopt
from catalogue import CONTRACTS, Case
from keras_dlopt import distill

SHAPE = (6, 6, 2)
TERMS = {
    "LogitsDistillation": lambda: distill.LogitsDistillation(2.0, weight=0.5),
    "DecoupledDistillation": lambda: distill.DecoupledDistillation(2.0, beta=2.0),
    "DIST": lambda: distill.DIST(2.0, gamma=0.5),
    "OutputDistillation": lambda: distill.OutputDistillation("huber", weight=0.5),
    "FeatureDistillation": lambda: distill.FeatureDistillation("maps", "maps"),
    "AttentionTransfer": lambda: distill.AttentionTransfer("maps", "maps"),
    "RelationalDistillation": lambda: distill.RelationalDistillation(
        "flat", "flat", distance=1.0, angle=2.0
    ),
}
IN_A_MODEL = {
    contract: "held to it in the models `distill.terms` and `distill.average`"
    for contract in CONTRACTS
    if contract != "config"
}


def _net(width):
    return keras.Sequential(
        [
            keras.Input(SHAPE),
            keras.layers.Conv2D(width, 3, use_bias=False, name="maps"),
            keras.layers.ReLU(),
            keras.layers.Flatten(name="flat"),
            keras.layers.Dense(4),
        ],
        name=f"net_{width}",
    )


def _terms():
    return distill.distill(_net(3), _net(5), [make() for make in TERMS.values()])


def _average():
    """A pruned and quantized student that learns from its own moving average."""
    rule = dlopt.Prune(0.5) >> dlopt.FakeQuant(bits=4)
    student = dlopt.transform(_net(3), dlopt.Recipe([(dlopt.named("kernel"), rule)]))
    return distill.distill(student, distill.MeanTeacher(0.8))


CASES = [
    *(Case(name, "term", make, exempt=IN_A_MODEL) for name, make in TERMS.items()),
    Case("MeanTeacher", "term", distill.MeanTeacher, exempt=IN_A_MODEL),
    Case("distill.terms", "model", _terms, input_shape=SHAPE),
    Case("distill.average", "model", _average, input_shape=SHAPE),
]
