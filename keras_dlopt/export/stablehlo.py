"""A float .tflite file from StableHLO, by JAX and `litert-converter`, without tf.lite.

Three processes at most: Keras on TensorFlow hands the model over as a `.keras` file to
one on JAX, which exports the twin as a StableHLO text; a process without either turns
the text into a file, since its libraries do not bear others of the same kind beside
them. On JAX the first step falls away.
"""

import json
import os
import pathlib
import tempfile
import time
from typing import Any

import keras
import numpy as np

from keras_dlopt import processes
from keras_dlopt.errors import ConfigError, ExportError
from keras_dlopt.export.ends import ends_of
from keras_dlopt.export.twin import Range, Twin, calls_for

# Seconds for each process; ResNet50 takes a tenth of it.
_LIMIT = 600.0


def write(twin: Twin, path: str, batch: int | None) -> None:
    """Writes the float file of a twin.

    Raises:
        ConfigError: for quantizers and an open batch size.
        ExportError: if a process fails; the text has the end of what it wrote.
    """
    if batch is None and twin.ranges:
        raise ConfigError(
            "JAX exports no quantizers for a batch of any size. Give batch_size a "
            "number, or use converter='tf.lite'."
        )
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        if keras.backend.backend() == "jax":
            (folder / "twin.mlir").write_text(traced(twin, batch))
        else:
            _trace_in_a_process(twin, batch, folder)
        # JAX takes dicts apart by name.
        ends = {
            "inputs": sorted(twin.ends.inputs),
            "outputs": sorted(twin.ends.outputs),
        }
        (folder / "ends.json").write_text(json.dumps(ends))
        script = pathlib.Path(__file__).with_name("_stablehlo_process.py")
        _run("litert-converter", twin, folder, script, folder)
        os.replace(folder / "twin.tflite", path)


def _trace_in_a_process(twin: Twin, batch: int | None, folder: pathlib.Path) -> None:
    twin.model.save(folder / "model.keras")
    numbers = [(r.path, float(r.low), float(r.high)) for r in twin.ranges]
    spec = {"batch": batch, "ranges": numbers}
    (folder / "twin.json").write_text(json.dumps(spec))
    _run("Keras on JAX", twin, folder, "-m", f"{__package__}._trace_process", folder)


def _run(what: str, twin: Twin, folder: pathlib.Path, *arguments: Any) -> None:
    environment = os.environ | {
        "KERAS_BACKEND": "jax",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": processes.python_path(),
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    with processes.children() as started:
        log = folder / "log"
        child = processes.Child(*arguments, log=log, environment=environment)
        started.append(child)
        if processes.wait(started, until=time.monotonic() + _LIMIT) is not None:
            raise ExportError(
                f"{what} refused {twin.name!r}: its process {child.problem(_LIMIT)}, "
                f"and said last: {child.tail(3)[-1000:]}"
            )


def from_folder(folder: pathlib.Path) -> None:
    """What the process on JAX does: the StableHLO text of what it was handed."""
    model = keras.saving.load_model(folder / "model.keras", compile=False)
    spec = json.loads((folder / "twin.json").read_text())
    ranges = [
        Range(path, np.float32(low), np.float32(high))
        for path, low, high in spec["ranges"]
    ]
    if ranges:
        calls_for(model)
    twin = Twin(model, ranges, ends_of(model))
    (folder / "twin.mlir").write_text(traced(twin, spec["batch"]))


def traced(twin: Twin, batch: int | None) -> str:
    """The StableHLO text of a twin, on the JAX backend."""
    import jax
    from jax import export

    shaped: Any = jax.ShapeDtypeStruct
    (size,) = export.symbolic_shape("batch") if batch is None else (batch,)
    given = {
        name: shaped((size, *spec.shape[1:]), spec.dtype)
        for name, spec in twin.ends.signature(1).items()
    }
    exported = export.export(jax.jit(lambda inputs: twin(inputs)))(given)
    return str(exported.mlir_module())
