"""What a check found, as data and as rows of a table."""

import dataclasses
import json
from typing import Any

from keras_dlopt.tables import Table, Tabled
from keras_dlopt.tpu.batches import bytes_needed
from keras_dlopt.tpu.chips import GIB, Topology
from keras_dlopt.tpu.hlo import Collective
from keras_dlopt.tpu.padding import Padding, total_waste
from keras_dlopt.tpu.roofline import Roofline, roofline


@dataclasses.dataclass(frozen=True)
class Failure:
    """Why a program does not compile.

    Attributes:
        operation: the operation that the compiler does not take.
        layer: path of the layer it is in; empty where that could not be told.
        message: what the compiler said, its first lines.
    """

    operation: str
    layer: str
    message: str


@dataclasses.dataclass(frozen=True)
class Step:
    """One compiled program on one device of the topology.

    Attributes:
        name: `"train"` or `"inference"`.
        batch: of all devices together.
        seconds: that the compilation took.
        failure: why it does not compile; None if it does.
        memory: bytes it needs on one device.
        available: bytes that a program may use there.
        parts: memory by purpose: arguments, results, temporary, code; empty for a
            program that was refused as too big.
        flops: operations of one device.
        moved: bytes read and written by one device.
        collectives: exchanges between the devices.
        roofline: the least time, an estimate; None if it does not compile or fit.
        stored: bytes of the arguments as values, and in the compiler's padded tiles.
        printed: whether the compiled program could be read; if not, `collectives` and
            `stored` are empty and the roofline leaves the network out.
    """

    name: str
    batch: int
    seconds: float
    failure: Failure | None = None
    memory: float = 0.0
    available: float = 0.0
    parts: dict[str, float] = dataclasses.field(default_factory=dict)
    flops: float = 0.0
    moved: float = 0.0
    collectives: tuple[Collective, ...] = ()
    roofline: Roofline | None = None
    stored: tuple[float, float] = (0.0, 0.0)
    printed: bool = True

    @property
    def compiles(self) -> bool:
        """Whether the compiler takes every operation."""
        return self.failure is None

    @property
    def fits(self) -> bool:
        """Whether it compiles and fits into the memory."""
        return self.compiles and self.memory <= self.available

    @property
    def intensity(self) -> float:
        """Operations per byte read or written."""
        return self.flops / self.moved if self.moved else 0.0


@dataclasses.dataclass(frozen=True)
class Report(Tabled):
    """The result of `check`.

    Attributes:
        model: its name.
        parameters: how many numbers it holds.
        topology: which chips it was compiled for.
        backend: Keras backend of the step.
        steps: the programs.
        largest_batch: largest batch whose train step was compiled and found to fit with
            5 % of the memory to spare; None if none was tried or none fits.
        tried: (batch, bytes on one device) of the search; None where it failed.
        padding: what the layers' sizes waste on the matrix units.
        notes: what else to know.
    """

    model: str
    parameters: int
    topology: Topology
    backend: str
    steps: tuple[Step, ...]
    largest_batch: int | None = None
    tried: tuple[tuple[int, float | None], ...] = ()
    padding: tuple[Padding, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether every program compiles and fits."""
        return all(step.fits for step in self.steps)

    def step(self, name: str) -> Step:
        """The program of that name."""
        return next(step for step in self.steps if step.name == name)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready data."""
        return {**dataclasses.asdict(self), "ok": self.ok}

    def to_json(self) -> str:
        """The report as JSON."""
        return json.dumps(self.to_dict(), indent=1)

    def tables(self) -> tuple[Table, ...]:
        """The programs, what does not compile, exchanges between chips, padding."""
        columns, rows = self.summary()
        if self.largest_batch:
            row = ("largest batch tried that fits", f"{self.largest_batch:,}")
            rows.append((*row, *[""] * (len(columns) - 2)))
        name = self.topology.name
        title = f"{self.model}, {self.parameters:,} parameters, {name}"
        note = "Compiled by the TPU compiler, not run. The roofline is an estimate."
        found = [Table(title, columns, tuple(rows), note=note)]
        for step in self.steps:
            if step.failure is not None:
                where = step.failure.layer or "not known"
                told = (("layer", where), ("message", step.failure.message))
                title = f"{step.name}: {step.failure.operation} does not compile"
                found.append(Table(title, ("", ""), told))
        if self.exchanges():
            columns = ("program", "collective", "number", "bytes")
            found.append(Table("Between the chips", columns, tuple(self.exchanges())))
        if self.advice():
            columns = ("layer", "sum x outputs", "work", "padding", "advice")
            note = f"At most {self.waste:.0%} of the matrix units' work is padding."
            found.append(Table("Sizes", columns, tuple(self.advice()), note=note))
        return tuple(found)

    def summary(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Column names and rows: a row a figure, a column a program."""
        names = [f"{s.name}, batch {s.batch}" for s in self.steps]
        rows = [
            (label, *(text(s) if s.compiles or always else "" for s in self.steps))
            for label, text, always in _ROWS
        ]
        return ("", *names), [row for row in rows if any(row[1:])]

    def exchanges(self) -> list[tuple[str, str, str, str]]:
        """Rows: program, kind, number, and bytes of the collectives."""
        rows = []
        for step in self.steps:
            for kind in sorted({c.kind for c in step.collectives}):
                sizes = [c.bytes for c in step.collectives if c.kind == kind]
                rows.append((step.name, kind, f"{len(sizes)}", _bytes(sum(sizes))))
        return rows

    def advice(self, limit: int = 12) -> list[tuple[str, str, str, str, str]]:
        """Rows: layer, product, share of work, waste, advice; most waste first."""
        return [
            (
                p.path,
                f"{p.inputs} x {p.outputs}",
                f"{p.share:.1%}",
                f"{p.waste:.0%}",
                p.advice,
            )
            for p in self.padding[:limit]
            if p.advice
        ]

    @property
    def waste(self) -> float:
        """Share of the matrix units' work that is padding, at most."""
        return total_waste(self.padding)


def made(name: str, batch: int, found: dict[str, Any], topology: Topology) -> Step:
    """The `Step` of what the compiling process wrote."""
    base = {"name": name, "batch": batch, "seconds": found["seconds"]}
    if not found["compiles"]:
        failure = Failure(found["operation"], found["layer"], found["message"])
        return Step(**base, failure=failure)
    available = found.get("available", topology.chip.memory)
    base |= {"memory": bytes_needed(found), "available": available}
    if "needed" in found:
        return Step(**base)
    exchanged = tuple(Collective(*c) for c in found["collectives"])
    return Step(
        **base,
        parts={
            part: float(found[part])
            for part in ("arguments", "results", "temporary", "code")
        },
        flops=found["flops"],
        moved=found["moved"],
        collectives=exchanged,
        roofline=roofline(found["flops"], found["moved"], exchanged, topology),
        stored=(found["argument_values"], found["argument_tiles"]),
        printed=found.get("printed", True),
    )


def _verdict(step: Step) -> str:
    if step.failure is not None:
        where = f" in {step.failure.layer}" if step.failure.layer else ""
        return f"no: {step.failure.operation}{where}"
    return "yes" if step.fits else "yes, but too big"


def _memory(step: Step) -> str:
    share = step.memory / step.available
    return f"{_bytes(step.memory)} of {_bytes(step.available)} ({share:.0%})"


def _bytes(count: float) -> str:
    for unit, size in (("GiB", GIB), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count:.0f} B"


def _time(seconds: float) -> str:
    return f"{seconds * 1e3:.3f} ms" if seconds < 1 else f"{seconds:.2f} s"


def _rates(step: Step) -> str:
    if step.roofline is None or not step.roofline.seconds:
        return ""
    return f"{step.batch / step.roofline.seconds:,.0f}"


def _roof(name: str) -> Any:
    return lambda s: _time(getattr(s.roofline, name)) if s.roofline else ""


_ROWS: tuple[tuple[str, Any, bool], ...] = (
    ("compiles", _verdict, True),
    ("compiled in", lambda s: f"{s.seconds:.0f} s", True),
    ("memory per chip", _memory, False),
    *(
        (f"  {part}", lambda s, p=part: _bytes(s.parts[p]) if s.parts else "", False)
        for part in ("arguments", "temporary", "results", "code")
    ),
    (
        "operations per chip",
        lambda s: f"{s.flops / 1e9:,.2f} G" if s.parts else "",
        False,
    ),
    ("bytes moved per chip", lambda s: _bytes(s.moved) if s.parts else "", False),
    (
        "operations per byte",
        lambda s: f"{s.intensity:.1f}" if s.parts else "",
        False,
    ),
    ("roofline estimate", _roof("seconds"), False),
    ("  bound by", lambda s: s.roofline.bound if s.roofline else "", False),
    ("  compute", _roof("compute"), False),
    ("  memory", _roof("memory"), False),
    ("  network", _roof("network"), False),
    ("  examples a second, at most", _rates, False),
)
