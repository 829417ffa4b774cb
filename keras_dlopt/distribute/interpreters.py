"""Many LiteRT interpreters in processes of their own, for one model file."""

import itertools
import os
import pathlib
import tempfile
import time
from typing import Any

import numpy as np

from keras_dlopt import processes as running
from keras_dlopt.errors import ConfigError, DataError, RunError, require

# Run by path, not as a module: the package need not be imported for it.
_SCRIPT = pathlib.Path(__file__).with_name("_interpreter_process.py")


def predict_litert(
    path: str | os.PathLike,
    inputs: Any,
    *,
    processes: int | None = None,
    batch_size: int = 1,
    seconds: float = 600.0,
) -> np.ndarray:
    """Runs a LiteRT file over an array in several processes, in order.

    One interpreter uses one thread well; several processes use several cores. Each maps
    the same input file and writes its part of the same output file.

    Args:
        path: `.tflite` file with one input and one output.
        inputs: array of examples in the dtype that the model wants.
        processes: how many; None for one per core.
        batch_size: examples per call.
        seconds: longest time for all.

    Returns:
        One output per example, in order.

    Raises:
        ConfigError: for a missing file, or numbers below 1.
        DataError: if there is no example.
        RunError: if a process fails, as for a damaged file or one of several inputs or
            outputs, or time is up.
        MissingDependencyError: without `ai-edge-litert`.
    """
    require("ai-edge-litert", extra="litert", purpose="Running LiteRT files")
    count = processes if processes is not None else os.cpu_count() or 1
    if not pathlib.Path(path).is_file() or count < 1 or batch_size < 1:
        raise ConfigError(
            "predict_litert needs a file that is there, and 1 or more processes and "
            f"examples per call. Received: path={str(path)!r}, processes={processes}, "
            f"batch_size={batch_size}."
        )
    inputs = np.asarray(inputs)
    if not len(inputs):
        raise DataError("There is nothing to predict: the array holds no example.")
    edges = np.linspace(0, len(inputs), min(count, len(inputs)) + 1).astype(int)
    with tempfile.TemporaryDirectory(prefix="keras-dlopt-litert-") as folder:
        given = pathlib.Path(folder, "inputs.npy")
        np.save(given, inputs)
        with running.children() as started:
            for number, (low, high) in enumerate(itertools.pairwise(edges)):
                part, log = f"{folder}/{number}.npy", f"{folder}/{number}.log"
                arguments = (_SCRIPT, path, given, part, low, high, batch_size)
                started.append(running.Child(*arguments, log=log))
            worst = running.wait(started, until=time.monotonic() + seconds)
            if worst is not None:
                raise RunError(
                    f"LiteRT process {started.index(worst)} {worst.problem(seconds)}. "
                    "Allow more seconds, or use more processes, if it was slow. Its "
                    f"last lines:\n{worst.tail(3)}"
                )
        parts = [np.load(f"{folder}/{number}.npy") for number in range(len(started))]
    return np.concatenate(parts)
