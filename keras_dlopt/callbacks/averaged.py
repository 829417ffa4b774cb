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
    puts in place only when `fit` ends; `Lookahead` keeps slow weights, which its paper
    evaluates, and nobody puts in place. With this callback they are in the model
    during validation, at the end of each epoch and after `fit`; the next epoch goes on
    from the training weights and the optimizer's state as they were. Of a `Lookahead`
    around an optimizer with averages, those count.

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
        self._put_back()  # a `fit` that was interrupted between two epochs
        self._training = False

    def on_train_begin(self, logs=None):
        optimizer = self.model.optimizer
        if not _averages(optimizer):
            raise ConfigError(
                f"The optimizer {type(optimizer).__name__} keeps no averaged weights. "
                "Compile with use_ema=True, with optimizers.ScheduleFree or Lookahead, "
                "or leave AveragedWeights out."
            )
        self._training = True

        def from_training_weights(variables):
            if self._put_back():
                _finalize(optimizer, variables)
            else:  # a later `fit` without this callback, which broke off in between
                type(optimizer).finalize_variable_values(optimizer, variables)

        _compat.restore_method(optimizer, "finalize_variable_values")
        _compat.replace_method(
            optimizer, "finalize_variable_values", from_training_weights
        )

    def on_epoch_begin(self, epoch, logs=None):
        self._put_back()

    def on_test_begin(self, logs=None):
        if self._training:
            self._put_in()

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
            _finalize(self.model.optimizer, self.model.trainable_variables)
            self._renew()

    def _put_back(self) -> bool:
        held, self._held = self._held, None
        # Steps since then, of a `fit` without this callback, are not thrown away.
        if held is None or not held.holds(self.model.optimizer.iterations):
            return False
        held.restore()
        return True

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


def _inside(optimizer: Any) -> list[Any]:
    """The optimizers that this one hands its gradients to."""
    names = ("inner_optimizer", "base")
    inner = [getattr(optimizer, name, None) for name in names]
    return [o for o in (*inner, *getattr(optimizer, "optimizers", [])) if o is not None]


def _averages(optimizer: Any) -> bool:
    """Whether an optimizer, or one inside it, keeps averages."""
    own = getattr(optimizer, "use_ema", False) or _is_slow(optimizer)
    drifts = "drift" in getattr(optimizer, "slot_names", ())
    return own or drifts or any(map(_averages, _inside(optimizer)))


def _is_slow(optimizer: Any) -> bool:
    """Whether an optimizer is a `Lookahead`."""
    return hasattr(optimizer, "put_slow_weights")


def _finalize(optimizer: Any, variables: Any) -> None:
    """Puts averages in place, and slow weights where there are none."""
    type(optimizer).finalize_variable_values(optimizer, variables)
    _put_slow(optimizer)


def _put_slow(optimizer: Any) -> None:
    if _is_slow(optimizer):
        if not _averages(optimizer.base):
            optimizer.put_slow_weights()
        return
    for inner in _inside(optimizer):
        _put_slow(inner)
