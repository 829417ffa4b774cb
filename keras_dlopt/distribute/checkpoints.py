"""Checkpoints of a training run that a kill at any time leaves whole."""

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import pathlib
import re
import shutil
import tempfile
import warnings
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from keras_dlopt import _compat, checks
from keras_dlopt.distribute.seeds import generators
from keras_dlopt.errors import ConfigError, DiskError, FormatError
from keras_dlopt.files import parse_json, read_npz

DAMAGED = ("refuse", "older")
_PREFIX, _POSITION, _ASIDE = "step-", "position.json", "damaged-"
_WEIGHTS, _METRICS, _SEEDS = "state.weights.h5", "metrics.npz", "seeds.npz"


@dataclasses.dataclass(frozen=True)
class Position:
    """Where in training a checkpoint was written.

    Attributes:
        epoch: that training goes on in.
        batch: of that epoch that comes next.
        count_at_epoch: the optimizer's count of steps when that epoch began.
        data: what the order of the batches depends on; None if it was not noted.
        folder: of the checkpoint; None for the start.
    """

    epoch: int = 0
    batch: int = 0
    count_at_epoch: int = 0
    data: Mapping[str, Any] | None = None
    folder: pathlib.Path | None = None


class Checkpoints:
    """A folder of checkpoints.

    A checkpoint is written beside its place, flushed to disk and renamed, so that every
    folder named `step-...` is complete. It holds the SHA-256 of each of its files, so
    that one which changed on the disk is not taken for what was written.

    Args:
        directory: made if it is not there.
        keep: how many to keep, 1 or more.
        write: False for all but the first worker: every worker must take part in
            reading the variables, and one writes them.

    Raises:
        ConfigError: for no checkpoint to keep, or a directory that cannot be made.
    """

    def __init__(self, directory: str | os.PathLike, *, keep: int = 2, write=True):
        self.directory = pathlib.Path(directory)
        self.keep = checks.count(keep, name="keep")
        self.write = write
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                "directory must be a folder that is there or can be made. Received: "
                f"{str(directory)!r} ({error})."
            ) from error

    def newest(self, *, damaged: str = "refuse") -> Position:
        """The newest checkpoint's position, or the start.

        Args:
            damaged: `"refuse"` a newest one that is damaged, or put it aside, with a
                warning, and take an `"older"` one.

        Raises:
            FormatError: if it cannot be read, or its files are not those written; with
                `"older"`, if there are checkpoints and all of them are damaged.
        """
        checks.choice(damaged, name="damaged", choices=DAMAGED)
        folders = self._folders()
        if not folders:
            return Position()
        problem: FormatError | None = None
        for folder in reversed(folders):
            try:
                return _position(folder)
            except FormatError as error:
                problem = problem or error
                if damaged == "refuse" or folder is folders[0]:
                    raise problem from error
                self._put_aside(folder, error)
        raise AssertionError("unreachable")

    def save(self, model: keras.Model, position: Position) -> None:
        """Writes a checkpoint and removes the oldest.

        Raises:
            DiskError: if the disk is full or cannot be written; the checkpoints that
                are there stay.
        """
        files = _contents(model, position)
        if not self.write:
            return
        try:
            temporary = pathlib.Path(
                tempfile.mkdtemp(prefix=".writing-", dir=self.directory)
            )
            try:
                for name, content in files.items():
                    (temporary / name).write_bytes(content)
                self._publish(temporary, position)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
        except OSError as error:
            raise DiskError(
                error.errno,
                f"A checkpoint of {sum(map(len, files.values()))} bytes could not be "
                f"written to {str(self.directory)!r}: {error.strerror or error}. The "
                "earlier checkpoints there are whole. Make room, or keep fewer, and "
                "start the script again: it goes on from the newest",
            ) from error

    def load(self, model: keras.Model, position: Position) -> None:
        """Restores weights, optimizer and, on the first replica, random state.

        Raises:
            FormatError: if the checkpoint does not fit the model.
        """
        assert position.folder is not None
        if not model.optimizer.built:
            with model.distribute_strategy.scope():
                model.optimizer.build(model.trainable_variables)
        self._check_model(model, position.folder)
        try:
            model.load_weights(position.folder / _WEIGHTS)
        except (ValueError, KeyError, OSError) as error:
            raise _damaged(position.folder, error) from error
        states, values = _seed_states(model), _stored(position.folder / _SEEDS)
        if [tuple(s.shape) for s in states] != [v.shape for v in values]:
            raise _damaged(position.folder, "its random numbers are of other layers")
        for state, value in zip(states, values, strict=True):
            state.assign(value)

    def _check_model(self, model: keras.Model, folder: pathlib.Path) -> None:
        """Keras loads what has the same shape, and leaves the rest with a warning."""
        stored = parse_json((folder / _POSITION).read_bytes()).get("model")
        own = _signature(model)
        if stored is None or stored == own:
            return
        for part in own:
            if stored.get(part) != own[part]:
                raise _damaged(
                    folder, f"{part} {stored.get(part)} there, {own[part]} here"
                )

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
        found = self.directory.glob(f"{_PREFIX}*")
        return sorted(p for p in found if re.fullmatch(_PREFIX + r"\d+-\d+", p.name))

    def _put_aside(self, folder: pathlib.Path, error: FormatError) -> None:
        """Out of the way of what training writes from here on."""
        if self.write:
            with contextlib.suppress(OSError):
                aside = tempfile.mkdtemp(prefix=_ASIDE, dir=self.directory)
                os.replace(folder, pathlib.Path(aside, folder.name))
        warnings.warn(
            f"{error} An older checkpoint is taken; the damaged one is in a folder "
            f"{_ASIDE}....",
            stacklevel=4,
        )

    def _publish(self, temporary: pathlib.Path, position: Position) -> None:
        for path in [*temporary.iterdir(), temporary]:
            _flush(path)
        name = f"{_PREFIX}{position.epoch:06d}-{position.batch:09d}"
        final = self.directory / name
        if final.exists():  # a run that was started anew passes the same step again
            aside = tempfile.mkdtemp(prefix=".writing-", dir=self.directory)
            os.replace(final, pathlib.Path(aside, name))
        os.replace(temporary, final)
        _flush(self.directory)
        for old in self._folders()[: -self.keep]:
            shutil.rmtree(old, ignore_errors=True)
        for left in self.directory.glob(".writing-*"):  # of processes that were killed
            shutil.rmtree(left, ignore_errors=True)


def _contents(model: keras.Model, position: Position) -> dict[str, bytes]:
    """The files of a checkpoint, the one that vouches for the others last."""
    files = {
        _WEIGHTS: _compat.weights_file(model),
        _METRICS: _archive(_arrays(model.metrics_variables)),
        # Keras leaves the state of dropout out of weight files.
        _SEEDS: _archive(_arrays(_seed_states(model))),
    }
    kept = dataclasses.asdict(position)
    kept.pop("folder")
    kept["model"] = _signature(model)
    kept["files"] = {n: hashlib.sha256(c).hexdigest() for n, c in files.items()}
    kept["sha256"] = _own_sum(kept)
    return {**files, _POSITION: json.dumps(kept).encode()}


def _own_sum(kept: Mapping[str, Any]) -> str:
    """Of all that the position's file says beside this sum."""
    rest = {name: value for name, value in kept.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _position(folder: pathlib.Path) -> Position:
    """What is in a checkpoint's folder, once its files are those that were written."""
    try:
        found = parse_json((folder / _POSITION).read_bytes())
        epoch, batch = int(found["epoch"]), int(found["batch"])
        count = int(found["count_at_epoch"])
        if min(epoch, batch, count) < 0:
            raise ValueError(f"negative numbers: {epoch}, {batch}, {count}")
        if "files" in found or "sha256" in found:  # older versions noted no sums
            _check_sums(folder, found)
        for name in ("data", "model"):
            if not isinstance(found.get(name, {}), dict | None):
                raise TypeError(f"{name!r} is no object")
        return Position(epoch, batch, count, found.get("data"), folder)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise _damaged(folder, error) from error


def _check_sums(folder: pathlib.Path, found: Mapping[str, Any]) -> None:
    if found["sha256"] != _own_sum(found):
        raise ValueError(f"{_POSITION} is not what was written")
    for name in (_WEIGHTS, _METRICS, _SEEDS):
        with open(folder / name, "rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != found["files"][name]:
                raise ValueError(f"{name} is not what was written (SHA-256)")


def _archive(arrays: list[np.ndarray]) -> bytes:
    memory = io.BytesIO()
    np.savez(memory, *arrays)
    return memory.getvalue()


def _seed_states(model: keras.Model) -> list[Any]:
    return [generator.state for generator in generators(model)]


def _arrays(variables: list[Any]) -> list[np.ndarray]:
    """The first replica's values."""
    local = [getattr(v.value, "values", (v.value,))[0] for v in variables]
    return [np.asarray(value.numpy()) for value in local]


def _stored(path: pathlib.Path) -> list[np.ndarray]:
    try:
        return list(read_npz(path.read_bytes()).values())
    except (OSError, FormatError) as error:
        raise _damaged(path.parent, f"{path.name}: {error}") from error


def _signature(model: keras.Model) -> dict[str, Any]:
    """What a model and optimizer must share to go on with each other's state."""

    def shapes(variables):
        return [list(v.shape) for v in variables]

    optimizer = model.optimizer
    return {
        "optimizer": type(getattr(optimizer, "inner_optimizer", optimizer)).__name__,
        "weights": shapes(model.weights),
        "slots": shapes(optimizer.variables),
    }


def _damaged(folder: pathlib.Path, why: Any) -> FormatError:
    told = str(why)[:600]
    return FormatError(
        f"The checkpoint {folder} does not fit this model, or is damaged: {told}. "
        "Train with the model and optimizer that wrote it, or in a new directory. If "
        "the files are damaged, delete that folder, or pass damaged='older' to "
        "distribute.fit: training goes on from the one before it."
    )


def _flush(path: pathlib.Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
