"""Base class of the callbacks that work inside the train step."""

import keras

from keras_dlopt.callbacks.controller import Controller
from keras_dlopt.callbacks.in_graph import hub_of
from keras_dlopt.config import Configured
from keras_dlopt.runtime import to_numpy


class InGraphCallback(Configured, keras.callbacks.Callback):
    """A callback whose work is traced into the train step.

    Subclasses write `make_controller`, and keep the constructor's arguments as
    attributes of the same names. The rate at the end of each epoch is added to the
    logs as `learning_rate`.

    Each `fit` starts the state afresh, unless `keras.callbacks.BackupAndRestore`
    resumes it: the state is written and read with the model's weights.
    """

    # Nothing here runs per batch, so Keras need not wait for it.
    async_safe = True

    def __init__(self):
        super().__init__()
        self.controller: Controller = self.make_controller()
        self._training = False

    def make_controller(self) -> Controller:
        """The work to put into the train step."""
        raise TypeError(f"{type(self).__name__} must define `make_controller`.")

    def set_model(self, model):
        super().set_model(model)
        self._training = False
        hub_of(model).attach(self.controller)

    def on_train_begin(self, logs=None):
        self._training = True

    def on_train_end(self, logs=None):
        self._training = False
        hub_of(self.model).detach(self.controller)

    def on_test_begin(self, logs=None):
        if not self._training:  # given to evaluate(), where nothing is trained
            hub_of(self.model).detach(self.controller)

    def on_predict_begin(self, logs=None):
        self.on_test_begin()

    def on_epoch_end(self, epoch, logs=None):
        if logs is not None:
            logs["learning_rate"] = self.current_rate()

    def current_rate(self) -> float:
        """The learning rate of the coming step."""
        return hub_of(self.model).current_rate()

    def state(self) -> list:
        """The controller's state as NumPy arrays."""
        slots = [to_numpy(v) for v in hub_of(self.model).slots(self.controller)]
        host = self.controller.host
        return slots if host is None else [*slots, host]
