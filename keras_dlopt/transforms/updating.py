"""The callback that runs scheduled updates between training steps."""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_dlopt import _compat
from keras_dlopt.transforms.host import TransformHost


def hosts(layer: Any) -> list[TransformHost]:
    """Every transformed model or layer at or below `layer`."""
    found: list[TransformHost] = [layer] if isinstance(layer, TransformHost) else []
    for sub in _compat.sublayers(layer):
        found += [h for h in hosts(sub) if h not in found]
    return found


@keras.saving.register_keras_serializable("keras_dlopt")
class UpdateTransforms(keras.callbacks.Callback):
    """Updates masks, centroids and other scheduled state between training steps.

    `TransformedModel.fit` adds it by itself. A model built by hand from
    `TransformedLayer` needs it in `fit(callbacks=...)`. The update runs in NumPy on the
    host and only on the steps that a schedule names; on all others it compares two
    integers. With `steps_per_execution > 1` it runs at the first batch end at or after
    the step that is due.

    Example:
        >>> callbacks = [UpdateTransforms()]
    """

    def __init__(self):
        super().__init__()
        self._hosts: list[TransformHost] = []
        self._step = 0
        self._due: int | None = None

    def on_epoch_begin(self, epoch, logs=None):
        # Read anew each epoch: a restored backup may have moved the step.
        self._hosts = hosts(self.model)
        optimizer = self.model.optimizer
        iterations = int(np.max(ops.convert_to_numpy(optimizer.iterations)))
        # Keras counts optimizer steps, a schedule counts batches.
        self._epoch_start = iterations * (optimizer.gradient_accumulation_steps or 1)
        self._look(self._epoch_start, force=True)

    def on_train_batch_end(self, batch, logs=None):
        # JAX synchronizes state whenever `self.model` is touched: only when due.
        self._look(self._epoch_start + batch + 1)

    def _look(self, step: int, *, force: bool = False) -> None:
        if not force and (self._due is None or step < self._due):
            return
        # Touching `self.model` makes the JAX trainer hand over its state.
        assert self.model is not None
        for host in self._hosts:
            host.update_transforms(step)
        due = [host.next_update() for host in self._hosts]
        self._due = min((d for d in due if d is not None), default=None)

    def get_config(self) -> dict:
        """The constructor's arguments: none."""
        return {}

    @classmethod
    def from_config(cls, config: dict) -> "UpdateTransforms":
        """Builds the callback from its `get_config()`."""
        return cls(**config)
