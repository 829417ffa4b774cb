"""`measure`: several models side by side, their sizes, work, memory and time."""

import contextlib
import dataclasses
import functools
import os
import pathlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras

from keras_dlopt import checks
from keras_dlopt.errors import ConfigError
from keras_dlopt.export.costs import litert_costs
from keras_dlopt.interop.files import load as load_keras
from keras_dlopt.measure.costs import costs
from keras_dlopt.measure.latency import Latency, latency
from keras_dlopt.measure.npu import ACCELERATORS, NpuEstimate, npu_estimate
from keras_dlopt.report import runners
from keras_dlopt.report.document import percent, size
from keras_dlopt.report.variants import plain_model
from keras_dlopt.storage import load_compressed
from keras_dlopt.tables import Table, Tabled, to_markdown

ModelOrPath = Any  # keras.Model, str or os.PathLike
_SUFFIXES = (".keras", ".h5", ".dlopt", *runners.OF_FILES)


@dataclasses.dataclass(frozen=True)
class Measured:
    """One model, or one file, measured.

    Attributes:
        name: shown in tables.
        parameters: elements of its weights; None where it is not known.
        macs: multiply-accumulates of one example; None where they are not known.
        peak: most bytes that its activations take together; None as above.
        weight_bytes: of the weights in memory; None for files of other runtimes.
        file_bytes: of the file; of a temporary `.keras` file for a model in memory;
            None if it cannot be saved.
        latency: runtime -> time of one call.
        npu: what Arm's compiler estimates, if it was asked.
        uncounted: layers or operations whose multiply-accumulates are not known.
    """

    name: str
    parameters: int | None
    macs: int | None
    peak: int | None
    weight_bytes: int | None
    file_bytes: int | None
    latency: dict[str, Latency] = dataclasses.field(default_factory=dict)
    npu: NpuEstimate | None = None
    uncounted: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Measurements(Tabled):
    """Several models, measured in one run. `print` shows them as a table.

    Attributes:
        models: in the order in which they were given.
        threads: of LiteRT, ONNX Runtime and OpenVINO.
        tensorflow_threads: of TensorFlow in this process; 0 for as many as it likes.
    """

    models: tuple[Measured, ...]
    threads: int
    tensorflow_threads: int

    def table(self) -> Table:
        """A column a model."""
        rows = [(name, *map(figure, self.models)) for name, figure in _FIGURES.items()]
        for runtime in dict.fromkeys(r for m in self.models for r in m.latency):
            rows += self._times(runtime)
        if any(m.npu for m in self.models):
            rows += [
                (
                    f"estimate, {name}",
                    *(say(m.npu) if m.npu else "" for m in self.models),
                )
                for name, say in _ESTIMATES.items()
            ]
        kept = tuple(row for row in rows if any(row[1:]))
        columns = ("", *(m.name for m in self.models))
        return Table("Measured", columns, kept, note=self._note())

    def _times(self, runtime: str) -> list[tuple[str, ...]]:
        found = [m.latency.get(runtime) for m in self.models]
        first = next(t for m in self.models for t in m.latency.values()).median
        label = _LABELS[runtime]
        return [
            (f"{label}, ms", *("" if t is None else t.text() for t in found)),
            (
                f"{label}, ratio",
                *("" if t is None else f"{t.median / first:.2f}x" for t in found),
            ),
        ]

    def _note(self) -> str:
        notes = []
        if any(m.latency for m in self.models):
            own = self.tensorflow_threads or "as many as it likes"
            notes.append(
                "Times of one call, measured in turns: median, and 10 % to 90 %; only "
                "ratios, all to the first, carry over. "
                f"Threads: {self.threads}; TensorFlow: {own}."
            )
        if any(m.npu for m in self.models):
            notes.append(
                "The estimate is Arm's compiler's for an Ethos-U; nothing was run. "
                "Operators on the CPU count as no time in it."
            )
        for m in self.models:
            if m.uncounted:
                names = ", ".join(m.uncounted[:5]) + (" ..." if m.uncounted[5:] else "")
                notes.append(f"{m.name}: MACs without those of {names}.")
            if m.npu is not None and m.npu.cpu:
                told = "; ".join(f"{op} ({why})" for op, _, why in m.npu.cpu[:3])
                notes.append(f"{m.name} on the CPU: {told}.")
        return " ".join(notes)

    def to_markdown(self) -> str:
        """The table for a README or a pull request."""
        return to_markdown(self.table())

    def tables(self) -> tuple[Table, ...]:
        """The one table."""
        return (self.table(),)


def _figure(name: str) -> Callable[[Measured], str]:
    def show(model: Measured) -> str:
        value = getattr(model, name)
        return "" if value is None else size(value)

    return show


_FIGURES = {
    "parameters": _figure("parameters"),
    "MACs": _figure("macs"),
    "peak activations, bytes": _figure("peak"),
    "weights in memory, bytes": _figure("weight_bytes"),
    "file, bytes": _figure("file_bytes"),
}
_LABELS = {
    "graph": "Keras, tf.function",
    "xla": "Keras, XLA",
    "litert": "LiteRT",
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
}
_ESTIMATES: dict[str, Callable[[NpuEstimate], str]] = {
    "accelerator": lambda e: e.accelerator,
    "ms": lambda e: f"{1e3 * e.seconds:.3f}",
    "cycles": lambda e: size(e.cycles),
    "flash, bytes": lambda e: size(e.flash),
    "SRAM, bytes": lambda e: size(e.sram),
    "operators on the CPU": lambda e: (
        f"{len(e.cpu)} of {e.operators}, {percent(len(e.cpu) / e.operators, 0)}"
        if e.cpu
        else "0"
    ),
}


def measure(
    models: ModelOrPath | Sequence[ModelOrPath] | Mapping[str, ModelOrPath],
    *,
    runtimes: Sequence[str] | None = None,
    data: Any = None,
    threads: int = 1,
    calls: int = 50,
    npu: str | None = None,
    safe_mode: bool = True,
) -> Measurements:
    """Measures models side by side: parameters, MACs, memory, bytes and time.

    Times are taken in turns, call by call, after three calls that warm up. TensorFlow
    takes the threads that it was started with (`TF_NUM_INTRAOP_THREADS`); the other
    runtimes take `threads`.

    Args:
        models: a Keras model or the path of a `.keras`, `.h5`, `.dlopt`, `.tflite` or
            `.onnx` file; several as a sequence, or as name -> model.
        runtimes: any of `"graph"` and `"xla"` (TensorFlow), `"litert"`,
            `"onnxruntime"` (`.onnx` files only) and `"openvino"`; those that fit each
            model. None takes `"graph"` for Keras models and a file's own runtime; ()
            measures no time.
        data: a batch of inputs for the Keras models; None draws one example. Files of
            other runtimes get random inputs of the shapes that they were written with.
        threads: of runtimes other than TensorFlow.
        calls: timed calls of each.
        npu: an Ethos-U, such as `"ethos-u55-128"`, for which Arm's Vela estimates
            cycles, flash and SRAM of the `.tflite` files.
        safe_mode: whether Python code in files of Keras is refused.

    Raises:
        ConfigError: for a file that is not there or not known, an unknown runtime or
            accelerator, or no model.
        ModelError: for a model that is not built or whose inputs are not known.
        MissingDependencyError: where a runtime or Vela is not installed.

    Example:
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
        >>> found = measure({"dense": model}, runtimes=())
        >>> found.models[0].parameters, found.models[0].macs
        (36, 32)
    """
    checks.count(threads, name="threads")
    checks.count(calls, name="calls")
    for runtime in runtimes or ():
        checks.choice(runtime, name="runtimes", choices=tuple(_LABELS))
    if npu is not None:
        checks.choice(npu, name="npu", choices=tuple(ACCELERATORS))
    given = _named(models)
    taken = {name: _opened(model, safe_mode) for name, model in given.items()}
    found = [
        _costs(name, model, given[name], data, npu) for name, model in taken.items()
    ]
    timed = times(taken, runtimes=runtimes, data=data, threads=threads, calls=calls)
    return Measurements(
        models=tuple(
            dataclasses.replace(m, latency=timed.get(m.name, {})) for m in found
        ),
        threads=threads,
        tensorflow_threads=_tensorflow_threads(),
    )


def _named(models: Any) -> dict[str, ModelOrPath]:
    if isinstance(models, Mapping):
        named = {str(name): model for name, model in models.items()}
    else:
        one = isinstance(models, str | os.PathLike | keras.Model)
        named = {}
        for model in [models] if one else models:
            is_path = isinstance(model, str | os.PathLike)
            name = pathlib.Path(model).name if is_path else getattr(model, "name", "")
            number = sum(n == name or n.startswith(f"{name} (") for n in named)
            named[f"{name} ({number + 1})" if number else name] = model
    if not named:
        raise ConfigError("There is nothing to measure. Give a model or a file.")
    return named


def _opened(model: ModelOrPath, safe_mode: bool = True) -> Any:
    """The Keras model, or the path of a file that another runtime reads."""
    if isinstance(model, keras.Model):
        return plain_model(model)
    if not isinstance(model, str | os.PathLike):
        raise ConfigError(
            f"measure takes Keras models and paths of files. Received: {model!r}."
        )
    path = pathlib.Path(model)
    if path.suffix not in _SUFFIXES:
        raise ConfigError(
            f"{os.fspath(path)!r} is no file that can be measured: its name must end "
            f"in {', '.join(_SUFFIXES)}."
        )
    if not path.is_file():
        raise ConfigError(f"There is no file {os.fspath(path)!r}.")
    if path.suffix == ".dlopt":
        return load_compressed(path)
    if path.suffix in (".keras", ".h5"):
        return load_keras(path, safe_mode=safe_mode)
    return path


def load(path: str | os.PathLike[str]) -> keras.Model:
    """The model in a `.keras`, `.h5` or `.dlopt` file.

    Raises:
        ConfigError: for another kind of file, or none.
    """
    model = _opened(path)
    if isinstance(model, pathlib.Path):
        raise ConfigError(
            f"{os.fspath(path)!r} holds no Keras model. Give the .keras, .h5 or .dlopt "
            "file that it was made from."
        )
    return model


def _costs(name: str, model: Any, given: Any, data: Any, npu: str | None) -> Measured:
    if isinstance(model, pathlib.Path):
        return _of_file(name, model, npu)
    counted = costs(model, data)
    return Measured(
        name=name,
        parameters=counted.parameters,
        macs=counted.macs,
        peak=counted.peak,
        weight_bytes=counted.bytes,
        file_bytes=_file_bytes(model, given),
        uncounted=counted.uncounted,
    )


def _of_file(name: str, path: pathlib.Path, npu: str | None) -> Measured:
    is_litert = path.suffix == ".tflite"
    counted = litert_costs(path) if is_litert else None
    return Measured(
        name=name,
        parameters=counted.parameters if counted else None,
        macs=counted.macs if counted else None,
        peak=counted.peak if counted else None,
        weight_bytes=None,
        file_bytes=path.stat().st_size,
        npu=npu_estimate(path, accelerator=npu) if npu and is_litert else None,
        uncounted=counted.uncounted if counted else (),
    )


def _file_bytes(model: Any, given: Any) -> int | None:
    if isinstance(given, str | os.PathLike):
        return pathlib.Path(given).stat().st_size
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "model.keras"
        # A class without get_config has no file, and is measured all the same.
        with contextlib.suppress(NotImplementedError, TypeError, ValueError):
            model.save(file)
        return file.stat().st_size if file.exists() else None


def times(
    models: Mapping[str, Any],
    *,
    runtimes: Sequence[str] | None = None,
    data: Any = None,
    threads: int = 1,
    calls: int = 50,
) -> dict[str, dict[str, Latency]]:
    """Times of Keras models and files (`pathlib.Path`), all in turns; see `measure`.

    Returns:
        Name -> runtime -> time of one call.
    """
    ready: dict[tuple[str, str], Callable[[Any], Any]] = {}
    for name, model in models.items():
        is_file = isinstance(model, pathlib.Path)
        able = runners.OF_FILES[model.suffix] if is_file else runners.OF_KERAS
        wanted = able[:1] if runtimes is None else [r for r in runtimes if r in able]
        given = data
        if given is None and wanted and not is_file:
            given = runners.example_of(model)
        for runtime in wanted:
            if is_file:
                call = runners.of_file(model, runtime, threads)
            else:
                call = runners.of_model(model, runtime, given, threads)
            ready[name, runtime] = functools.partial(_run, call)
    found: dict[str, dict[str, Latency]] = {}
    if ready:
        for (name, runtime), time in latency(ready, None, calls=calls).items():
            found.setdefault(name, {})[runtime] = time
    return found


def _run(call: runners.Call, _: Any) -> Any:
    return call()


def limit_threads(threads: int) -> None:
    """Has TensorFlow use so many threads, if it has not begun to compute yet."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        with contextlib.suppress(RuntimeError):  # it has begun
            tf.config.threading.set_intra_op_parallelism_threads(threads)


def _tensorflow_threads() -> int:
    if keras.backend.backend() != "tensorflow":
        return 0
    import tensorflow as tf

    told = os.environ.get("TF_NUM_INTRAOP_THREADS", "0")
    set_to: int = tf.config.threading.get_intra_op_parallelism_threads()
    return set_to or (int(told) if told.isdigit() else 0)
