"""What the callbacks refuse where no other test brings them to it."""

import types

import keras
import numpy as np
import pytest

from keras_dlopt.callbacks import LearningRateFinder
from keras_dlopt.callbacks.in_graph import StepHub, hub_of
from keras_dlopt.callbacks.step_state import StepState
from keras_dlopt.errors import ConfigError, ModelError


def _model():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.1), "mse")
    return model


def test_other_backends_are_refused(monkeypatch):
    model = _model()
    monkeypatch.setattr(keras.backend, "backend", lambda: "torch")
    with pytest.raises(ModelError, match="tensorflow and jax backends.*'torch'"):
        hub_of(model)


def test_a_distribution_is_refused(monkeypatch):
    hub = StepHub(_model())
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    monkeypatch.setattr(keras.distribution, "distribution", lambda: "two devices")
    with pytest.raises(
        ModelError, match="cannot be used with keras.distribution.*'two devices'"
    ):
        hub._around(lambda state, iterator: None)


def test_state_of_another_shape_is_refused():
    variable = keras.Variable(np.zeros(3, "float32"))
    hub = types.SimpleNamespace(
        optimizer_name="SGD", named_variables=lambda: [("guard_0_0", variable)]
    )
    name = np.frombuffer(b"SGD", np.uint8)
    with pytest.raises(
        ConfigError, match=r"state 'guard_0_0' has shape \(2,\), this run's has \(3,\)"
    ):
        StepState(hub).load_own_variables({"optimizer": name, "guard_0_0": np.ones(2)})


def test_a_range_test_without_a_step_is_refused(monkeypatch):
    model = _model()
    monkeypatch.setattr(type(model), "fit", lambda self, *args, **kwargs: None)
    with pytest.raises(ModelError, match="saw no training step.*'epochs'"):
        LearningRateFinder(steps=10).find(model, np.ones((4, 2)), np.ones((4, 1)))
