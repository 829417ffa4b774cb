"""When a quantizer starts to round, and when its range stops to move."""

import numbers
from typing import Any

import numpy as np

from keras_dlopt.errors import ConfigError
from keras_dlopt.transforms.base import State


def check_phases(begin: int, freeze: int | None) -> None:
    """Raises `ConfigError` unless 0 <= begin <= freeze."""
    steps = (begin,) if freeze is None else (begin, freeze)
    whole = all(isinstance(s, numbers.Integral) for s in steps)
    if not whole or begin < 0 or (freeze is not None and freeze < max(begin, 1)):
        raise ConfigError(
            "Steps must satisfy 0 <= begin <= freeze, and freeze must leave one step "
            f"to observe. Received: begin={begin!r}, freeze={freeze!r}. Count in "
            "training steps (batches)."
        )


def phase_states(begin: int, freeze: int | None) -> dict[str, State]:
    """The flags of the phases that are asked for."""
    states = {}
    if begin:
        states["on"] = State(np.zeros((), "float32"))
    if freeze is not None:
        states["frozen"] = State(np.zeros((), "float32"))
    return states


def next_phase(begin: int, freeze: int | None, step: int) -> int | None:
    """The first step after `step` at which a flag changes."""
    steps = [s for s in (begin or None, freeze) if s is not None and s > step]
    return min(steps, default=None)


def flags(begin: int, freeze: int | None, step: int) -> dict[str, np.ndarray]:
    """The flags at `step`."""
    found: dict[str, Any] = {}
    if begin:
        found["on"] = np.array(step >= begin, "float32")
    if freeze is not None:
        found["frozen"] = np.array(step >= freeze, "float32")
    return found


def remaining_phase(begin: int, freeze: int | None, step: int) -> str | None:
    """What is still to come, in words."""
    if begin and step < begin:
        return f"quantization begins at step {begin}"
    return None
