"""A train step in a file that JAX alone can run: no Keras and no TensorFlow there.

The file is a zip of `step.bin` (the program, `jax.export`), `state.npz` (all variables,
`0`, `1`, ...) and `step.json` (what the arrays are). `tpu/run_step.py` runs it.
"""

import dataclasses
import io
import json
import pathlib
import zipfile
from typing import Any

import keras
import numpy as np

from keras_dlopt import checks
from keras_dlopt.errors import FormatError, require
from keras_dlopt.files import read_npz
from keras_dlopt.model_parallel.functional import FunctionalStep, TrainState
from keras_dlopt.tpu import programs as making

VERSION = 1
_PARTS = ("step.bin", "state.npz", "step.json")


def save_step(model: keras.Model, path: str | pathlib.Path, *, batch: int) -> None:
    """Writes the train step of a compiled model, with all its state.

    Args:
        model: built and compiled, on the TensorFlow or JAX backend.
        path: file to write.
        batch: examples in a step; fixed in the program.

    Raises:
        ConfigError: for a batch that is no positive whole number.
        ModelError: for a model that is not built or compiled.
        MissingDependencyError: without JAX.
    """
    batch = checks.count(batch, name="batch")
    require("jax", extra="tpu", purpose="Saving a train step")
    import jax

    step = FunctionalStep(model)
    wide = keras.backend.backend() == "tensorflow"  # its counters are int64
    with jax.enable_x64(wide or jax.config.read("jax_enable_x64")):
        (program,) = making.programs(model, batch, (making.TRAIN,))
        program_bytes = _exported(program).serialize()
    about = {
        "version": VERSION,
        "batch": batch,
        "x64": wide,
        "inputs": _described(program.batch),
        "counts": [len(group) for group in step.variables],
        "paths": [v.path for group in step.variables for v in group],
    }
    arrays = [keras.ops.convert_to_numpy(v) for group in step.variables for v in group]
    buffer = io.BytesIO()
    np.savez(buffer, **{str(i): a for i, a in enumerate(arrays)})
    parts = (bytes(program_bytes), buffer.getvalue(), json.dumps(about).encode())
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in zip(_PARTS, parts, strict=True):
            file.writestr(name, data)


def _exported(program: making.Program) -> Any:
    import jax

    if keras.backend.backend() == "tensorflow":
        from keras_dlopt.tpu.compiling import exported

        return exported(program)
    return jax.export.export(jax.jit(program.function), platforms=("tpu", "cpu"))(
        *program.state, *program.batch
    )


def _described(batch: Any) -> list[list[Any]]:
    import jax

    return [[list(s.shape), str(s.dtype)] for s in jax.tree.leaves(batch)]


@dataclasses.dataclass(frozen=True)
class SavedStep:
    """A train step read from a file.

    Attributes:
        state: values of all variables, as three lists.
        batch: examples in a step.
        inputs: shape and dtype of the arrays of a batch: inputs, then targets.
        paths: the variables' paths, in the order of the state.
    """

    state: TrainState
    batch: int
    inputs: list[Any]
    paths: list[str]
    _exported: Any
    _x64: bool

    def __call__(self, state: TrainState, x: Any, y: Any) -> tuple[Any, TrainState]:
        """One step: the loss before the update, and the new state."""
        import jax

        with jax.enable_x64(self._x64 or jax.config.read("jax_enable_x64")):
            loss, *after = jax.jit(self._exported.call)(*state, x, y)
        return loss, TrainState(*after)


def load_step(path: str | pathlib.Path) -> SavedStep:
    """Reads a file that `save_step` wrote.

    Raises:
        FormatError: for a file that is none, damaged, or of another version.
    """
    import jax

    try:
        with zipfile.ZipFile(path) as file:
            program, state, about = (file.read(name) for name in _PARTS)
        told = json.loads(about)
        if told["version"] != VERSION:
            raise FormatError(
                f"{path} is of version {told['version']}, this reads {VERSION}. "
                "Save the step again with the installed keras_dlopt."
            )
        arrays = read_npz(state)
        values = [arrays[str(i)] for i in range(sum(told["counts"]))]
        exported = jax.export.deserialize(bytearray(program))
    except FormatError:
        raise
    except Exception as error:  # zipfile, zlib, JSON and JAX raise a dozen kinds
        raise FormatError(
            f"{path} holds no train step: {error}. Write it with tpu.save_step()."
        ) from error
    first, second, _ = told["counts"]
    split = TrainState(
        values[:first], values[first : first + second], values[first + second :]
    )
    inputs = [(tuple(shape), dtype) for shape, dtype in told["inputs"]]
    return SavedStep(split, told["batch"], inputs, told["paths"], exported, told["x64"])
