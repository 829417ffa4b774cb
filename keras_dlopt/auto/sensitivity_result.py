"""What a sensitivity analysis found: rows, a table, curves, a plot."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from keras_dlopt import checks
from keras_dlopt.drawing import (
    DARK,
    LIGHT,
    SMALL,
    drawing,
    finished,
    literal,
    shortened,
)
from keras_dlopt.errors import ConfigError

KINDS = ("sparsity", "bits")
_TITLES = {"sparsity": "share of zeros", "bits": "bits"}
_SHOWN = 40  # rows of a plot whose text can still be read


@dataclasses.dataclass(frozen=True)
class Measurement:
    """The model with one weight changed.

    Attributes:
        path: of the weight.
        kind: `"sparsity"` (share of zeros) or `"bits"`.
        level: the sparsity or the number of bits.
        loss: mean loss on the data.
        accuracy: share of right labels; None where there are no classes.
    """

    path: str
    kind: str
    level: float
    loss: float
    accuracy: float | None


@dataclasses.dataclass(frozen=True)
class Sensitivity:
    """How much each weight of a model bears, one at a time.

    Attributes:
        loss: of the model as it is.
        accuracy: of the model as it is; None where there are no classes.
        rows: one for each weight and level.
        sizes: path -> number of elements.
        key: hash of weights, data and loss that the rows belong to.
    """

    loss: float
    accuracy: float | None
    rows: tuple[Measurement, ...]
    sizes: Mapping[str, int]
    key: str

    def levels(self, kind: str) -> list[float]:
        """The measured levels of a kind, gentlest first."""
        found = {row.level for row in self.rows if row.kind == kind}
        return sorted(found, reverse=kind == "bits")

    def costs(self, kind: str, quality: str = "loss") -> dict[str, dict[float, float]]:
        """Path -> level -> what is lost: rise of the loss, or fall of the accuracy.

        Raises:
            ConfigError: for another kind or quality, and for the accuracy of a model
                without classes.
        """
        if kind not in KINDS or quality not in ("loss", "accuracy"):
            raise ConfigError(
                "kind is 'sparsity' or 'bits', quality is 'loss' or 'accuracy'. "
                f"Received: kind={kind!r}, quality={quality!r}."
            )
        if quality == "accuracy" and self.accuracy is None:
            raise ConfigError(
                "There is no accuracy: the labels are not classes. Use quality='loss'."
            )
        found: dict[str, dict[float, float]] = {path: {} for path in self.sizes}
        for row in self.rows:
            if row.kind != kind:
                continue
            if quality == "loss":
                found[row.path][row.level] = row.loss - self.loss
            else:
                drop = (self.accuracy or 0.0) - (row.accuracy or 0.0)
                found[row.path][row.level] = drop
        return found

    def curves(self, quality: str = "loss") -> dict[str, list[tuple[float, float]]]:
        """Path -> rising (sparsity, loss of quality), as `prune.BySensitivity` reads.

        Noise that lets a curve fall is levelled out: a point lies no lower than the
        ones before it.
        """
        out = {}
        for path, costs in self.costs("sparsity", quality).items():
            levels = sorted(costs)
            rising = np.maximum.accumulate([max(costs[s], 0.0) for s in levels])
            points = zip(levels, map(float, rising), strict=True)
            out[path] = [(0.0, 0.0), *points]
        return out

    def within(
        self, kind: str, *, cost: float, quality: str = "accuracy"
    ) -> dict[str, float | None]:
        """Path -> the strongest level that costs at most so much; None for none.

        Args:
            kind: `"sparsity"` or `"bits"`.
            cost: largest rise of the loss or fall of the accuracy.
            quality: `"loss"` or `"accuracy"`.
        """
        out: dict[str, float | None] = {}
        for path, costs in self.costs(kind, quality).items():
            out[path] = None
            for level in self.levels(kind):
                if level not in costs or costs[level] > cost:
                    break
                out[path] = level
        return out

    def table(self, quality: str = "loss") -> str:
        """What is lost, a line for each weight, a column for each level."""
        columns = [(kind, level) for kind in KINDS for level in self.levels(kind)]
        costs = {kind: self.costs(kind, quality) for kind in KINDS}
        width = max([len(path) for path in self.sizes] + [6])
        head = [_name(kind, level) for kind, level in columns]
        lines = [f"{'weight':<{width}}" + "".join(f"{h:>9}" for h in head)]
        for path in self.sizes:
            cells = [costs[kind][path].get(level) for kind, level in columns]
            text = "".join(
                f"{'':>9}" if cell is None else f"{cell:>9.4f}" for cell in cells
            )
            lines.append(f"{path:<{width}}{text}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return dataclasses.asdict(self) | {"sizes": dict(self.sizes)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Sensitivity":
        """What `to_dict` wrote.

        Raises:
            ConfigError: for data of another form.
        """
        try:
            rows = tuple(_row(row) for row in data["rows"])
            accuracy = data["accuracy"]
            for row in rows:
                data["sizes"][row.path]  # each weight has one
            return cls(
                loss=measured(data["loss"]),
                accuracy=None if accuracy is None else measured(accuracy),
                rows=rows,
                sizes={
                    checks.text(path, name="a path"): checks.whole(
                        size, name="a size", least=0
                    )
                    for path, size in data["sizes"].items()
                },
                key=checks.text(data["key"], name="key"),
            )
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ConfigError(
                f"This is not a sensitivity analysis ({error}). Expected what "
                "Sensitivity.to_dict() wrote."
            ) from None

    def plot(self, path: str | Path | None = None, *, quality: str = "loss") -> Any:
        """A map of what is lost: weights down, levels across.

        Args:
            path: of the PNG to write; None writes nothing.
            quality: `"loss"` or `"accuracy"`.

        Returns:
            The `matplotlib.figure.Figure`.
        """
        kinds = [kind for kind in KINDS if self.levels(kind)]
        paths = list(self.sizes)
        counts = [len(self.levels(kind)) for kind in kinds]
        height = 1.3 + 0.26 * max(len(paths), 2)
        figure, ((*axes,),) = drawing(
            height, 1, len(kinds), squeeze=False, width_ratios=counts
        )
        grids = [self._grid(kind, quality) for kind in kinds]
        top = max((np.nanmax(grid) for grid in grids), default=0.0)
        image = None
        for axis, kind, grid in zip(axes, kinds, grids, strict=True):
            image = axis.imshow(
                grid, aspect="auto", cmap="OrRd", vmin=0.0, vmax=max(top, 1e-9)
            )
            names = [_name(kind, level) for level in self.levels(kind)]
            axis.set_xticks(range(len(names)), names, fontsize=SMALL)
            shown = [literal(shortened(p)) for p in paths] if axis is axes[0] else []
            axis.set_yticks(range(len(paths)), shown, fontsize=SMALL)
            axis.set_title(_TITLES[kind], fontsize=SMALL)
            if len(paths) <= _SHOWN:
                _write_values(axis, grid, top)
        if image is not None:
            base = self.loss if quality == "loss" else self.accuracy
            figure.colorbar(image, ax=axes, label=_label(quality, base))
        return finished(figure, path)

    def _grid(self, kind: str, quality: str) -> np.ndarray:
        costs, levels = self.costs(kind, quality), self.levels(kind)
        rows = [[costs[p].get(level, np.nan) for level in levels] for p in self.sizes]
        return np.array(rows, "float64")


def measured(value: Any) -> float:
    """A loss or accuracy of a file; a model that breaks has losses of NaN and infinity.

    Raises:
        TypeError: for what is no number.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r:.40} is no number")
    return float(value)


def _row(data: Any) -> Measurement:
    accuracy = data["accuracy"]
    return Measurement(
        path=checks.text(data["path"], name="a path"),
        kind=checks.choice(data["kind"], name="a kind", choices=KINDS),
        level=checks.number(data["level"], name="a level"),
        loss=measured(data["loss"]),
        accuracy=None if accuracy is None else measured(accuracy),
    )


def _name(kind: str, level: float) -> str:
    return f"{100 * level:.4g} %" if kind == "sparsity" else f"{level:.0f} bit"


def _label(quality: str, base: float | None) -> str:
    rises = "rise of the loss" if quality == "loss" else "fall of the accuracy"
    return f"{rises} (before: {base:.4f})"


def _write_values(axis: Any, grid: np.ndarray, top: float) -> None:
    for (i, j), value in np.ndenumerate(grid):
        if np.isfinite(value):
            dark = top > 0 and value > 0.6 * top
            axis.text(
                j,
                i,
                f"{round(value, 3) + 0.0:.3f}",  # no -0.000
                ha="center",
                va="center",
                fontsize=7.5,
                color=LIGHT if dark else DARK,
            )
