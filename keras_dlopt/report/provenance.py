"""Where the figures of a report come from: models, data, versions, date, command."""

import datetime
import pathlib
import shlex
import sys
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from keras_dlopt.report.document import size
from keras_dlopt.report.variants import versions
from keras_dlopt.tables import Table


def provenance(
    models: Mapping[str, keras.Model], outputs: np.ndarray, y: np.ndarray
) -> dict[str, str]:
    """What a reader needs to make the same report again.

    Args:
        models: name -> built model.
        outputs: of one of them on the data.
        y: the labels of the data.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> provenance({"mine": model}, np.zeros((3, 2)), np.zeros(3))["mine"]
        'Sequential of 10 parameters, input (4) float32'
    """
    return {
        **{name: _model(model) for name, model in models.items()},
        "data": f"{size(len(y))} examples, labels {_form(y)}, outputs {_form(outputs)}",
        "command": _command(),
        "date": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC",
        "versions": ", ".join(f"{k} {v}" for k, v in versions().items()),
        "backend": keras.backend.backend(),
    }


def provenance_table(made: Mapping[str, str]) -> Table:
    """The same, as the last table of a report."""
    return Table("How this was made", ("", ""), tuple(made.items()), words=True)


def _model(model: keras.Model) -> str:
    inputs = keras.tree.flatten(getattr(model, "inputs", None) or [])
    given = ", ".join(f"{_shape(i.shape[1:])} {i.dtype}" for i in inputs)
    return (
        f"{type(model).__name__} of {size(model.count_params())} parameters"
        f"{f', input {given}' if given else ''}"
    )


def _shape(shape: Any) -> str:
    return f"({', '.join('any' if n is None else str(n) for n in shape)})"


def _form(array: np.ndarray) -> str:
    return (
        f"{_shape(array.shape[1:])} {array.dtype}"
        if array.ndim > 1
        else str(array.dtype)
    )


def _command() -> str:
    # The program's folder says nothing to a reader elsewhere.
    program = pathlib.Path(sys.argv[0] or "python").name
    return shlex.join([program, *sys.argv[1:]])
