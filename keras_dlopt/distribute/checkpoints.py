"""Checkpoints of a training run that a kill at any time leaves whole."""

import dataclasses
import json
import os
import pathlib
import shutil
import tempfile
import warnings
from typing import Any

import keras
import numpy as np

from keras_dlopt.distribute.seeds import generators
from keras_dlopt.errors import ConfigError, FormatError

_PREFIX, _POSITION = "step-", "position.json"
_WEIGHTS, _METRICS, _SEEDS = "state.weights.h5", "metrics.npz", "seeds.npz"


@dataclasses.dataclass(frozen=True)
class Position:
    """Where in training a checkpoint was written.

    Attributes:
        epoch: that training goes on in.
        batch: of that epoch that comes next.
        count_at_epoch: the optimizer's count of steps when that epoch began.
        folder: of the checkpoint; None for the start.
    """

    epoch: int = 0
    batch: int = 0
    count_at_epoch: int = 0
    folder: pathlib.Path | None = None


class Checkpoints:
    """A folder of checkpoints.

    A checkpoint is written beside its place, flushed to disk and renamed, so that every
    folder named `step-...` is complete.

    Args:
        directory: made if it is not there.
        keep: how many to keep, 1 or more.
        write: False for all but the first worker, which write to a temporary place:
            every worker must take part in reading the variables.
    """

    def __init__(self, directory: str | os.PathLike, *, keep: int = 2, write=True):
        if keep < 1:
            raise ConfigError(f"keep must be 1 or more. Received: {keep}.")
        self.directory = pathlib.Path(directory)
        self.keep = keep
        self.write = write
        self.directory.mkdir(parents=True, exist_ok=True)

    def newest(self) -> Position:
        """The newest checkpoint's position, or the start."""
        folders = self._folders()
        if not folders:
            return Position()
        text = (folders[-1] / _POSITION).read_text()
        return Position(**json.loads(text), folder=folders[-1])

    def save(self, model: keras.Model, position: Position) -> None:
        """Writes a checkpoint and removes the oldest."""
        place = self.directory if self.write else None
        temporary = pathlib.Path(tempfile.mkdtemp(prefix=".writing-", dir=place))
        try:
            model.save_weights(temporary / _WEIGHTS)
            np.savez(temporary / _METRICS, *_arrays(model.metrics_variables))
            # Keras leaves the state of dropout out of weight files.
            np.savez(temporary / _SEEDS, *_arrays(_seed_states(model)))
            kept = dataclasses.asdict(position)
            kept.pop("folder")
            (temporary / _POSITION).write_text(json.dumps(kept))
            if self.write:
                self._publish(temporary, position)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def load(self, model: keras.Model, position: Position) -> None:
        """Restores weights, optimizer and, on the first replica, random state.

        Raises:
            FormatError: if the checkpoint does not fit the model.
        """
        assert position.folder is not None
        if not model.optimizer.built:
            with model.distribute_strategy.scope():
                model.optimizer.build(model.trainable_variables)
        try:
            model.load_weights(position.folder / _WEIGHTS)
            states = _seed_states(model)
            for state, value in zip(
                states, _stored(position.folder / _SEEDS), strict=True
            ):
                state.assign(value)
        except (ValueError, KeyError, OSError) as error:
            raise FormatError(
                f"The checkpoint {position.folder} does not fit this model: {error}. "
                "Train with the model and optimizer that wrote it, or in a new "
                "directory."
            ) from error

    def load_metrics(self, model: keras.Model, position: Position) -> None:
        """Restores the metrics of the epoch that was broken off."""
        assert position.folder is not None
        values = _stored(position.folder / _METRICS)
        variables = model.metrics_variables
        if [v.shape for v in values] != [tuple(v.shape) for v in variables]:
            warnings.warn(
                "The metrics of the epoch that was broken off do not fit and start "
                "anew; weights are not affected.",
                stacklevel=2,
            )
            return
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)

    def _folders(self) -> list[pathlib.Path]:
        return sorted(self.directory.glob(f"{_PREFIX}*"))

    def _publish(self, temporary: pathlib.Path, position: Position) -> None:
        for path in [*temporary.iterdir(), temporary]:
            _flush(path)
        name = f"{_PREFIX}{position.epoch:06d}-{position.batch:09d}"
        final = self.directory / name
        if final.exists():  # a run that was started anew passes the same step again
            shutil.rmtree(final)
        os.replace(temporary, final)
        _flush(self.directory)
        for old in self._folders()[: -self.keep]:
            shutil.rmtree(old, ignore_errors=True)
        for left in self.directory.glob(".writing-*"):  # of processes that were killed
            shutil.rmtree(left, ignore_errors=True)


def _seed_states(model: keras.Model) -> list[Any]:
    return [generator.state for generator in generators(model)]


def _arrays(variables: list[Any]) -> list[np.ndarray]:
    """The first replica's values."""
    local = [getattr(v.value, "values", (v.value,))[0] for v in variables]
    return [np.asarray(value.numpy()) for value in local]


def _stored(path: pathlib.Path) -> list[np.ndarray]:
    with np.load(path) as stored:
        return [stored[name] for name in stored.files]


def _flush(path: pathlib.Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
