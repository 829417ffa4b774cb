"""The callback that runs scheduled updates between training steps."""

from typing import Any, ClassVar

import keras
import numpy as np
from keras import ops

from keras_dlopt import checks
from keras_dlopt.config import Configured
from keras_dlopt.errors import ConfigError
from keras_dlopt.transforms.batches import fit_data
from keras_dlopt.transforms.host import TransformHost, hosts
from keras_dlopt.transforms.statistics import Statistics

__all__ = ["UpdateTransforms", "hosts"]


@keras.saving.register_keras_serializable("keras_dlopt")
class UpdateTransforms(Configured, keras.callbacks.Callback):
    """Updates masks, centroids and other scheduled state between training steps.

    `TransformedModel.fit` adds it by itself. A model built by hand from
    `TransformedLayer` needs it in `fit(callbacks=...)`. The update runs in NumPy on the
    host and only on the steps that a schedule names; on all others it compares two
    integers. With `steps_per_execution > 1` it runs at the first batch end at or after
    the step that is due.

    Some pruning scores need gradients. They are measured when such an update is due,
    on a few batches, and cost nothing on other steps. `TransformedModel.fit` passes its
    own data on; give `data` where those are a generator, or where the model is built by
    hand. `class_weight` does not enter.

    Args:
        data: arrays `(x, y)`, a `tf.data.Dataset` of batches, or a `PyDataset`, for the
            gradients; None for the data of `TransformedModel.fit`. Not part of the
            config.
        batches: on how many batches.
        batch_size: examples a batch, where the data are arrays; None for `fit`'s own,
            or 32.
        seed: of the draw of examples.

    Raises:
        ConfigError: when training starts, if gradients are needed and there are no
            data to measure them on; for numbers below 1.

    Example:
        >>> callbacks = [UpdateTransforms()]
    """

    encoders: ClassVar = {"data": lambda data: None}

    def __init__(
        self,
        data: Any = None,
        *,
        batches: int = 8,
        batch_size: int | None = None,
        seed: int = 0,
    ):
        super().__init__()
        self.data, self.batches = data, checks.count(batches, name="batches")
        self.batch_size = checks.optional(checks.count, batch_size, name="batch_size")
        self.seed = checks.seed(seed)
        self._fit_data: Any = None
        self._fit_batch_size: int | None = None
        self._hosts: list[TransformHost] = []
        self._statistics: Statistics | None = None
        self._step = 0
        self._due: int | None = None
        self._checked = False

    def offer(self, x, y, *, sample_weight, batch_size, validation_split) -> None:
        """Takes the data of `fit`, used where the constructor was given none."""
        self._fit_data = fit_data(x, y, sample_weight, validation_split)
        self._fit_batch_size = batch_size

    def on_train_begin(self, logs=None):
        self._checked = False
        assert self.model is not None
        self._hosts = hosts(self.model)
        names = sorted(
            {
                name
                for host in self._hosts
                for group in host.groups
                for name in group.transform.statistics
            }
        )
        if not names or all(host.next_update() is None for host in self._hosts):
            self._statistics = None
            return
        data = self._fit_data if self.data is None else self.data
        if data is None:
            raise ConfigError(
                f"The transforms need {' and '.join(names)} on training data, and "
                "there are none. Pass UpdateTransforms(data=(x, y)), or train a "
                "TransformedModel with fit(x, y), which passes its data on."
            )
        self._statistics = Statistics(
            self.model,
            data,
            batches=self.batches,
            batch_size=self.batch_size or self._fit_batch_size or 32,
            seed=self.seed,
        )

    def on_train_end(self, logs=None):
        self._fit_data = self._statistics = None  # data are not kept alive

    def on_epoch_begin(self, epoch, logs=None):
        # Read anew each epoch: a restored backup may have moved the step.
        self._hosts = hosts(self.model)
        optimizer = self.model.optimizer
        iterations = int(np.max(ops.convert_to_numpy(optimizer.iterations)))
        # Keras counts optimizer steps, a schedule counts batches.
        self._epoch_start = iterations * (optimizer.gradient_accumulation_steps or 1)
        self._look(self._epoch_start, force=True)

    def on_train_batch_end(self, batch, logs=None):
        if not self._checked:
            self._checked = True
            for host in self._hosts:
                host.check_acted()
        # JAX synchronizes state whenever `self.model` is touched: only when due.
        self._look(self._epoch_start + batch + 1)

    def _look(self, step: int, *, force: bool = False) -> None:
        if not force and (self._due is None or step < self._due):
            return
        # Touching `self.model` makes the JAX trainer hand over its state.
        assert self.model is not None
        for host in self._hosts:
            host.update_transforms(step, statistics=self._statistics)
        due = [host.next_update() for host in self._hosts]
        self._due = min((d for d in due if d is not None), default=None)
