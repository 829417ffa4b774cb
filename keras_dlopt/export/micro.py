"""A file in the interpreter of microcontrollers, TFLM, beside LiteRT's reference."""

import dataclasses
import os
import pathlib
import re
import subprocess
import sys
import tempfile
from typing import Any, NamedTuple

import numpy as np

from keras_dlopt.errors import ExportError, require
from keras_dlopt.export.flat import Flat, Op
from keras_dlopt.export.runtime import interpreter, reference_interpreter

SECONDS = 600.0
# Examples that are compared where none are given, and most of those that are.
_RANDOM, _MOST = 8, 64
_SPARE = 1 << 22
_NODE = re.compile(r"Node (\S+) \(number (\d+)f?\) failed to (\w+)")
_MISSING = re.compile(r"Didn't find op for builtin opcode '(\S+)'")
_ARENA = re.compile(r"Arena allocation total (\d+) bytes")


class Unsupported(NamedTuple):
    """An operation that a target does not run.

    Attributes:
        number: of the operation in the file, from 0.
        reason: why not, in the words of the target's own tool where it has one.
    """

    number: int
    reason: str


@dataclasses.dataclass(frozen=True)
class Micro:
    """What TFLM's interpreter made of a file.

    Attributes:
        arena: bytes of its tensors and its own records.
        codes: output codes that were compared with those of LiteRT's kernels: reference
            or built-in, whichever are nearer.
        equal: those that are equal.
        largest: the largest difference in levels.
        operation: the largest difference of one operation on equal inputs, in levels.
    """

    arena: int
    codes: int
    equal: int
    largest: int
    operation: float

    def __str__(self) -> str:
        return (
            f"TFLM ran it in {self.arena:,} bytes of arena: {self.equal:,}"
            f" of {self.codes:,} output codes equal those of LiteRT's own "
            f"kernels, the largest difference is {self.largest} levels, and of one "
            f"operation on equal inputs {self.operation:g}"
        )


def require_package() -> None:
    """Raises `MissingDependencyError` without TFLM's interpreter."""
    require("tflite-micro", extra="tflm", purpose="Checking a file for TFLM")


def compare(
    path: str | os.PathLike[str], batches: list[list[np.ndarray]] | None = None
) -> Micro | Unsupported:
    """Runs a file in TFLM's interpreter and in LiteRT's reference kernels.

    Outputs are compared, and operation by operation what each makes of equal inputs.

    Args:
        path: of a `.tflite` file.
        batches: inputs in the file's order and types; None for random codes.

    Returns:
        The figures, or the operation that TFLM does not run or that differs by more
        than one level.

    Raises:
        ExportError: if TFLM fails and names no operation.
        MissingDependencyError: without the package `tflite-micro`.
    """
    require_package()
    file = Flat(path)
    batches = (batches or _random(file))[:_MOST]
    ends = len(file.outputs)
    run = _run(path, batches, ends, [i for op in file.ops for i in _moving(file, op)])
    if run.outputs is None:
        return _failure(file, run.log)
    both = [_differences(r(path), batches, run.outputs) for r in _LITERT]
    near = min(both, key=lambda apart: int(apart.sum()))
    by_operation = [_apart(path, n, run.tensors) for n in range(len(file.ops))]
    worst = int(np.argmax(by_operation))
    if by_operation[worst] > 1:
        return Unsupported(
            worst,
            f"TFLM's kernel and LiteRT's differ by {by_operation[worst]:g} levels on "
            "equal inputs",
        )
    found, arena = near, _ARENA.search(run.log)
    return Micro(
        arena=int(arena[1]) if arena else 0,
        codes=found.size,
        equal=int((found == 0).sum()),
        largest=int(found.max(initial=0)),
        operation=by_operation[worst],
    )


def outputs(
    path: str | os.PathLike[str], batches: list[list[np.ndarray]] | None = None
) -> list[list[np.ndarray]]:
    """The outputs of TFLM's interpreter for each batch.

    Args:
        path: of a `.tflite` file.
        batches: inputs in the file's order and types; None for random codes.

    Raises:
        ExportError: if TFLM does not run the file.
    """
    file = Flat(path)
    batches = (batches or _random(file))[:_MOST]
    run = _run(path, batches, len(file.outputs), [])
    if run.outputs is None:
        raise ExportError(f"TFLM cannot run the file: {_failure(file, run.log).reason}")
    return run.outputs


def _called(interpreter: Any, batch: list[np.ndarray]) -> list[np.ndarray]:
    for end, values in zip(interpreter.get_input_details(), batch, strict=True):
        interpreter.set_tensor(end["index"], values.reshape(end["shape"]))
    interpreter.invoke()
    return [
        interpreter.get_tensor(e["index"]) for e in interpreter.get_output_details()
    ]


def _moving(file: Flat, op: Op) -> list[int]:
    """What an operation takes and makes that is computed."""
    ends = [i for i in (*op.inputs, *op.outputs) if i >= 0]
    return [i for i in ends if file.data(i) is None]


def _apart(
    path: str | os.PathLike[str], number: int, tensors: dict[int, np.ndarray]
) -> float:
    """Levels between TFLM's and LiteRT's result of one operation; floats count 0."""
    file = Flat(path)
    op = file.ops[number]
    taken = [i for i in dict.fromkeys(op.inputs) if i in tensors]
    given, made = [tensors[i] for i in taken], [tensors[i] for i in op.outputs]
    file.ops, file.inputs[:], file.outputs[:] = [op], taken, op.outputs
    file.model.signatureDefs = None
    with tempfile.TemporaryDirectory() as folder:
        alone = os.path.join(folder, "alone.tflite")
        file.write(alone)
        apart = [_levels(_called(run(alone), given), made) for run in _LITERT]
    return min(apart)


def _built_in(path: str | os.PathLike[str]) -> Any:
    return interpreter(path, kernels="built-in")


# LiteRT's reference of SUM is wrong where its other kernel is right.
_LITERT = (reference_interpreter, _built_in)


def _differences(
    interpreter: Any, batches: list[list[np.ndarray]], outputs: list[list[np.ndarray]]
) -> np.ndarray:
    """The levels between LiteRT's and TFLM's output codes."""
    apart = [
        np.abs(wanted.astype("int64") - ours.reshape(wanted.shape)).ravel()
        for batch, got in zip(batches, outputs, strict=True)
        for wanted, ours in zip(_called(interpreter, batch), got, strict=True)
    ]
    return np.concatenate(apart)


def _levels(results: list[np.ndarray], made: list[np.ndarray]) -> float:
    codes = [
        np.abs(r.astype("int64") - m.reshape(r.shape)).max(initial=0)
        for r, m in zip(results, made, strict=True)
        if r.dtype.kind == "i"
    ]
    return float(max(codes, default=0))


def _random(file: Flat) -> list[list[np.ndarray]]:
    rng = np.random.default_rng(0)

    def values(index: int) -> np.ndarray:
        kind = np.dtype(file.type(index))
        # Other integers than codes are numbers of rows: small ones exist for sure.
        limits = np.iinfo(kind)
        wide = kind.itemsize < 4
        low, high = (limits.min, limits.max + 1) if wide else (0, 2)
        return np.asarray(rng.integers(low, high, file.shape(index)), kind)

    return [[values(i) for i in file.inputs] for _ in range(_RANDOM)]


def _arena(file: Flat) -> int:
    """Bytes that are enough in any case: all tensors at once."""
    sizes = [np.prod(file.shape(i) or (1,)) for i in range(len(file.tensors))]
    return int(8 * sum(sizes)) + 4096 * len(file.ops) + _SPARE


@dataclasses.dataclass(frozen=True, eq=False)
class _Run:
    """The outputs of each batch, None if TFLM failed; tensors of the first; its log."""

    outputs: list[list[np.ndarray]] | None
    tensors: dict[int, np.ndarray]
    log: str


def _run(
    path: str | os.PathLike[str],
    batches: list[list[np.ndarray]],
    ends: int,
    tensors: list[int],
) -> _Run:
    script = pathlib.Path(__file__).with_name("_micro_process.py")
    given = {f"{b}_{n}": x for b, xs in enumerate(batches) for n, x in enumerate(xs)}
    given["counts"] = np.array([len(batches), ends])
    given["tensors"] = np.unique(np.array(tensors, "int64"))
    with tempfile.TemporaryDirectory() as folder:
        place = pathlib.Path(folder)
        np.savez(place / "inputs.npz", **given)  # type: ignore[arg-type]
        # -P: this package's files must not hide other modules.
        command = [sys.executable, "-P", str(script), os.path.abspath(path), folder]
        try:
            done = subprocess.run(
                [*command, str(_arena(Flat(path)))],
                capture_output=True,
                text=True,
                errors="replace",
                timeout=SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise ExportError(
                f"TFLM's interpreter did not finish {os.fspath(path)!r} within "
                f"{SECONDS:.0f} s. Give fewer examples as data, or leave data out."
            ) from None
        log = done.stdout + done.stderr
        if done.returncode or not (place / "outputs.npz").is_file():
            return _Run(None, {}, log)
        with np.load(place / "outputs.npz") as made:
            outputs = [
                [made[f"{b}_{end}"] for end in range(ends)] for b in range(len(batches))
            ]
        with np.load(place / "tensors.npz") as made:
            found = {int(i): made[i] for i in made.files}
        return _Run(outputs, found, log)


def _failure(file: Flat, log: str) -> Unsupported:
    missing, node = _MISSING.search(log), _NODE.search(log)
    if missing is not None:
        names = [op.name for op in file.ops]
        if missing[1] in names:
            return Unsupported(names.index(missing[1]), "TFLM has no such operator")
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    told = [x for x in lines if not x.startswith(("Traceback", "File ", "Node "))]
    if node is not None and int(node[2]) < len(file.ops):
        at = lines.index(next(x for x in lines if node[0] in x))
        before = lines[at - 1] if at else f"its kernel failed to {node[3]}"
        return Unsupported(int(node[2]), before)
    raise ExportError(
        "TFLM's interpreter failed on the file and named no operation: "
        f"{told[-1] if told else 'it wrote nothing'}"
    )
