"""Running any exported file on NumPy batches."""

import os
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from keras_dlopt import checks
from keras_dlopt.errors import ConfigError, FormatError
from keras_dlopt.export.batches import decoded, encoded, in_order, quantize
from keras_dlopt.export.onnx_runtime import OnnxRuntime
from keras_dlopt.export.runtime import End, LiteRT

# Examples that are scaled to a grid at a time.
_BLOCK = 256


class _Runtime(Protocol):
    inputs: tuple[End, ...]
    outputs: tuple[End, ...]

    def run(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]: ...

    def run_each(
        self, arrays: Sequence[np.ndarray], size: int
    ) -> list[list[np.ndarray]]: ...


_BARE = {
    ".tflite": "Use ai_edge_litert.interpreter.Interpreter on it.",
    ".onnx": "Use onnxruntime.InferenceSession on it.",
}
_RUNTIMES: dict[str, Callable[[str, int], _Runtime]] = {
    ".tflite": LiteRT,
    ".onnx": OnnxRuntime,
}


class Predictor:
    """A .tflite or .onnx file as a function of NumPy batches.

    Inputs and outputs are floats as the model has them: where the file's are int8, they
    are rounded to its grid and scaled back. A file whose batch size is open runs the
    whole batch in one call; one written for a fixed size is called in a loop, its last
    batch filled up.

    It can be called from several threads: LiteRT's calls then wait for each other,
    ONNX Runtime's run side by side.

    Args:
        path: of the file.
        threads: that the runtime uses for one call.
        batch_size: most examples in one call of a file whose batch size is open, which
            bounds the memory; None for all.

    Attributes:
        path: of the file.
        inputs: name, shape and type of each input in the order of the model's.
        outputs: the same for the outputs.

    Raises:
        ConfigError: for another kind of file, or a wrong argument.
        FileNotFoundError: if there is no file.
        FormatError: for a damaged file.
        MissingDependencyError: without the package of the file's runtime.

    Example:
        >>> model = keras.Sequential([keras.Input((2,), name="x"), keras.layers.ReLU()])
        >>> _ = dlopt.export.litert(model, "relu.tflite")
        >>> predict = Predictor("relu.tflite")
        >>> predict(np.array([[-1, 2], [3, -4], [5, 6]], "float32")).tolist()
        [[0.0, 2.0], [3.0, 0.0], [5.0, 6.0]]
        >>> predict.inputs[0].name, predict.inputs[0].shape
        ('x', (1, 2))
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        threads: int = 1,
        batch_size: int | None = None,
    ):
        self.path = os.fspath(path)
        checks.count(threads, name="threads")
        checks.optional(checks.count, batch_size, name="batch_size")
        kind = os.path.splitext(self.path)[1]
        if kind not in _RUNTIMES:
            raise ConfigError(
                f"{self.path!r} is no file that Predictor runs: its name must end in "
                ".tflite or .onnx. For a .keras file use keras.saving.load_model."
            )
        self._runtime = self._open(kind, threads)
        self.inputs = self._runtime.inputs
        self.outputs = self._runtime.outputs
        self._bare = _BARE[kind]
        fixed = self._fixed()
        self._is_fixed = fixed is not None
        self._size = fixed or batch_size
        self._plain = self._plain_input()
        self._on_grid = any(end.scale for end in self.outputs)

    def __call__(self, x: Any) -> Any:
        """The outputs for a batch.

        Args:
            x: an array of shape (examples, ...); for several inputs a list in the order
                of the model's, a dict by name, or the structure that the model takes.

        Returns:
            An array, or a list in the order of the model's for several outputs.

        Raises:
            DataError: for data that does not fit the file's inputs.
        """
        results = self._results(x)
        return results[0] if len(results) == 1 else results

    def named(self, x: Any) -> dict[str, np.ndarray]:
        """The outputs for a batch, by name."""
        names = [end.name for end in self.outputs]
        return dict(zip(names, self._results(x), strict=True))

    def __repr__(self) -> str:
        return f"Predictor({self.path!r})"

    def _open(self, kind: str, threads: int) -> _Runtime:
        return _RUNTIMES[kind](self.path, threads)

    def _fixed(self) -> int | None:
        """How many examples the file takes in one call; None if any number."""
        if any(not end.shape for end in self.inputs) or not self.inputs:
            raise FormatError(
                f"{self.path!r} takes an input without a dimension for the batch: it "
                f"was not made from a Keras model. {self._bare}"
            )
        sizes = {end.shape[0] for end in self.inputs} - {None}
        if len(sizes) > 1:
            raise FormatError(
                f"The inputs of {self.path!r} have different batch sizes, {sizes}. "
                f"{self._bare}"
            )
        return next(iter(sizes), None)

    def _plain_input(self) -> tuple[Any, ...]:
        """Shape of an example and type of a batch that need no second look."""
        end, *others = self.inputs
        known = not others and None not in end.shape[1:]
        dtype = np.dtype("float32") if end.scale else end.dtype
        return (end.shape[1:], dtype) if known else (None, None)

    def _results(self, x: Any) -> list[np.ndarray]:
        if type(x) is np.ndarray and (x.shape[1:], x.dtype) == self._plain:
            rows, (end,) = len(x), self.inputs
            if rows == self._size or (rows and self._size is None):
                return self._call([quantize(x, end) if end.scale else x], rows)
            arrays = [x] if rows else self.in_order(x)
        else:
            arrays = self.in_order(x)
        total = len(arrays[0])
        size = self._size or total
        if size == total:
            return self._call(self._encoded(arrays), total)
        block = max(_BLOCK // size, 1) * size
        if total <= block:
            return self._block(arrays, size)
        results: list[np.ndarray] = []
        for start in range(0, total, block):
            made = self._block([a[start : start + block] for a in arrays], size)
            if not start:
                results = [np.empty((total, *a.shape[1:]), a.dtype) for a in made]
            for result, array in zip(results, made, strict=True):
                result[start : start + len(array)] = array
        return results

    def _block(self, arrays: list[np.ndarray], size: int) -> list[np.ndarray]:
        """The outputs for some examples, `size` of them in a call."""
        rows = len(arrays[0])
        part = self._encoded(arrays)
        if self._is_fixed and rows % size:
            part = [_filled(a, size - rows % size) for a in part]
        total = len(part[0])
        runs = self._runtime.run_each(part, size)
        self._check(runs[0], min(size, total))
        made = [np.concatenate(parts) for parts in zip(*runs, strict=True)]
        self._check(made, total)
        return self._decoded([a[:rows] for a in made] if rows < total else made)

    def _call(self, arrays: list[np.ndarray], rows: int) -> list[np.ndarray]:
        made = self._runtime.run(arrays)
        self._check(made, rows)
        return self._decoded(made) if self._on_grid else made

    def _decoded(self, made: list[np.ndarray]) -> list[np.ndarray]:
        return [decoded(a, end) for a, end in zip(made, self.outputs, strict=True)]

    def _check(self, made: list[np.ndarray], rows: int) -> None:
        """Raises where an output is not one row an example."""
        for i, array in enumerate(made):
            if array.ndim == 0 or len(array) != rows:
                raise FormatError(
                    f"The output {self.outputs[i].name!r} of {self.path!r} has the "
                    f"shape {array.shape} for a batch of {rows}, not one row an "
                    f"example. {self._bare}"
                )

    def in_order(self, x: Any) -> list[np.ndarray]:
        """The arrays of a batch in the order of the file's inputs, checked.

        Raises:
            DataError: for data that does not fit the file's inputs.
        """
        return in_order(x, self.inputs, path=self.path)

    def _encoded(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        return [encoded(a, end) for a, end in zip(arrays, self.inputs, strict=True)]


def _filled(values: np.ndarray, more: int) -> np.ndarray:
    """A batch with its last example repeated."""
    return np.concatenate([values, np.repeat(values[-1:], more, 0)])


def run_litert(path: str | os.PathLike[str], x: Any, *, threads: int = 1) -> Any:
    """Runs a .tflite file on one batch: `Predictor(path, threads=threads)(x)`.

    Args:
        path: of the file.
        x: a batch of inputs, as `Predictor` takes it.
        threads: of the interpreter.
    """
    return Predictor(path, threads=threads)(x)
