"""Saves what callbacks keep in the train step together with the model's weights."""

from typing import Any

import keras
import numpy as np

from keras_dlopt.errors import ConfigError
from keras_dlopt.runtime import to_numpy

# Attribute of the model while it trains, and the group in its weight files.
NAME = "dlopt_step_state"


class StepState(keras.layers.Layer):
    """Saves and loads the controllers' variables with the model's weights."""

    def __init__(self, hub: Any):
        super().__init__(name=NAME)
        object.__setattr__(self, "hub", hub)

    def save_own_variables(self, store):
        store["optimizer"] = _label(self.hub.optimizer_name)
        for key, variable in self.hub.named_variables():
            store[key] = to_numpy(variable)
        for key, controller in self.hub.named_hosts():
            store[key] = controller.host

    def load_own_variables(self, store):
        if "optimizer" not in store.keys():  # noqa: SIM118  (a store is no dict)
            return  # saved without these callbacks: start afresh
        _check_optimizer(store, self.hub.optimizer_name)
        for key, variable in self.hub.named_variables():
            if key in store.keys():  # noqa: SIM118
                variable.assign(_of_shape(store, key, tuple(variable.shape)))
        for key, controller in self.hub.named_hosts():
            if key in store.keys():  # noqa: SIM118
                value = _of_shape(store, key, controller.host.shape)
                controller.host = value.astype("float64")


def _of_shape(store, key: str, shape: tuple[int, ...]) -> np.ndarray:
    value = np.asarray(store[key])
    if value.shape != shape:
        raise ConfigError(
            f"The checkpoint's state {key!r} has shape {value.shape}, this run's has "
            f"{shape}. Resume with the callbacks, model and arguments that the "
            "checkpoint was saved with, or delete the checkpoint to start afresh."
        )
    return value


def _label(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), dtype=np.uint8)


def _check_optimizer(store, name: str) -> None:
    saved = bytes(np.asarray(store["optimizer"]).astype(np.uint8)).decode()
    if saved != name:
        raise ConfigError(
            f"The checkpoint was saved by a run with the optimizer {saved}, this run "
            f"has {name}. Compile the model with {saved} to resume, or delete the "
            "checkpoint to start afresh."
        )
