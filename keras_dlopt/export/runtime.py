"""Running a .tflite file on the CPU."""

import contextlib
import dataclasses
import functools
import importlib.metadata
import os
import re
import threading
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from keras_dlopt.errors import FormatError, missing
from keras_dlopt.export.quiet import silence

# Names that TensorFlow and Keras number where a model's ends have none.
_NUMBERED = re.compile(r"(?:args_0|inputs|input|output)(?:_(\d+))?")


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


# The runtime's implementations of one operator, and how they are asked for. The first
# is what runs by default; where it has no kernel, the second does.
KERNELS = {
    "XNNPACK": "AUTO",
    "built-in": "BUILTIN_WITHOUT_DEFAULT_DELEGATES",
    "reference": "BUILTIN_REF",
}


def runtime_name() -> str:
    """The package that runs .tflite files, with its version."""
    return f"ai-edge-litert {importlib.metadata.version('ai-edge-litert')}"


def interpreter(
    path: str | os.PathLike[str],
    *,
    threads: int = 1,
    allocate: bool = True,
    kernels: str = "XNNPACK",
) -> Any:
    """An `Interpreter` for the file, with its tensors allocated.

    Args:
        path: of the file.
        threads: of one call.
        kernels: one of `KERNELS`.
        allocate: False leaves the tensors to the caller where a size is open; the
            sizes that stand in for it may be smaller than the operations bear.

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
            found = package.interpreter
            it = found.Interpreter(
                model_path=os.fspath(path),
                num_threads=threads,
                experimental_op_resolver_type=found.OpResolverType[KERNELS[kernels]],
            )
            if allocate or not any(_is_open(end) for end in it.get_input_details()):
                it.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        raise FormatError(
            f"{os.fspath(path)!r} is not a LiteRT model that can run here: {error}"
        ) from error
    return it


def reference_interpreter(path: str | os.PathLike[str]) -> Any:
    """An `Interpreter` of LiteRT's reference kernels, without XNNPACK.

    Operators that these lack run in the optimized kernels.

    Raises:
        FormatError: for a file that neither runs.
        MissingDependencyError: without the package `ai-edge-litert`.
    """
    module = litert_package().interpreter
    kinds = module.OpResolverType
    for kind in (kinds.BUILTIN_REF, kinds.BUILTIN_WITHOUT_DEFAULT_DELEGATES):
        with silence(), contextlib.suppress(ValueError, RuntimeError):
            it = module.Interpreter(
                model_path=os.fspath(path), experimental_op_resolver_type=kind
            )
            it.allocate_tensors()
            return it
    raise FormatError(
        f"{os.fspath(path)!r} is not a LiteRT model that can run here without XNNPACK."
    )


def _is_open(details: dict[str, Any]) -> bool:
    return any(n < 0 for n in details["shape_signature"])


class Signature(NamedTuple):
    """Name -> number of the tensor, of what a .tflite file takes and returns."""

    inputs: dict[str, int]
    outputs: dict[str, int]


def signature_of(model: Any) -> Signature:
    """The first signature in a file's schema object `Model`; empty if there is none."""
    if not model.SignatureDefsLength():
        return Signature({}, {})
    entry = model.SignatureDefs(0)

    def ends(count: int, get: Any) -> dict[str, int]:
        maps = [get(i) for i in range(count)]
        return {m.Name().decode(): m.TensorIndex() for m in maps}

    return Signature(
        ends(entry.InputsLength(), entry.Inputs),
        ends(entry.OutputsLength(), entry.Outputs),
    )


@dataclasses.dataclass(frozen=True)
class End:
    """An input or output of a file.

    Attributes:
        name: from the file's signature.
        shape: of the tensor, the batch first; None for a size that is open.
        dtype: of the tensor in the file.
        scale: step of its grid; 0.0 for tensors without one.
        zero_point: code of 0 on the grid.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: np.dtype[Any]
    scale: float = 0.0
    zero_point: int = 0

    @functools.cached_property
    def numbers(self) -> tuple[np.float32, ...]:
        """Of the grid: scale, half a level, code of 0, and the least and largest."""
        limits = np.iinfo(self.dtype)
        found = (self.scale, 0.5, self.zero_point, limits.min, limits.max)
        return tuple(np.float32(number) for number in found)


class LiteRT:
    """A .tflite file, ready to run; calls from several threads wait for each other.

    Args:
        path: of the file.
        threads: of one call.
        kernels: one of `KERNELS`.

    Attributes:
        inputs: in the order of the model's.
        outputs: the same.
    """

    def __init__(self, path: str, threads: int, *, kernels: str = "XNNPACK"):
        self._path = path
        self._run = interpreter(path, threads=threads, allocate=False, kernels=kernels)
        self._lock = threading.Lock()
        with open(path, "rb") as file:
            data = file.read()
        named = signature_of(
            litert_package().schema_py_generated.Model.GetRootAs(data, 0)
        )
        taken = _ordered(self._run.get_input_details(), named.inputs)
        made = _ordered(self._run.get_output_details(), named.outputs)
        self.inputs = tuple(_end(name, details) for name, details in taken)
        self.outputs = tuple(_end(name, details) for name, details in made)
        self._into = [details["index"] for _, details in taken]
        self._from = [details["index"] for _, details in made]
        # Of what is allocated; nothing yet, where a size is open.
        self._shapes: list[tuple[Any, ...]] = [end.shape for end in self.inputs]

    def run(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The outputs for inputs of the file's types.

        Raises:
            FormatError: if an operation of the file fails on them.
        """
        with self._lock:
            try:
                return self._called(arrays)
            except (ValueError, RuntimeError) as error:
                raise self._failed(arrays, error) from error

    def _called(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        run = self._run
        shapes: list[tuple[Any, ...]] = [a.shape for a in arrays]
        if shapes != self._shapes:
            self._resize(shapes)
        for index, array in zip(self._into, arrays, strict=True):
            run.set_tensor(index, array)
        run.invoke()
        return [run.get_tensor(index) for index in self._from]

    def _failed(self, arrays: Sequence[np.ndarray], error: Exception) -> FormatError:
        self._shapes = []
        return FormatError(
            f"{self._path!r} failed on inputs of shape {[a.shape for a in arrays]}: "
            f"{error}"
        )

    def run_each(
        self, arrays: Sequence[np.ndarray], size: int
    ) -> list[list[np.ndarray]]:
        """The outputs of each call with `size` of the examples.

        Raises:
            FormatError: if an operation of the file fails on them.
        """
        call = self._called
        with self._lock:
            try:
                starts = range(0, len(arrays[0]), size)
                return [call([a[low : low + size] for a in arrays]) for low in starts]
            except (ValueError, RuntimeError) as error:
                raise self._failed([a[:size] for a in arrays], error) from error

    def in_batches(self, arrays: Sequence[np.ndarray]) -> Iterator[list[np.ndarray]]:
        """The outputs for inputs of any number of examples, a batch at a time.

        The last batch is filled up with the first examples.
        """
        total = len(arrays[0])
        size = self.inputs[0].shape[0] or total
        for start in range(0, total, size):
            yield self.run([a[(start + np.arange(size)) % total] for a in arrays])

    def _resize(self, shapes: list[tuple[Any, ...]]) -> None:
        with silence():
            for index, shape in zip(self._into, shapes, strict=True):
                self._run.resize_tensor_input(index, shape)
            self._run.allocate_tensors()
        self._shapes = shapes


def _ordered(
    details: list[dict[str, Any]], signature: dict[str, int]
) -> list[tuple[str, dict[str, Any]]]:
    """The ends with their names, as the file has them, or by numbers in the names."""
    left = list(signature.items())
    found = []
    for end in details:
        name = next((n for n, index in left if index == end["index"]), None)
        if name is not None:
            left.remove((name, end["index"]))
        found.append((name or end["name"], end))
    numbers = [int(m[1] or 0) for name, _ in found if (m := _NUMBERED.fullmatch(name))]
    if len(numbers) < len(found):
        return found
    return [found[i] for i in np.argsort(numbers, kind="stable")]


def _end(name: str, details: dict[str, Any]) -> End:
    sizes = details["shape_signature"] if _is_open(details) else details["shape"]
    scale, zero = details["quantization"]
    return End(
        name=name,
        shape=tuple(None if n < 0 else int(n) for n in sizes),
        dtype=np.dtype(details["dtype"]),
        scale=float(scale),
        zero_point=int(zero),
    )
