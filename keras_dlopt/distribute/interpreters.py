"""Many LiteRT interpreters in processes of their own, for one model file."""

import importlib.util
import itertools
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np

from keras_dlopt.distribute.processes import RunError, end_processes, ended_by_sigterm
from keras_dlopt.errors import ConfigError, DataError, missing

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
    if importlib.util.find_spec("ai_edge_litert") is None:
        raise missing("ai-edge-litert", extra="litert", purpose="Running LiteRT files")
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
        with ended_by_sigterm():
            started = [
                _start(path, given, f"{folder}/{number}.npy", low, high, batch_size)
                for number, (low, high) in enumerate(itertools.pairwise(edges))
            ]
            _wait(started, seconds)
        parts = [np.load(f"{folder}/{number}.npy") for number in range(len(started))]
    return np.concatenate(parts)


def _start(*arguments: Any) -> Any:
    return subprocess.Popen(
        [sys.executable, str(_SCRIPT), *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def _wait(started: list[Any], seconds: float) -> None:
    end = time.monotonic() + seconds
    try:
        for number, process in enumerate(started):
            try:
                _, text = process.communicate(
                    timeout=max(0.001, end - time.monotonic())
                )
            except subprocess.TimeoutExpired:
                raise RunError(
                    f"LiteRT process {number} did not end within {seconds:g} s and was "
                    "ended. Allow more seconds, or use more processes."
                ) from None
            if process.returncode:
                last = "\n".join(text.splitlines()[-3:])
                raise RunError(
                    f"LiteRT process {number} failed with exit code "
                    f"{process.returncode}: {last}"
                )
    finally:
        end_processes(started)
        for process in started:
            process.stderr.close()
