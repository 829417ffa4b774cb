"""Variables that callbacks keep beside a model."""

import contextlib
from typing import Any

import keras
import numpy as np


def make_slot(model: keras.Model, value: Any) -> keras.Variable:
    """A float32 variable on the model's devices that the model does not track."""
    strategy = getattr(model, "distribute_strategy", None)
    scope = strategy.scope() if strategy is not None else contextlib.nullcontext()
    with scope:
        return keras.Variable(
            np.asarray(value, "float32"),
            dtype="float32",
            trainable=False,
            autocast=False,
            aggregation="only_first_replica",
            name="dlopt_state",
        )


def index_of(variables: list[keras.Variable], wanted: keras.Variable) -> int:
    """Where a variable stands in a list, by identity."""
    return next(i for i, variable in enumerate(variables) if variable is wanted)
