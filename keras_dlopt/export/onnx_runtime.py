"""Running an .onnx file on the CPU."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_dlopt.errors import FormatError, require
from keras_dlopt.export.runtime import End

_TYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(bool)": "bool",
} | {f"tensor({t}int{n})": f"{t}int{n}" for t in ("", "u") for n in (8, 16, 32, 64)}


def session(
    path: str | os.PathLike[str], *, threads: int = 1, optimized: bool = True
) -> Any:
    """An `InferenceSession` of ONNX Runtime for the file.

    Args:
        path: of the file.
        threads: of one call.
        optimized: False runs each operation as it stands: what lies between quantizers
            in float, where the optimizer would choose kernels of int8.

    Raises:
        FormatError: for a file that is not an ONNX model.
        FileNotFoundError: if there is none.
        MissingDependencyError: without the package `onnxruntime`.
    """
    require("onnxruntime", extra="onnx", purpose="Running .onnx files")
    import onnxruntime

    if not os.path.isfile(path):
        raise FileNotFoundError(f"There is no file {os.fspath(path)!r}.")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # errors are raised
    # Else it rounds what goes into dense layers of int8 weights, by grids of its own.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    if not optimized:
        levels = onnxruntime.GraphOptimizationLevel
        options.graph_optimization_level = levels.ORT_DISABLE_ALL
    # Products of int8 that saturate on x86 without VNNI become others that do not; of
    # graphs whose kernels share a zero point it then makes none.
    for exact in ("1", "0"):
        options.add_session_config_entry("session.x64quantprecision", exact)
        try:
            return onnxruntime.InferenceSession(
                os.fspath(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # of classes that have no public name
            failed = error
    raise FormatError(
        f"{os.fspath(path)!r} is not an ONNX model that can run here: {failed}"
    ) from failed


class OnnxRuntime:
    """An .onnx file, ready to run; calls from several threads run side by side.

    Attributes:
        inputs: in the order of the file's.
        outputs: the same.
    """

    def __init__(self, path: str, threads: int, *, optimized: bool = True):
        self._path = path
        self._session = session(path, threads=threads, optimized=optimized)
        self.inputs = tuple(_end(path, one) for one in self._session.get_inputs())
        self.outputs = tuple(_end(path, one) for one in self._session.get_outputs())
        self._names = [end.name for end in self.inputs]

    def run(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The outputs for inputs of the file's types.

        Raises:
            FormatError: if an operation of the file fails on them.
        """
        try:
            found: list[np.ndarray] = self._session.run(
                None, dict(zip(self._names, arrays, strict=True))
            )
        except Exception as error:  # of classes that have no public name
            raise FormatError(
                f"{self._path!r} failed on inputs of shape "
                f"{[a.shape for a in arrays]}: {error}"
            ) from error
        return found

    def run_each(
        self, arrays: Sequence[np.ndarray], size: int
    ) -> list[list[np.ndarray]]:
        """The outputs of each call with `size` of the examples."""
        starts = range(0, len(arrays[0]), size)
        return [self.run([a[low : low + size] for a in arrays]) for low in starts]


def _end(path: str, one: Any) -> End:
    if one.type not in _TYPES:
        raise FormatError(
            f"{one.name!r} in {path!r} is of type {one.type}, and Predictor runs "
            "tensors of numbers only."
        )
    sizes = tuple(n if isinstance(n, int) else None for n in one.shape)
    return End(one.name, sizes, np.dtype(_TYPES[one.type]))
