"""What Arm's compiler says an int8 file would take on an Ethos-U: an estimate."""

import csv
import dataclasses
import importlib.util
import os
import pathlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from typing import Any

from keras_dlopt import checks
from keras_dlopt.errors import ConfigError, ExportError, missing

# System and memory as Arm's vela.ini has them; left out, Vela takes its own.
_U55_SMALL = ("Ethos_U55_Deep_Embedded", "Shared_Sram")
_U55 = ("Ethos_U55_High_End_Embedded", "Shared_Sram")
_U65 = ("Ethos_U65_High_End", "Dedicated_Sram")
_U85 = ("Ethos_U85_SYS_Flash_Low", "Shared_Sram")
ACCELERATORS: Mapping[str, tuple[str, str]] = {
    "ethos-u55-32": _U55_SMALL,
    "ethos-u55-64": _U55_SMALL,
    "ethos-u55-128": _U55,
    "ethos-u55-256": _U55,
    "ethos-u65-256": _U65,
    "ethos-u65-512": _U65,
    "ethos-u85-128": _U85,
    "ethos-u85-256": _U85,
}
SECONDS = 600.0
_REFUSED = re.compile(
    r"^Warning \(supported operators\) operator: (\S+), ofm: '(.*?)'\n"
    r"((?:(?!Warning|#).+\n)*)",
    re.M,
)


@dataclasses.dataclass(frozen=True)
class NpuEstimate:
    """What Vela estimates for a file on one accelerator; nothing was run.

    Vela counts no cycles for operators that fall back to the CPU: with any in `cpu`,
    `seconds` and `cycles` are of the rest.

    Attributes:
        accelerator: such as `"ethos-u55-128"`: 128 multiply-accumulates a cycle.
        system: the configuration of clock and memories in Arm's `vela.ini`.
        seconds: of one inference.
        cycles: of the accelerator's clock.
        flash: bytes of weights and commands, in flash or DRAM.
        sram: most bytes of activations and buffers.
        macs: multiply-accumulates on the NPU.
        operators: how many there are, those that Vela splits counted apart.
        cpu: those that the NPU does not run: (operator, tensor it makes, why not).
    """

    accelerator: str
    system: str
    seconds: float
    cycles: int
    flash: int
    sram: int
    macs: int
    operators: int
    cpu: tuple[tuple[str, str, str], ...] = ()


def npu_estimate(
    path: str | os.PathLike[str], *, accelerator: str = "ethos-u55-128"
) -> NpuEstimate:
    """Compiles a `.tflite` file with Arm's Vela and returns its estimate.

    Args:
        path: of an int8 file, as `export.litert` writes it.
        accelerator: the Ethos-U, with its multiply-accumulates a cycle.

    Raises:
        ConfigError: for an accelerator that is not known, or no such file.
        ExportError: if Vela cannot read or compile the file.
        MissingDependencyError: without the package `ethos-u-vela`.

    Source: https://pypi.org/project/ethos-u-vela, "Performance estimation summary".
    """
    checks.choice(accelerator, name="accelerator", choices=tuple(ACCELERATORS))
    file = pathlib.Path(path)
    if not file.is_file():
        raise ConfigError(
            f"There is no file {os.fspath(path)!r} to compile for an NPU."
        )
    require_vela()
    system, memory = ACCELERATORS[accelerator]
    with tempfile.TemporaryDirectory() as folder:
        log = _compile(file, accelerator, system, memory, folder)
        summary = next(pathlib.Path(folder).glob("*_summary_*.csv"), None)
        rows = next(pathlib.Path(folder).glob("*_per-layer.csv"), None)
        if summary is None or rows is None:
            raise _failed(file, log)
        return _read(accelerator, system, _rows(summary)[0], _rows(rows), log)


def require_vela() -> None:
    """Raises `MissingDependencyError` without Arm's compiler."""
    if importlib.util.find_spec("ethosu") is None:
        raise missing(
            "ethos-u-vela", extra="npu", purpose="The estimate for an Ethos-U NPU"
        )


def _compile(
    file: pathlib.Path, accelerator: str, system: str, memory: str, folder: str
) -> str:
    """Runs Vela; its files are in `folder`, and what it said is returned."""
    command = [sys.executable, "-m", "ethosu.vela", str(file.resolve())]
    command += ["--accelerator-config", accelerator, "--config", "Arm/vela.ini"]
    command += ["--system-config", system, "--memory-mode", memory]
    command += ["--output-dir", folder, "--verbose-performance"]
    command += ["--show-cpu-operations"]
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
            env={**os.environ, "COLUMNS": "500"},
        )
    except subprocess.TimeoutExpired:
        raise ExportError(
            f"Vela did not finish {file.name!r} within {SECONDS:.0f} s. Try a smaller "
            "model, or compile it by hand to see where it stops."
        ) from None
    log = done.stdout + done.stderr
    if done.returncode:
        raise _failed(file, log)
    return log


def _failed(file: pathlib.Path, log: str) -> ExportError:
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return ExportError(
        f"Vela could not compile {file.name!r}: {lines[-1] if lines else 'no reason'}. "
        "It takes .tflite files that compute in int8, as export.litert writes them of "
        "a model with activation quantizers."
    )


def _rows(file: pathlib.Path) -> list[dict[str, Any]]:
    with file.open(newline="") as opened:
        return list(csv.DictReader(opened))


def _read(
    accelerator: str, system: str, summary: dict, layers: list[dict], log: str
) -> NpuEstimate:
    def kib(*names: str) -> int:
        return round(1024 * sum(float(summary[f"{n}_memory_used"]) for n in names))

    reasons = {
        (operator, made): " ".join(why.replace("Reason:", "").split())
        for operator, made, why in _REFUSED.findall(log)
    }
    # The log has reasons; the table has those that fall back without one.
    told = {made for _, made in reasons}
    bare = [
        (row["Original Operator"], row["Name"], "Vela gives no reason")
        for row in layers
        if row["Target"] == "CPU" and row["Name"] not in told
    ]
    return NpuEstimate(
        accelerator=accelerator,
        system=system,
        seconds=float(summary["inference_time"]),
        cycles=round(float(summary["cycles_total"])),
        flash=kib("off_chip_flash", "on_chip_flash", "dram"),
        sram=kib("sram"),
        macs=round(float(summary["nn_macs"])),
        operators=len(layers),
        cpu=(*((*key, why) for key, why in reasons.items()), *bare),
    )
