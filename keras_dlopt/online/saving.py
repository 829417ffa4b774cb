"""From a learner to its state in a file, and back."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_dlopt.callbacks.preparing import state_of
from keras_dlopt.errors import ConfigError, FormatError
from keras_dlopt.online import samples
from keras_dlopt.online.state_file import read_state, write_state
from keras_dlopt.online.tasks import check_finite
from keras_dlopt.runtime import to_numpy


def store(learner: Any, engine: Any, path: Path) -> None:
    """Writes the state of a learner."""
    if not engine.started:
        raise ConfigError(
            "There is no state yet: nothing was learned. Call learn() first."
        )
    form = learner.samples
    numbers, held = engine.batcher.held.state()
    header = {
        "config": learner.get_config(),
        "x": samples.to_data(form.x),
        "y": samples.to_data(form.y),
        "seen": learner.seen,
        "drifts": learner.drifts,
        "drift_at": engine.drift_at,
        "base": engine.base,
        "metrics": learner.metrics.state(),
        "labels_seen": sorted(engine.labels_seen),
        "held": numbers,
        "draws": engine.rng.bit_generator.state,
    }
    arrays = {name: to_numpy(v) for name, v in _variables(engine)}
    check_finite([a for name, a in arrays.items() if name.startswith("model_")])
    arrays |= {f"held_{name}": array for name, array in held.items()}
    for i, array in enumerate(keras.tree.flatten(tuple(engine.waiting))):
        arrays[f"waiting_{i}"] = array
    if engine.watch is not None:
        arrays["watch"] = engine.watch.state()
    write_state(path, header, arrays)


def _variables(engine: Any) -> Iterator[tuple[str, Any]]:
    augment = engine.learner.replay.augment
    kinds = {
        "model": state_of(engine.model),
        "keeper": engine.keeper.variables,
        "augment": [] if augment is None else augment.variables,
    }
    kinds |= {f"term{i}": term.variables for i, term in enumerate(engine.terms)}
    for kind, variables in kinds.items():
        for i, variable in enumerate(variables):
            yield f"{kind}_{i}", variable


def load(learner: Any, engine: Any, path: Path) -> None:
    """Puts a learner into the state that a file holds."""
    header, arrays = read_state(path)
    try:
        _check_config(learner, header["config"], path)
        form = learner.samples
        form.x, form.y = (samples.from_data(header[name]) for name in ("x", "y"))
        one = keras.tree.map_structure(
            lambda s: np.zeros((1, *s.shape), s.dtype), form.x
        )
        engine.task_of(one)
        engine.start()
        _check_variables(engine, arrays, path)
        _assign(learner, engine, header, arrays)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, ConfigError | FormatError):
            raise
        raise FormatError(
            f"{str(path)!r} is damaged: {type(error).__name__}: {error}. Restore an "
            "older copy, or start anew."
        ) from error


def _assign(learner: Any, engine: Any, header: Any, arrays: Any) -> None:
    for name, variable in _variables(engine):
        variable.assign(arrays[name])
    held = {k.removeprefix("held_"): v for k, v in arrays.items() if k[:5] == "held_"}
    engine.batcher.held.restore(header["held"], held)
    waiting = [arrays[f"waiting_{i}"] for i in range(_count(arrays, "waiting_"))]
    form = learner.samples
    engine.waiting = []
    if waiting:
        engine.waiting = list(keras.tree.pack_sequence_as((form.x, form.y), waiting))
    if engine.watch is not None:
        engine.watch.restore(arrays["watch"])
    engine.rng.bit_generator.state = header["draws"]
    engine.drift_at, engine.base = header["drift_at"], header["base"]
    engine.labels_seen = set(header["labels_seen"])
    learner.metrics.restore(header["metrics"])
    learner.seen, learner.drifts = int(header["seen"]), list(header["drifts"])


def _count(arrays: dict[str, np.ndarray], prefix: str) -> int:
    return sum(name.startswith(prefix) for name in arrays)


def _check_config(learner: Any, saved: dict[str, Any], path: Path) -> None:
    own = learner.get_config()
    other = [k for k in own if saved.get(k) != own[k]]
    if other:
        told = "; ".join(f"{k}: {saved.get(k)!r}, here {own[k]!r}" for k in other)
        raise ConfigError(
            f"{str(path)!r} was saved by a learner with other arguments: {told}. Make "
            "this one with the same, or start anew."
        )


def _check_variables(engine: Any, arrays: dict[str, np.ndarray], path: Path) -> None:
    own = {n: (tuple(v.shape), str(v.dtype)) for n, v in _variables(engine)}
    kinds = {name.rpartition("_")[0] for name in own} | {"model"}
    saved = {
        name: (a.shape, str(a.dtype))
        for name, a in arrays.items()
        if name.rpartition("_")[0] in kinds
    }
    if own != saved:
        raise ConfigError(
            f"{str(path)!r} holds {len(saved)} variables of another model or "
            f"optimizer; this one has {len(own)}, or other shapes. Build and compile "
            "the same model first."
        )
