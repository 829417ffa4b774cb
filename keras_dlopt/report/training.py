"""Trainings on record: loss and learning rate of every step."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import keras
import numpy as np

from keras_dlopt.report import plots
from keras_dlopt.report.document import Figure


class Progress(Protocol):
    """What a long job calls while it runs; the command line draws it."""

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


@dataclasses.dataclass(frozen=True)
class Recording:
    """Loss and learning rate of every step of one training."""

    name: str
    loss: tuple[float, ...]
    rate: tuple[float, ...]


class Recorder(keras.callbacks.Callback):
    """Keeps loss and learning rate of every step, and reports progress.

    Args:
        progress: is told about every step.

    Example:
        >>> net = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        >>> net.compile(keras.optimizers.SGD(0.1), "mse")
        >>> recorder = Recorder()
        >>> _ = net.fit(np.ones((4, 2)), np.ones((4, 1)), batch_size=2, verbose=0,
        ...     callbacks=[recorder])
        >>> recorder.recording("first").rate
        (0.10000000149011612, 0.10000000149011612)
    """

    def __init__(self, progress: Progress | None = None):
        super().__init__()
        self.progress = progress or Silent()
        self.loss: list[float] = []
        self.rate: list[float] = []
        self._mean = 0.0

    def recording(self, name: str) -> Recording:
        """What was kept, under a name."""
        return Recording(name, tuple(self.loss), tuple(self.rate))

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        rate = keras.ops.convert_to_numpy(self.model.optimizer.learning_rate)
        self.rate.append(float(rate))

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        # Keras logs the mean since the epoch began; batches are of equal size.
        mean = float(logs["loss"])
        before = self._mean * batch if batch else 0.0
        self._mean = mean
        self.loss.append(max((batch + 1) * mean - before, 0.0))
        note = f"loss {mean:.4f}" if np.isfinite(mean) else "loss is not finite"
        self.progress.advance(note)


def training_figure(
    traces: Sequence[Recording],
    *,
    phases: Mapping[str, Mapping[str, int]] | None = None,
    note: str = "",
) -> Figure:
    """Loss and learning rate of trainings, one after the other.

    Args:
        traces: the trainings.
        phases: name of a trace -> name of a phase -> its first step in that training;
            a trace that is not named is one phase of its own name.
        note: what the figure shows.
    """
    starts = itertools.accumulate((len(t.loss) for t in traces), initial=0)
    named = [
        (phase, begin + step)
        for trace, begin in zip(traces, starts, strict=False)
        for phase, step in (phases or {}).get(trace.name, {trace.name: 0}).items()
    ]
    loss = np.concatenate([t.loss for t in traces])
    rate = np.concatenate([t.rate for t in traces])
    plot = plots.training_plot(loss, rate, named)
    return Figure("Loss and learning rate", plot, note)
