"""Setting the ranges of activation quantizers from data."""

import dataclasses
from typing import Any

import numpy as np
from keras import ops

from keras_dlopt.errors import ConfigError
from keras_dlopt.graph import hooks
from keras_dlopt.graph.targets import Target, taps
from keras_dlopt.post_training.data import Batches
from keras_dlopt.transforms import TransformedModel
from keras_dlopt.transforms.quantize.grids import wide
from keras_dlopt.transforms.quantize.observers import (
    MovingAverage,
    Observer,
    PeakHold,
    observer_of,
)
from keras_dlopt.transforms.slots import Slot

_BINS = 2048
_CHUNK = 1 << 15  # values at a time: what the processor's cache holds


@dataclasses.dataclass
class _Seen:
    """What is known about the values at one place."""

    lows: list[float] = dataclasses.field(default_factory=list)
    highs: list[float] = dataclasses.field(default_factory=list)
    total: float = 0.0
    count: int = 0
    arrays: int = 0
    histogram: np.ndarray | None = None

    def add(self, array: np.ndarray, first: bool) -> None:
        low, high = float(array.min(initial=0)), float(array.max(initial=0))
        if not first:  # one range for all that comes in one run
            low, high = min(low, self.lows.pop()), max(high, self.highs.pop())
        self.lows.append(low)
        self.highs.append(high)
        self.total += float(np.abs(array).sum(dtype="float64"))
        self.count += array.size
        self.arrays += 1

    def add_all(self, array: np.ndarray, first: bool) -> None:
        """As `add` and `bin`: these are all values, if nothing comes after them."""
        self.add(array, first)
        self.histogram = None
        self.bin(array, first)

    @property
    def ends(self) -> tuple[float, float]:
        low, high = min(self.lows, default=0.0), max(self.highs, default=0.0)
        return low, float(wide(low, high))

    def bin(self, array: np.ndarray, first: bool) -> None:
        if self.histogram is None:
            self.histogram = np.zeros(_BINS, "int64")
        low, width = self._bins
        flat = array.reshape(-1)
        for start in range(0, flat.size, _CHUNK):
            part = (flat[start : start + _CHUNK] - low) / width
            np.minimum(part, _BINS - 1, out=part)
            self.histogram += np.bincount(part.astype("intp"), minlength=_BINS)

    @property
    def _bins(self) -> tuple[np.float32, np.float32]:
        """Where the first bin starts, and how wide one is."""
        low, high = self.ends
        return np.float32(low), np.float32((high - low) / _BINS)

    def range(self, observer: Observer, grid: Any) -> tuple[float, float]:
        low, high = self.ends
        holds = isinstance(observer, PeakHold)
        if isinstance(observer, MovingAverage) and not holds:
            return _averaged(self.lows, observer), _averaged(self.highs, observer)
        if not observer.host:
            return low, high
        first, width = self._bins
        centers = float(first) + (np.arange(_BINS) + 0.5) * float(width)
        # What is exactly 0 must stay so, whatever its bin's center is.
        centers[min(int((0 - first) / width), _BINS - 1)] = 0.0
        assert self.histogram is not None
        found = observer.find(centers[None], self.histogram[None].astype(float), grid)
        return float(found[0][0]), float(found[1][0])


def _averaged(values: list[float], observer: MovingAverage) -> float:
    average = values[0]
    for value in values[1:]:
        average = observer.momentum * average + (1 - observer.momentum) * value
    return average


def calibrate(
    model: TransformedModel,
    data: Any,
    *,
    observer: str | Observer = "mse",
    batch_size: int = 64,
) -> None:
    """Sets the ranges of a model's activation quantizers from data, in place.

    Runs the float model over the data, once for its ends and, for observers that look
    at the distribution, once more for histograms of 2048 bins; data that fit into one
    batch are run once. Trained quantizers
    (`LSQActivation`, `LSQPlusActivation`, `PACT`) get their start from it.

    Args:
        model: what `transform` returned; ranges given as fixed stay.
        data: some hundred examples; see `Batches`.
        observer: `"min_max"`, `"moving_average"`, `"peak_hold"` (here as `"min_max"`),
            `"percentile"`, `"mse"`, `"kl"` or an object such as `Percentile(99.9)`.
        batch_size: for arrays.

    Raises:
        ConfigError: for a model without transforms.
        DataError: for data that is empty or does not fit the model.

    Example:
        >>> net = keras.Sequential([keras.Input((3,)), keras.layers.ReLU(name="r")])
        >>> recipe = dlopt.Recipe([(dlopt.at("r/output"), dlopt.FakeQuantActivation())])
        >>> small = dlopt.transform(net, recipe)
        >>> calibrate(small, np.full((4, 3), 2.0, "float32"), observer="min_max")
        >>> float(small.groups[0].slots[0].state["high"])
        2.0
    """
    if not isinstance(model, TransformedModel):
        raise ConfigError(
            "calibrate sets the ranges of a TransformedModel. Received: "
            f"{type(model).__name__}. post_training.quantize(model, data) builds one."
        )
    observer = observer_of(observer)
    batches = Batches(model.model, data, batch_size=batch_size)
    _check_known(model)
    places: list[tuple[Any, Slot, _Seen]] = [
        (group.transform, slot, _Seen())
        for group in model.groups
        if group.transform.kind == "activation"
        for slot in group.slots
    ]
    _see(model.model, batches, [(s.target, seen) for _, s, seen in places], observer)
    model.check_acted(slot for _, slot, found in places if found.count)
    for transform, slot, found in places:
        if not found.count:
            continue  # not on any path of inference
        low, high = found.range(observer, transform.grid)
        magnitude = found.total / found.count
        for name, value in transform.calibrated(low, high, magnitude).items():
            slot.write(name, value)


def _see(
    model: Any,
    batches: Batches,
    places: list[tuple[Target, _Seen]],
    observer: Observer,
) -> None:
    alone = observer.host and len(batches.batches) == 1
    once = [(at, seen.add_all if alone else seen.add) for at, seen in places]
    _observe(model, batches, once)
    # Where one array came, its histogram is complete; else the ends are known now.
    left = [(at, seen) for at, seen in places if not alone or seen.arrays > 1]
    if observer.host and left:
        for _, seen in left:
            seen.histogram = None
        _observe(model, batches, [(at, seen.bin) for at, seen in left])


def _check_known(model: TransformedModel) -> None:
    for group in model.groups:
        activation = group.transform.kind == "activation"
        if activation and not hasattr(group.transform, "calibrated"):
            raise ConfigError(
                f"calibrate does not know how to set {group.transform!r} from data. It "
                "takes FakeQuantActivation, LSQActivation, LSQPlusActivation, PACT, "
                "and transforms with a method calibrated(low, high, magnitude)."
            )


def _observe(model: Any, batches: Batches, notes: list[tuple[Target, Any]]) -> None:
    def tap(target, note):
        def see(x):
            first = target not in passed
            passed.add(target)
            note(np.asarray(ops.convert_to_numpy(x), "float32"), first)
            return x

        return see

    for batch in batches:
        passed: set[Target] = set()
        with hooks.hooked(taps([(at, tap(at, note)) for at, note in notes])):
            model(batch, training=False)
