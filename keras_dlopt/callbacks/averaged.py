"""Validation and checkpoints on the averaged weights."""

from typing import Any

import keras
import numpy as np

from keras_dlopt import _compat
from keras_dlopt.callbacks.preparing import state_of
from keras_dlopt.callbacks.snapshot import Snapshot
from keras_dlopt.config import Configured
from keras_dlopt.errors import ConfigError
from keras_dlopt.graph.walk import layers_below


@keras.saving.register_keras_serializable("keras_dlopt")
class AveragedWeights(Configured, keras.callbacks.Callback):
    """Has validation, checkpoints and early stopping see the averaged weights.

    An optimizer with `use_ema=True`, or `ScheduleFree`, keeps an average that Keras
    puts in place only when `fit` ends. With this callback the averages are in the model
    during validation and at the end of each epoch; the next epoch goes on from the
    training weights and the optimizer's state as they were.

    Its place in the list matters: a `ModelCheckpoint` or `EarlyStopping` after it sees
    the averages, a `BackupAndRestore` before it the weights to resume from.

    The moving statistics of BatchNormalization belong to the training weights. With
    `statistics_from` they are taken again for the averages, as the mean over these
    batches, each time the averages are put in place.

    Args:
        statistics_from: batches of inputs, such as a `tf.data.Dataset` of them or a
            list of arrays; None to leave the statistics as they are.

    Raises:
        ConfigError: when training starts, for an optimizer without averages.

    Example:
        >>> AveragedWeights().statistics_from is None
        True

    Source: Izmailov et al., "Averaging Weights Leads to Wider Optima and Better
    Generalization" (arXiv:1803.05407), section 3.2 on the statistics.
    """

    def __init__(self, *, statistics_from: Any = None):
        super().__init__()
        self.statistics_from = statistics_from
        self._held: Snapshot | None = None
        self._training = False

    def set_model(self, model):
        super().set_model(model)
        self._held, self._training = None, False

    def on_train_begin(self, logs=None):
        optimizer = self.model.optimizer
        if not _averages(optimizer):
            raise ConfigError(
                f"The optimizer {type(optimizer).__name__} keeps no averaged weights. "
                "Compile with use_ema=True or with optimizers.ScheduleFree, or leave "
                "AveragedWeights out."
            )
        self._training = True
        finalize = optimizer.finalize_variable_values

        def from_training_weights(variables):
            self._put_back()
            finalize(variables)

        _compat.restore_method(optimizer, "finalize_variable_values")
        _compat.replace_method(
            optimizer, "finalize_variable_values", from_training_weights
        )

    def on_epoch_begin(self, epoch, logs=None):
        self._put_back()

    def on_test_begin(self, logs=None):
        if self._training:
            self._put_in()

    def on_test_end(self, logs=None):
        self._put_back()

    def on_epoch_end(self, epoch, logs=None):
        self._put_in()

    def on_train_end(self, logs=None):
        # `fit` has put the averages in place for good.
        self._training = False
        _compat.restore_method(self.model.optimizer, "finalize_variable_values")
        self._renew()

    def _put_in(self) -> None:
        if self._held is None:
            self._held = Snapshot(self.model)
            optimizer = self.model.optimizer
            type(optimizer).finalize_variable_values(
                optimizer, self.model.trainable_variables
            )
            self._renew()

    def _put_back(self) -> None:
        if self._held is not None:
            self._held.restore()
            self._held = None

    def _renew(self) -> None:
        """Takes the statistics of BatchNormalization as means over the batches."""
        if self.statistics_from is None:
            return
        layers = [
            layer
            for layer in layers_below(self.model)
            if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable
        ]
        kept = [layer.momentum for layer in layers]
        statistics = {id(v) for layer in layers for v in layer.non_trainable_variables}
        others = [v for v in state_of(self.model) if id(v) not in statistics]
        values = [np.array(keras.ops.convert_to_numpy(v.value)) for v in others]
        try:
            for number, batch in enumerate(self.statistics_from):
                for layer in layers:
                    layer.momentum = number / (number + 1)
                self.model(batch, training=True)
        finally:
            for layer, momentum in zip(layers, kept, strict=True):
                layer.momentum = momentum
            for variable, value in zip(others, values, strict=True):
                variable.assign(value)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, without the data."""
        return {"statistics_from": None}


def _averages(optimizer: Any) -> bool:
    """Whether an optimizer, or one inside it, keeps averages."""
    inner = [getattr(optimizer, name, None) for name in ("inner_optimizer", "base")]
    inner += getattr(optimizer, "optimizers", [])
    own = getattr(optimizer, "use_ema", False)
    drifts = "drift" in getattr(optimizer, "slot_names", ())
    return own or drifts or any(_averages(o) for o in inner if o is not None)
