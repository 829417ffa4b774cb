"""How equal a training on replicas must be to that on one device."""

import contextlib
import dataclasses
import re
from typing import Any

import keras
import numpy as np

# Relative to max(1, |weight|). The sums over a batch are taken in another order, which
# moves the last bit of a gradient (6e-8); 20 steps add some of those up.
TOLERANCE = 1e-6
# These turn a last bit into more: eigenvectors of nearly equal eigenvalues, quotients
# of small differences, a normalization of two examples. They are held to float64's
# rounding in `tests/distribute/test_equality.py`.
AMPLIFIES = {
    ("SOAP", 2): 5e-4,
    ("SOAP", 4): 5e-4,
    ("LBFGS", 2): 5e-4,
    ("LBFGS", 4): 5e-3,
    ("apart_4", 4): 1e-2,
}

# These are trained in float64, where it takes a fault to part them: between two codes,
# or in quotients of small differences, the last bit of a float32 decides for more.
WIDE = {
    "replicas": ("LBFGS", "distill.terms"),
    "xla": ("FakeQuantActivation-min-max", "FakeQuantActivation-peak-hold"),
}


@contextlib.contextmanager
def precision_for(name, contract):
    """Models of a case are made and trained in float64 if it is among `WIDE`."""
    made = "float64" if name in WIDE[contract] else "float32"
    keras.config.set_floatx(made)
    keras.config.set_dtype_policy(made)
    try:
        yield
    finally:
        keras.config.set_floatx("float32")
        keras.config.set_dtype_policy("float32")


@dataclasses.dataclass
class Run:
    """What a training leaves, and what its callbacks were told.

    Attributes:
        weights: arrays, such as weights and counters.
        history: of `fit`; None where the training was none of `fit`.
        calls: of a `Calls`; None as well.
    """

    weights: list[np.ndarray]
    history: dict[str, Any] | None = None
    calls: list[tuple[str, Any, dict[str, Any]]] | None = None


class Calls(keras.callbacks.Callback):
    """Writes down each call with its number and its logs, in `made`."""

    def __init__(self):
        super().__init__()
        self.made = []


def _noted(name):
    def method(self, *arguments, **options):
        given = [*arguments, *options.values()]
        logs = next((v for v in given if isinstance(v, dict)), {})
        number = next((v for v in given if isinstance(v, int)), None)
        values = {
            k: np.array(keras.ops.convert_to_numpy(v), "float64")
            for k, v in logs.items()
        }
        self.made.append((name, number, values))

    return method


for _when in ("begin", "end"):
    for _what in ("train", "epoch", "train_batch", "test", "test_batch"):
        setattr(Calls, f"on_{_what}_{_when}", _noted(f"on_{_what}_{_when}"))


def _paired(left, right):
    """The values of two logs of the same names; layers may be numbered otherwise."""
    names = [[re.sub(r"_\d+", "", name) for name in logs] for logs in (left, right)]
    assert names[0] == names[1], names
    return zip(left.values(), right.values(), strict=True)


def difference(left, right):
    """The largest |a - b| / max(1, |a|) of two runs.

    Over all weights, all of the history, and all logs that callbacks were given. Fails
    where these are not the same in number and name.
    """
    assert len(left.weights) == len(right.weights)
    pairs = list(zip(left.weights, right.weights, strict=True))
    if left.history is not None and right.history is not None:
        pairs += _paired(left.history, right.history)
    if left.calls is not None and right.calls is not None:
        told = [[call[:2] for call in r.calls] for r in (left, right)]
        assert told[0] == told[1]
        for one, other in zip(left.calls, right.calls, strict=True):
            pairs += _paired(one[2], other[2])
    return max(_apart(np.asarray(a), np.asarray(b)) for a, b in pairs)


def _apart(a, b):
    assert a.shape == b.shape
    assert np.all(np.isfinite(a))
    assert np.all(np.isfinite(b))
    return float(np.max(np.abs(a - b) / np.maximum(1, np.abs(a)), initial=0.0))
