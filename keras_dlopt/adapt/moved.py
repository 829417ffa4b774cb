"""Which layers moved, and how far, in a fine-tuned model."""

import dataclasses
from typing import Any

import keras
import numpy as np

from keras_dlopt.adapt.places import weights_of
from keras_dlopt.errors import ModelError
from keras_dlopt.runtime.values import to_numpy
from keras_dlopt.transforms.updating import hosts

BAR = 24  # characters of the longest bar


@dataclasses.dataclass(frozen=True)
class Move:
    """How far one layer moved.

    Attributes:
        path: of the layer.
        parameters: numbers compared.
        distance: L2 norm of the difference.
        relative: that over the L2 norm before; infinite if that was 0.
    """

    path: str
    parameters: int
    distance: float
    relative: float


@dataclasses.dataclass(frozen=True)
class Moves:
    """How far each layer moved, in the model's order; printable.

    Attributes:
        layers: those that both models have.
        new: weights that only the model after has, such as a new head's.
        gone: weights that only the model before had.
    """

    layers: tuple[Move, ...]
    new: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        width = max(len(m.path) for m in self.layers)
        most = max(
            (m.relative for m in self.layers if np.isfinite(m.relative)), default=0
        )
        rows = [f"{'layer':{width}}  parameters  relative L2 distance"]
        for move in self.layers:
            share = min(move.relative / most, 1.0) if most else 0.0
            bar = "#" * round(BAR * share)
            rows.append(
                f"{move.path:{width}}  {move.parameters:10,}  {move.relative:8.4f}  "
                f"{bar}".rstrip()
            )
        for text, paths in (("new", self.new), ("gone", self.gone)):
            if paths:
                rows.append(f"{text}: {', '.join(paths)}")
        return "\n".join(rows)


def moved(before: keras.Model, after: keras.Model) -> Moves:
    """How far the weights of a fine-tuned model are from those it started with.

    Of transformed models the effective weights count. Statistics of BatchNormalization
    are left out: they follow the data.

    Args:
        before: the model that training started from.
        after: the model that came out of it.

    Raises:
        ModelError: for models that are not built, or without a weight in common.

    Example:
        >>> net = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="a")])
        >>> print(moved(net, net))
        layer  parameters  relative L2 distance
        a              10    0.0000
    """
    old, new = _values(before), _values(after)
    same = [p for p in new if p in old and old[p].shape == new[p].shape]
    if not same:
        raise ModelError(
            f"{before.name!r} and {after.name!r} have no weight of the same path and "
            f"shape: {list(old)[:3]} and {list(new)[:3]}. Compare a model with the one "
            "that it was made of."
        )
    sums: dict[str, list[float]] = {}
    for path in same:
        layer = path.rpartition("/")[0] or path
        difference = new[path].astype("float64") - old[path]
        row = sums.setdefault(layer, [0, 0.0, 0.0])
        row[0] += difference.size
        row[1] += float(np.sum(difference**2))
        row[2] += float(np.sum(old[path].astype("float64") ** 2))
    layers = tuple(
        Move(layer, int(n), way**0.5, _ratio(way, size))
        for layer, (n, way, size) in sums.items()
    )
    return Moves(
        layers,
        new=tuple(p for p in new if p not in same),
        gone=tuple(p for p in old if p not in same),
    )


def _ratio(way: float, size: float) -> float:
    if way == 0:
        return 0.0
    return (way / size) ** 0.5 if size else float("inf")


def _values(model: Any) -> dict[str, np.ndarray]:
    """What layers see of each weight that training may change, by path."""
    targets = weights_of(model)
    held = {id(v) for v in _statistics(targets)}
    values = {
        t.path: to_numpy(t.variable) for t in targets if id(t.variable) not in held
    }
    for host in hosts(model):
        if host is model:
            values |= {t.path: v for t, v, _ in host.final_values()}
    return values


def _statistics(targets: Any) -> list[Any]:
    return [
        t.variable
        for t in targets
        if isinstance(t.layer, keras.layers.BatchNormalization)
        and t.name in ("moving_mean", "moving_variance")
    ]
