"""Trainings on record: loss and learning rate of every step."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import keras
import numpy as np

from keras_dlopt.errors import ConfigError
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
    """Loss and learning rate of every step of one training.

    Attributes:
        name: of the training.
        loss: of each step, or the mean of the steps of one execution.
        rate: learning rate when that step or execution began.
        each: steps of an execution, as compiled.
    """

    name: str
    loss: tuple[float, ...]
    rate: tuple[float, ...]
    each: int = 1


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
        self.each = 1
        self._sum, self._count = 0.0, 0

    def recording(self, name: str) -> Recording:
        """What was kept, under a name."""
        return Recording(name, tuple(self.loss), tuple(self.rate), self.each)

    def on_train_begin(self, logs: Any = None) -> None:
        self.each = int(self.model.steps_per_execution)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._sum, self._count = 0.0, 0

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        rate = keras.ops.convert_to_numpy(self.model.optimizer.learning_rate)
        self.rate.append(float(rate))

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        # Keras logs the mean since the epoch began; batches are of equal size.
        mean, count = float(logs["loss"]), batch + 1
        before = self._sum if batch >= self._count else 0.0
        steps = count - self._count if batch >= self._count else count
        self._sum, self._count = count * mean, count
        self.loss.append((self._sum - before) / steps)
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
    if len({t.each for t in traces}) > 1:
        raise ConfigError(
            "Trainings in one figure must have the same steps_per_execution. "
            f"Received: {[t.each for t in traces]}. Draw a figure for each."
        )
    each = traces[0].each if traces else 1
    starts = itertools.accumulate((each * len(t.loss) for t in traces), initial=0)
    named = [
        (phase, begin + step)
        for trace, begin in zip(traces, starts, strict=False)
        for phase, step in (phases or {}).get(trace.name, {trace.name: 0}).items()
    ]
    loss = np.concatenate([t.loss for t in traces])
    rate = np.concatenate([t.rate for t in traces])
    steps = each * np.arange(len(loss))
    plot = plots.training_plot(loss, rate, named, steps=steps, each=each)
    return Figure("Loss and learning rate", plot, note)
