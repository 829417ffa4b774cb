"""What `compress` returns."""

import dataclasses
import json
import os
import pathlib
from typing import Any

import keras

from keras_dlopt.report import (
    Comparison,
    Document,
    pareto_figure,
    plain,
    write_html,
)
from keras_dlopt.tables import Table, Tabled
from keras_dlopt.transforms import Recipe


@dataclasses.dataclass(frozen=True)
class Trial:
    """One way that was tried.

    Attributes:
        method: what was done to the kernels.
        goal: bytes that were aimed at; 0 for none.
        bytes: of the file.
        accuracy: on the validation examples; None for models that do not classify.
        loss: on the validation examples.
        seconds: that it took.
        latency_ms: of one example in LiteRT, milliseconds; None if it was not asked.
        latency_share: the same over the given model's, taking turns with it.
    """

    method: str
    goal: int
    bytes: int
    accuracy: float | None
    loss: float
    seconds: float
    latency_ms: float | None = None
    latency_share: float | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Compressed(Tabled):
    """A smaller model, its file, and how it came about.

    Attributes:
        model: the compressed model, an ordinary Keras model; for an int8 file the
            quantized one that it holds.
        path: of its file, as `load_compressed` or `export.Predictor` reads it; None if
            none was asked for.
        plain_bytes: of the given model's variables in memory.
        recipe: what was done to weights, with its schedules; `recipe.to_json()` writes
            it. Channels that left and kernels that were split stand in `reasons`.
        trials: all that was tried, the chosen one first; `pareto` has the best.
        reasons: a sentence for each choice.
        report: given and compressed model side by side on the validation examples;
            None for models that do not classify.
        seconds: that all of it took.
    """

    model: keras.Model
    path: str | None
    plain_bytes: int
    recipe: Recipe
    trials: tuple[Trial, ...]
    reasons: tuple[str, ...]
    report: Comparison | None
    seconds: float

    @property
    def bytes(self) -> int:
        """Size of the file."""
        return self.trials[0].bytes

    @property
    def ratio(self) -> float:
        """Plain bytes over bytes of the file."""
        return self.plain_bytes / self.bytes

    @property
    def pareto(self) -> tuple[Trial, ...]:
        """The trials that no other beats in bytes, validation and latency at once."""
        return tuple(
            one
            for one in self.trials
            if not any(_beats(other, one) for other in self.trials)
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        data: dict[str, Any] = plain(
            {k: v for k, v in vars(self).items() if k not in ("model", "recipe")}
        )
        recipe = json.loads(self.recipe.to_json())
        figures = {"bytes": self.bytes, "ratio": self.ratio}
        return {**data, **figures, "recipe": recipe}

    def to_json(self, path: str | os.PathLike[str]) -> pathlib.Path:
        """Writes `to_dict()`."""
        path = pathlib.Path(path)
        path.write_text(json.dumps(self.to_dict(), indent=1) + "\n")
        return path

    def tables(self) -> tuple[Table, ...]:
        """What was tried, the chosen one first, and what became of the figures."""
        rows = tuple(
            (
                trial.method,
                f"{trial.bytes:,}",
                "" if trial.accuracy is None else f"{trial.accuracy:.2%}",
                f"{trial.loss:.4f}",
                f"{trial.seconds:.0f}",
            )
            for trial in self.trials
        )
        columns = ("tried", "bytes", "validation accuracy", "loss", "seconds")
        title = f"{self.plain_bytes:,} bytes became {self.bytes:,} ({self.ratio:.1f}x)"
        tried = Table(title, columns, rows, note=" ".join(self.reasons))
        return (tried, *(self.report.tables() if self.report is not None else ()))

    def document(self) -> Document:
        """The report with what was tried, not rendered yet."""
        tried = (pareto_figure(self.trials),) if len(self.trials) > 1 else ()
        if self.report is not None:
            return self.report.document(*tried)
        return Document(self.model.name, f"{self}.", (*self.tables(), *tried))

    def to_html(self, path: str | os.PathLike[str]) -> pathlib.Path:
        """Writes the report as one HTML file that needs nothing else.

        Raises:
            ConfigError: if the file cannot be written.
        """
        return write_html(self.document(), path)

    def __str__(self) -> str:
        lines = [
            f"{self.plain_bytes:,} bytes became {self.bytes:,} ({self.ratio:.1f}x)"
        ]
        if self.report is not None:
            before, after = (
                side.quality for side in (self.report.before, self.report.after)
            )
            lines[0] += (
                f"; validation accuracy {before.accuracy:.2%} became "
                f"{after.accuracy:.2%}"
            )
        return "\n".join([*lines, *self.reasons])


def _beats(one: Trial, other: Trial) -> bool:
    """Whether one is as good in all and better in one."""
    a, b = (
        (
            t.bytes,
            t.loss if t.accuracy is None else -t.accuracy,
            0.0 if t.latency_share is None else t.latency_share,
        )
        for t in (one, other)
    )
    return a != b and all(x <= y for x, y in zip(a, b, strict=True))
