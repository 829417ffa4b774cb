"""The callback by which `fit` draws on, tells what is spent, and stops."""

import warnings
from typing import Any

import keras
import numpy as np

from keras_dlopt.privacy.drawing import DrawnData
from keras_dlopt.runtime.values import to_numpy


class Budget(keras.callbacks.Callback):
    """Puts `epsilon` into the logs of each epoch; ends training when it is spent.

    Args:
        private: the model.
        batches: what `fit` trains on.
        planned: steps of this `fit`.
        limit: the number of steps at which the budget is spent.
    """

    def __init__(self, private: Any, batches: DrawnData, *, planned: int, limit: int):
        super().__init__()
        # Not `self.model`, which makes JAX' trainer hand over its state.
        self.private, self.batches = private, batches
        self.planned, self.limit = planned, limit
        self.origin = batches.position = batches.origin = self._done()
        self.stopped = False

    def _done(self) -> int:
        return int(np.max(to_numpy(self.private.private_state[0])))

    def with_others(self, callbacks: Any) -> Any:
        """The callbacks with this one first: loggers then see what is spent."""
        if isinstance(callbacks, keras.callbacks.CallbackList):
            callbacks.callbacks.insert(0, self)
            self.set_params(callbacks.params)
            self.set_model(self.private)
            return callbacks
        if callbacks is None:
            callbacks = []
        elif not isinstance(callbacks, list | tuple):
            callbacks = [callbacks]
        return [self, *callbacks]

    def on_epoch_begin(self, epoch, logs=None):
        self.batches.position = self._done()

    def on_train_batch_end(self, batch, logs=None):
        # With several steps an execution, Keras' number may pass the epoch's end.
        done = self.batches.position + min(batch + 1, self.batches.steps)
        if done >= self.limit and not self.stopped:
            self.stopped = True
            self.private.stop_training = True

    def on_epoch_end(self, epoch, logs=None):
        if logs is not None:
            logs["epsilon"] = self.private.epsilon()

    def on_train_end(self, logs=None):
        if self.stopped and self.origin + self.planned > self.limit:
            warnings.warn(
                f"The privacy budget of {self.private.name!r} is spent: epsilon "
                f"{self.private.epsilon():.4g} of {self.private.target:.4g} after "
                f"{self.limit} steps. Training has stopped.",
                stacklevel=2,
            )
