"""Running a .tflite file on the CPU."""

import os
from typing import Any

import numpy as np

from keras_dlopt.errors import DataError, FormatError, missing
from keras_dlopt.export.quiet import silence


def litert_package() -> Any:
    """The module `ai_edge_litert`, or the error that says how to install it."""
    try:
        import ai_edge_litert.interpreter
        import ai_edge_litert.schema_py_generated
    except ImportError as error:
        raise missing(
            "ai-edge-litert", extra="litert", purpose="Reading .tflite files"
        ) from error
    return ai_edge_litert


def interpreter(path: str | os.PathLike[str], *, threads: int = 1) -> Any:
    """An `Interpreter` for the file, with its tensors allocated.

    Raises:
        FormatError: for a file that is not a LiteRT model.
        FileNotFoundError: if there is none.
        MissingDependencyError: without the package `ai-edge-litert`.
    """
    package = litert_package()
    if not os.path.isfile(path):
        raise FileNotFoundError(f"There is no file {os.fspath(path)!r}.")
    try:
        with silence():
            it = package.interpreter.Interpreter(
                model_path=os.fspath(path), num_threads=threads
            )
            it.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        raise FormatError(
            f"{os.fspath(path)!r} is not a LiteRT model that can run here: {error}"
        ) from error
    return it


def run_litert(path: str | os.PathLike[str], x: Any, *, threads: int = 1) -> Any:
    """Runs a .tflite file on a batch and returns its outputs as float.

    Where the file's inputs are int8, the values are rounded to its grid first, as the
    trained quantizer of the input does; int8 outputs are turned back into floats.

    Args:
        path: of the file.
        x: a batch of inputs; for a model of several inputs a list in the order of
            the model's inputs.
        threads: threads of the interpreter.

    Returns:
        An array, or a list of arrays for a model of several outputs.

    Raises:
        DataError: for data that does not fit the file's inputs.
        FormatError: for a file that is not a LiteRT model.
        MissingDependencyError: without the package `ai-edge-litert`.
    """
    it = interpreter(path, threads=threads)
    inputs, outputs = _ends(it.get_input_details()), _ends(it.get_output_details())
    arrays = [np.asarray(a) for a in (x if isinstance(x, list | tuple) else [x])]
    _check(arrays, inputs, path)
    size = int(inputs[0]["shape"][0])
    found: list[list[np.ndarray]] = [[] for _ in outputs]
    for start in range(0, len(arrays[0]), size):
        taken = 0
        for array, end in zip(arrays, inputs, strict=True):
            part = array[start : start + size]
            taken = len(part)
            if taken < size:
                part = np.concatenate([part, np.repeat(part[-1:], size - taken, 0)])
            it.set_tensor(end["index"], quantize(part, end))
        it.invoke()
        for collected, end in zip(found, outputs, strict=True):
            collected.append(_dequantize(it.get_tensor(end["index"]), end)[:taken])
    results = [np.concatenate(parts) for parts in found]
    return results[0] if len(results) == 1 else results


def _ends(details: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Inputs or outputs in the order of the model's, which their names keep."""
    return sorted(details, key=lambda d: (len(d["name"]), d["name"]))


def _check(arrays: list[np.ndarray], inputs: list[dict[str, Any]], path: Any) -> None:
    wanted = [tuple(int(n) for n in end["shape"][1:]) for end in inputs]
    given = [a.shape[1:] for a in arrays]
    if given != wanted or len({len(a) for a in arrays}) != 1 or not len(arrays[0]):
        raise DataError(
            f"{os.fspath(path)!r} takes batches of examples of shape {wanted}. "
            f"Received: {[a.shape for a in arrays]}."
        )


def quantize(values: np.ndarray, end: dict[str, Any]) -> np.ndarray:
    """Values in the type of an input, rounded to its grid as the kernels do."""
    if end["dtype"] != np.int8:
        return values.astype(end["dtype"])
    scale, zero = end["quantization"]
    codes = np.floor(values.astype("float32") / np.float32(scale) + np.float32(0.5))
    clipped: np.ndarray = np.clip(codes + zero, -128, 127)
    return clipped.astype("int8")


def _dequantize(values: np.ndarray, end: dict[str, Any]) -> np.ndarray:
    if end["dtype"] != np.int8:
        return values.copy()
    scale, zero = end["quantization"]
    found: np.ndarray = (values.astype("float32") - zero) * np.float32(scale)
    return found
