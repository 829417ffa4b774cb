"""How a long job tells its caller where it is."""

from typing import Any, Protocol

import keras
import numpy as np
from keras import ops


class Progress(Protocol):
    """What the demo calls while it runs; the command line draws it."""

    def stage(self, name: str, steps: int) -> None:
        """A new stage begins.

        Args:
            name: what is being done.
            steps: number of `advance` calls to expect; 0 when that is not known.
        """

    def advance(self, note: str) -> None:
        """One step of the stage is done; `note` is a short figure to show."""


class Silent:
    """Progress that nobody watches."""

    def stage(self, name: str, steps: int) -> None:
        """Does nothing."""

    def advance(self, note: str) -> None:
        """Does nothing."""


class Recorder(keras.callbacks.Callback):
    """Keeps loss and learning rate of every step, and reports progress."""

    def __init__(self, progress: Progress):
        super().__init__()
        self.progress = progress
        self.loss: list[float] = []
        self.rate: list[float] = []

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        rate = ops.convert_to_numpy(self.model.optimizer.learning_rate)
        self.rate.append(float(rate))

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        # Keras logs the mean since the epoch began; batches are of equal size.
        mean = float(logs["loss"])
        before = self._mean * batch if batch else 0.0
        self._mean = mean
        self.loss.append(max((batch + 1) * mean - before, 0.0))
        note = f"loss {mean:.4f}" if np.isfinite(mean) else "loss is not finite"
        self.progress.advance(note)

    _mean = 0.0
