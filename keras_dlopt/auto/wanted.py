"""What is asked of a small model's file, and how far a trial is from it."""

import dataclasses
import os
from typing import Any

from keras_dlopt import checks
from keras_dlopt.auto.compressed import Trial
from keras_dlopt.auto.training import Job
from keras_dlopt.errors import ConfigError, ModelError
from keras_dlopt.graph.walk import check_built
from keras_dlopt.transforms.host import hosts


@dataclasses.dataclass(frozen=True)
class Goals:
    """What is asked of a file.

    Attributes:
        bytes: at most so many; None for as few as hold the rest.
        drop: of the accuracy, as a share of the examples.
        latency_ms: of one example in LiteRT, milliseconds.
        latency_share: the same as a share of the given model's.
    """

    bytes: int | None = None
    drop: float | None = None
    latency_ms: float | None = None
    latency_share: float | None = None

    @property
    def timed(self) -> bool:
        """Whether latencies have to be measured."""
        return self.latency_ms is not None or self.latency_share is not None

    def excess(self, trial: Trial, before: float | None) -> float:
        """How far a trial is from what is asked, 0 if it is all held."""
        over = 0.0
        if self.bytes is not None:
            over += max(0.0, trial.bytes / self.bytes - 1)
        if self.drop is not None and before is not None:
            assert trial.accuracy is not None
            over += max(0.0, before - self.drop - 1e-9 - trial.accuracy) * 10
        if self.latency_ms is not None and trial.latency_ms is not None:
            over += max(0.0, trial.latency_ms / self.latency_ms - 1)
        if self.latency_share is not None and trial.latency_share is not None:
            over += max(0.0, trial.latency_share / self.latency_share - 1)
        return over

    def value(self, trial: Trial) -> tuple[float, ...]:
        """What is to be small among trials that hold the goals."""
        worse = trial.loss if trial.accuracy is None else -trial.accuracy
        if self.drop is None:  # the best within the bytes or the time
            return (worse, trial.bytes)
        return (trial.bytes, worse)


def figures(trial: Trial) -> str:
    """Bytes, quality and latency of a trial, in words."""
    quality = (
        f"loss {trial.loss:.4g}"
        if trial.accuracy is None
        else f"{trial.accuracy:.2%} right"
    )
    spent = ""
    if trial.latency_ms is not None:
        spent = f", {trial.latency_ms:.3f} ms ({trial.latency_share:.2f} of the given)"
    return f"{trial.bytes:,} bytes, {quality}{spent}"


def checked_goals(
    size: float | None,
    max_bytes: int | None,
    drop: float | None,
    latencies: tuple[float | None, float | None],
    int8: bool,
    plain: int,
) -> Goals:
    """What is asked, of a model with so many plain bytes.

    Raises:
        ConfigError: for values out of range, two sizes, or nothing that is asked.
    """
    given = (size, max_bytes, drop, *latencies)
    if all(one is None for one in given) and not int8:
        raise ConfigError(
            "compress needs a goal: size=0.1, max_bytes=50_000, "
            "max_accuracy_drop=0.005, max_latency_share=0.5 or int8=True."
        )
    spent, share = latencies
    return Goals(
        _bytes(size, max_bytes, plain),
        checks.optional(checks.probability, drop, name="max_accuracy_drop"),
        checks.optional(checks.positive, spent, name="max_latency_ms"),
        checks.optional(checks.positive, share, name="max_latency_share"),
    )


def check_model(model: Any) -> None:
    """Refuses a model that is not built, or transformed."""
    check_built(model)
    if hosts(model):
        raise ModelError(
            f"{model.name!r} is transformed already. Give the model from before, or "
            "finalize(model)."
        )


def check_looked_at(
    int8: bool,
    searched: bool,
    coded: dict[str, Any],
    trained: dict[str, Any],
    run: dict[str, Any],
    kept: dict[str, Any],
) -> None:
    """Refuses arguments that the chosen way does not look at."""
    if int8:
        _check_meant("int8=True", coded)
        if not searched:
            _check_meant("int8=True without max_accuracy_drop", trained)
    else:
        _check_meant("int8=False", run)
    if not searched:
        _check_meant("neither time_budget nor a latency", kept)


def _check_meant(way: str, given: dict[str, Any]) -> None:
    """Refuses what was given and is not looked at."""
    found = ", ".join(f"{k}={v!r}" for k, v in given.items() if v is not None)
    if found:
        raise ConfigError(f"{found} means nothing with {way}. Leave it out.")


def check_judged(drop: float | None, job: Job) -> None:
    """Refuses a drop of an accuracy that there is not."""
    if drop is not None and not job.classifies:
        raise ConfigError(
            "max_accuracy_drop needs a model that classifies: one row of outputs an "
            "example, trained by a cross-entropy, and as labels whole numbers or "
            "one-hot rows. Leave it out, and pass size=, max_bytes= or int8=True."
        )


def checked_path(path: str | os.PathLike[str] | None, int8: bool) -> Any:
    """The path of the file, whose folder is there; None for none."""
    suffix = ".tflite" if int8 else ".dlopt"
    if path is None:
        if int8:
            raise ConfigError(
                "int8=True writes a LiteRT file. Pass where, as path='model.tflite'."
            )
        return None
    path = os.fspath(path)
    if not path.endswith(suffix):
        raise ConfigError(
            f"path must end in {suffix}. Received: {path!r}, int8={int8}."
        )
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder):
        raise ConfigError(f"There is no folder {folder!r} for the file. Make it first.")
    return path


def _bytes(size: float | None, max_bytes: int | None, plain: int) -> int | None:
    if size is not None and max_bytes is not None:
        raise ConfigError(
            f"Give size or max_bytes, not both. Received: size={size!r}, "
            f"max_bytes={max_bytes!r}."
        )
    if size is not None:
        return int(checks.share(size, name="size") * plain)
    if max_bytes is not None:
        return checks.count(max_bytes, name="max_bytes")
    return None
