"""`check`: starts the compiling process, waits as long as told, reads its report."""

import json
import pathlib
import signal
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

from keras_dlopt import checks, errors, processes
from keras_dlopt.errors import ConfigError, DloptError, ModelError
from keras_dlopt.tpu.chips import KNOWN_TOPOLOGIES, Topology, topology
from keras_dlopt.tpu.environment import environment, require_compiler
from keras_dlopt.tpu.padding import Product, padding
from keras_dlopt.tpu.report import Failure, Report, Step, made

WORKER = "keras_dlopt.tpu.worker"


def check(
    model: Any,
    *,
    topology: str = "v5e:2x4",
    batch: int = 1024,
    programs: Sequence[str] = ("train", "inference"),
    search: bool = True,
    policy: str | None = None,
    backend: str | None = None,
    imports: Sequence[str] = (),
    safe_mode: bool = True,
    time_limit: float = 1800.0,
    progress: Callable[[str], None] | None = None,
) -> Report:
    """Compiles a model's train and inference step for TPUs; no TPU is needed.

    The real TPU compiler (package `libtpu`) does it, in a process of its own: forward,
    backward and optimizer update, with the batch split over all chips and the weights
    on each. Nothing is run, so the times in the report are estimates.

    Args:
        model: a built Keras model, compiled with the optimizer and loss to check; a
            `.keras` file; a name in `keras_dlopt.models`; or `"module:function"`.
        topology: chips to compile for, such as `"v5e:2x4"`.
        batch: examples in a step, over all chips.
        programs: `"train"`, `"inference"`, or both.
        search: whether to look for the largest batch that fits.
        policy: dtype policy for a model that is built by name; `"mixed_bfloat16"` is
            what TPUs are made for.
        backend: `"tensorflow"` or `"jax"`; None for the one in use here.
        imports: modules that define the model's own layers.
        safe_mode: whether Python code in a `.keras` file is refused.
        time_limit: seconds for everything.
        progress: called with the name of each stage.

    Raises:
        ConfigError: for an unknown topology, a batch that the chips cannot share, an
            unknown program, or a time limit that was reached.
        ModelError: for a model that is not built or cannot be saved and loaded.
        MissingDependencyError: without JAX and libtpu.

    Example:
        >>> from keras_dlopt import tpu
        >>> report = tpu.check("lenet5", batch=256, search=False)  # doctest: +SKIP
        >>> report.step("train").fits  # doctest: +SKIP
        True
    """
    where = _topology(topology, batch)
    wrong = set(programs) - {"train", "inference"}
    if wrong or not programs:
        raise ConfigError(
            "programs must name 'train', 'inference' or both. "
            f"Received: {tuple(programs)}."
        )
    backend = backend or _backend()
    settings = environment(backend)
    require_compiler()
    with tempfile.TemporaryDirectory(prefix="dlopt-tpu-") as folder:
        job = {
            "model": _source(model, pathlib.Path(folder)),
            "topology": where.name,
            "batch": batch,
            "programs": list(programs),
            "search": search,
            "policy": policy,
            "imports": list(imports),
            "safe_mode": checks.boolean(safe_mode, name="safe_mode"),
        }
        run = _Run(pathlib.Path(folder), job, settings, time_limit, progress)
        events = run.events()
    return _report(events, run, where, backend)


class _Run:
    """One compiling process: its events, and how it ended."""

    def __init__(self, folder, job, settings, time_limit, progress):
        self.job, self.time_limit = job, time_limit
        self.out, self.log = folder / "out.jsonl", folder / "log.txt"
        self.job_path = folder / "job.json"
        self.settings, self.progress = settings, progress or (lambda stage: None)
        self.timed_out, self.code, self.tail, self.stage = False, 0, "", "starting"

    def events(self) -> list[dict[str, Any]]:
        """Runs the process to its end, or to the time limit."""
        self.job_path.write_text(json.dumps(self.job))
        self.out.touch()
        end = time.monotonic() + self.time_limit
        with processes.children() as started:
            child = processes.Child(
                *("-m", WORKER, self.job_path, self.out),
                log=self.log,
                environment=self.settings,
            )
            started.append(child)
            worst = processes.wait(started, until=end, look=self._look)
            self.timed_out = worst is not None and child.code is None
        self.code, self.tail = child.code or 0, _tail(child.text())
        return self._look()

    def _look(self) -> list[dict[str, Any]]:
        found = []
        for line in self.out.read_text().splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:  # a line in the making
                break
        stages = [e["name"] for e in found if e["event"] == "stage"]
        if stages and stages[-1] != self.stage:
            self.stage = stages[-1]
            self.progress(self.stage)
        return found


def _report(
    events: list[dict[str, Any]], run: _Run, where: Topology, backend: str
) -> Report:
    by_name: dict[str, list[dict[str, Any]]] = {}
    for event in events:
        by_name.setdefault(event["event"], []).append(event)
    if "error" in by_name:
        error = by_name["error"][0]
        raise getattr(errors, error["kind"], DloptError)(error["text"])
    if "topology" in by_name:
        raise _refused(where, by_name["topology"][0]["text"])
    steps = [made(e["name"], e["batch"], e, where) for e in by_name.get("program", [])]
    missing = [n for n in run.job["programs"] if n not in [s.name for s in steps]]
    if missing:
        if run.timed_out:
            raise ConfigError(
                f"time_limit={run.time_limit:g} seconds ended while {run.stage} for "
                f"{where.name}. Large models take minutes: raise time_limit, or pass "
                "search=False, or check one program at a time."
            )
        if "model" not in by_name:
            raise ModelError(
                f"The compiling process ended while {run.stage}, with code "
                f"{run.code}: {run.tail} Check that `import jax, libtpu, keras` works "
                "there, and that the modules in `imports` can be imported."
            )
        steps.append(_stopped(missing[0], run))
    products = [Product(**p) for e in by_name.get("products", []) for p in e["found"]]
    head = by_name["model"][0]
    largest = by_name.get("largest", [{"batch": None}])[0]["batch"]
    tried = tuple((e["batch"], e["bytes"]) for e in by_name.get("tried", []))
    notes = [head["note"]] if head["note"] else []
    notes += [
        f"The {s.name} program compiles, but this JAX cannot print it: what the chips "
        "exchange is not known, and the roofline leaves it out."
        for s in steps
        if not s.printed
    ]
    if run.timed_out:
        notes.append(f"The time limit ended the search while {run.stage}.")
        largest = max(
            (s.batch for s in steps if s.name == "train" and s.fits), default=None
        )
    return Report(
        model=head["name"],
        parameters=head["parameters"],
        topology=where,
        backend=backend,
        steps=tuple(steps),
        largest_batch=largest,
        tried=tried,
        padding=tuple(padding(products, unit=where.chip.unit)),
        notes=tuple(notes),
    )


def _stopped(name: str, run: _Run) -> Step:
    """The compiler ended the process: that is a result too."""
    if run.code == -signal.SIGKILL:
        text = (
            "The compiling process was killed, as systems do that run out of memory: "
            "it holds the model with its optimizer's state. Check the model on a "
            "machine with more memory, or a smaller one."
        )
        return Step(name, run.job["batch"], 0.0, Failure("killed here", "", text))
    text = f"The compiler ended with code {run.code}: {run.tail}"
    return Step(name, run.job["batch"], 0.0, Failure("compiler abort", "", text))


def _topology(name: str, batch: int) -> Topology:
    where = topology(name)
    whole = isinstance(batch, int) and not isinstance(batch, bool) and batch > 0
    if not whole or batch % where.devices:
        below = max(1, int(batch) // where.devices) * where.devices
        raise ConfigError(
            f"batch must be a positive multiple of the {where.devices} devices of "
            f"{where.name}, which share it. Received: {batch}. Try {below}."
        )
    return where


def _refused(where: Topology, text: str) -> ConfigError:
    return ConfigError(
        f"The compiler does not know the topology {where.name!r}: {text} "
        f"Some that it knows: {', '.join(KNOWN_TOPOLOGIES)}."
    )


def _backend() -> str:
    import keras

    return keras.backend.backend()


def _source(model: Any, folder: pathlib.Path) -> str:
    """The model as something the other process can load."""
    if isinstance(model, str | pathlib.Path):
        path = pathlib.Path(model)
        return str(path.resolve()) if path.is_file() else str(model)
    import keras

    if not isinstance(model, keras.Model):
        raise ModelError(
            "model must be a Keras model, a .keras file, a name in keras_dlopt.models "
            f"or 'module:function'. Received: {type(model).__name__}."
        )
    if not model.built:
        raise ModelError(
            f"The model {model.name!r} is not built, so it has no shapes to compile. "
            "Start it with keras.Input, call model.build(input_shape), or call it once "
            "on data."
        )
    path = folder / "model.keras"
    try:
        model.save(path)
    except Exception as error:
        raise ModelError(
            f"The model {model.name!r} could not be saved for the compiling process: "
            f"{error} Give 'module:function' that builds it instead."
        ) from error
    return str(path)


def _tail(text: str) -> str:
    lines = [s.strip() for s in text.splitlines()]
    told = [s for s in lines if s and not s.startswith(("WARNING", "I0000", "@"))]
    errors_first = [
        s for s in told if "Error" in s or "F0000" in s or "Check fail" in s
    ]
    return (errors_first or told or ["nothing was written."])[-1][:600]
