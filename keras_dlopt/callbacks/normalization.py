"""BatchNormalization with fixed statistics late in training."""

from collections.abc import Callable
from typing import Any

import keras

from keras_dlopt import checks
from keras_dlopt.config import Configured
from keras_dlopt.graph import hooks
from keras_dlopt.graph.walk import layers_below


@keras.saving.register_keras_serializable("keras_dlopt")
class FreezeBatchNormalization(Configured, keras.callbacks.Callback):
    """Lets BatchNormalization use its moving statistics in training, from an epoch on.

    In training the layer divides by the spread of each batch, in inference, and in a
    file into which it is folded, by the moving average of it. From `epoch` on both are
    the same: the network trains with the very function that is shipped. Scale and
    offset (gamma, beta) are trained on.

    The train step is traced anew, once. When `fit` ends the layers are as before.

    Args:
        epoch: the first epoch, counted from 0, with fixed statistics.

    Raises:
        ConfigError: for a negative epoch.

    Example:
        >>> callbacks = [FreezeBatchNormalization(epoch=8)]

    Source: Krishnamoorthi (arXiv:1806.08342), section 3.2.2; Li et al. (CVPR 2019),
    section 3.1.
    """

    def __init__(self, epoch: int):
        super().__init__()
        hint = "It is the number of an epoch, counted from 0."
        self.epoch = checks.whole(epoch, name="epoch", least=0, hint=hint)
        self._thaw: list[Callable[[], None]] = []

    def on_epoch_begin(self, epoch, logs=None):
        if epoch < self.epoch or self._thaw:
            return
        layers = layers_below(self.model, keras.layers.BatchNormalization)
        self._thaw = [hooks.attach(layer, _inference) for layer in layers]
        self._retrace()

    def on_train_end(self, logs=None):
        for thaw in self._thaw:
            thaw()
        self._retrace()
        self._thaw = []

    def _retrace(self) -> None:
        if self._thaw:
            assert self.model is not None
            self.model.make_train_function(force=True)


def _inference(call: hooks.Called, given: hooks.Given) -> Any:
    """A call with training=False, whatever it is told."""
    return call(given.changed("training", False))
