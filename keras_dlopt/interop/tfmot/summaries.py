"""How sparse weights are in training, for TensorBoard, under TFMOT's name."""

import os
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from keras_dlopt.errors import ConfigError
from keras_dlopt.runtime.values import to_numpy
from keras_dlopt.transforms.updating import hosts


class PruningSummaries(keras.callbacks.Callback):
    """`tfmot.sparsity.keras.PruningSummaries`: sparsity and epoch logs for TensorBoard.

    Writes the share of zeros of each pruned weight, as the layer sees it, as
    `<path of the weight>/sparsity` when an epoch begins, and the logs of each epoch as
    `epoch_<name>`. TensorBoard need not be installed where it trains.

    Args:
        log_dir: folder of the logs.
        update_freq: `"epoch"`.
        **kwargs: none; options of `keras.callbacks.TensorBoard` belong to that one.

    Raises:
        ConfigError: for other options.

    Example:
        >>> callbacks = [PruningSummaries(log_dir="logs")]
    """

    def __init__(
        self, log_dir: str | os.PathLike, update_freq: Any = "epoch", **kwargs: Any
    ):
        super().__init__()
        if kwargs or update_freq != "epoch":
            given = {**kwargs, "update_freq": update_freq}
            raise ConfigError(
                "PruningSummaries writes once an epoch and takes no other options. "
                f"Received: {given}. Give them to a keras.callbacks.TensorBoard beside "
                "it."
            )
        self.log_dir = os.fspath(log_dir)
        self._writer: Any = None

    def on_train_begin(self, logs: Any = None) -> None:
        import tensorflow as tf

        self._writer = tf.summary.create_file_writer(self.log_dir)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        found = sparsity_by_weight(self.model)
        step = int(to_numpy(self.model.optimizer.iterations))
        self._write({f"{path}/sparsity": v for path, v in found.items()}, step)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._write({f"epoch_{k}": v for k, v in (logs or {}).items()}, epoch)

    def on_train_end(self, logs: Any = None) -> None:
        self._writer.close()

    def _write(self, values: Mapping[str, float], step: int) -> None:
        import tensorflow as tf

        # What tf.summary.scalar does, which wants the package tensorboard.
        kind = tf.compat.v1.SummaryMetadata()
        kind.plugin_data.plugin_name = "scalars"
        with self._writer.as_default():
            for name, value in values.items():
                number = tf.constant(value, tf.float32)
                tf.summary.write(name, number, step=step, metadata=kind)
        self._writer.flush()


def sparsity_by_weight(model: keras.Model) -> dict[str, float]:
    """Path -> share of zeros of every transformed weight, as its layer sees it."""
    found = {}
    for host in hosts(model):
        for group in host.groups:
            for slot in group.slots:
                if slot.target.variable is not None:
                    seen = keras.ops.convert_to_numpy(slot.effective(group.transform))
                    found[slot.target.path] = float(np.mean(seen == 0))
    return found
