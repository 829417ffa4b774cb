"""Sensitivity: what the model loses when one weight at a time is compressed."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_dlopt import checks
from keras_dlopt.auto.sensitivity_result import (
    KINDS,
    Measurement,
    Sensitivity,
    measured,
)
from keras_dlopt.errors import ConfigError, DataError, FormatError, ModelError
from keras_dlopt.files import MAX_JSON, parse_json, read_limited, write_atomic
from keras_dlopt.graph.targets import Target, weight_targets
from keras_dlopt.select import Selector, rank
from keras_dlopt.transforms import FakeQuant, Prune, Transform
from keras_dlopt.transforms.host import hosts

VERSION = 1
_MAKES: dict[str, Callable[[Any], Transform]] = {
    "sparsity": lambda level: Prune(float(level)),
    "bits": lambda level: FakeQuant(bits=int(level)),
}


def sensitivity(
    model: keras.Model,
    data: Any,
    *,
    loss: Any = None,
    sparsities: Sequence[float] = (0.5, 0.75, 0.9, 0.95),
    bits: Sequence[int] = (8, 4, 3, 2),
    select: Selector | None = None,
    batch_size: int = 256,
    cache: str | Path | None = None,
) -> Sensitivity:
    """Measures loss and accuracy with one weight at a time pruned or quantized.

    Nothing is trained. The model is used as it is: each weight is changed, the data
    are predicted, and the weight is put back, also if something fails in between.

    Args:
        model: a built model of any kind, trained.
        data: arrays `(x, y)`, or a data set that yields batches of them and can be read
            again. A few thousand examples are enough; not the test set.
        loss: a loss of Keras or its name; None for the one the model is compiled with.
        sparsities: shares of zeros, by magnitude.
        bits: widths of symmetric integers, one scale per output channel.
        select: which weights; None for those of two or more dimensions.
        batch_size: of predictions, for arrays.
        cache: a JSON file. What it holds for the same weights, data and loss is not
            measured again, and it is written after each weight, so that a run can be
            stopped and taken up.

    Returns:
        A `Sensitivity`: `table()`, `plot()`, `curves()` for `prune.BySensitivity`,
        `within()`, `to_dict()`.

    Raises:
        ModelError: for a model that is not built, or is transformed.
        ConfigError: without a loss, and if no weight is selected.
        DataError: for data without labels, or none.
        FormatError: if the cache is damaged.

    Example:
        >>> keras.utils.set_random_seed(0)
        >>> net = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        >>> x, y = np.eye(4, dtype="float32"), np.array([0, 1, 2, 0])
        >>> found = sensitivity(net, (x, y), loss=keras.losses.
        ...     SparseCategoricalCrossentropy(from_logits=True), sparsities=(0.5,),
        ...     bits=(8,))
        >>> [(row.kind, row.level) for row in found.rows]
        [('sparsity', 0.5), ('bits', 8)]

    Source: Han et al. (arXiv:1506.02626), section 5 and figure 7 (for sparsity).
    """
    if not isinstance(model, keras.Model) or not model.built:
        raise ModelError(f"sensitivity takes a built keras.Model. Received: {model!r}.")
    if hosts(model):
        raise ModelError(
            f"{model.name!r} is transformed, so that a changed weight would be "
            "transformed once more. Measure finalize(model), or the model from before."
        )
    measure = _Measure(model, data, _loss(model, loss), batch_size)
    chosen = select or rank(2, 3, 4, 5)
    targets = [target for target in weight_targets(model) if chosen(target)]
    if not targets:
        raise ConfigError(
            "The selector finds no weight. The weights are "
            f"{[t.path for t in weight_targets(model)][:20]}."
        )
    store = _Cache(cache, measure.key())
    base = store.base or measure()
    store.base = base
    rows = []
    for target in targets:
        for kind, levels in (("sparsity", sparsities), ("bits", bits)):
            for level in levels:
                rows.append(_row(target, kind, level, measure, store))
        store.write()
    sizes = {t.path: int(np.prod(t.shape or (), dtype=int)) for t in targets}
    return Sensitivity(base[0], base[1], tuple(rows), sizes, store.key)


def _loss(model: keras.Model, loss: Any) -> Any:
    loss = loss if loss is not None else getattr(model, "loss", None)
    if loss is None or isinstance(loss, dict | list):
        raise ConfigError(
            "sensitivity needs one loss. Compile the model with one, or pass "
            "loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True) or the "
            f"like. Received: {loss!r}."
        )
    return keras.losses.get(loss)


def _row(
    target: Target, kind: str, level: Any, measure: "_Measure", store: "_Cache"
) -> Measurement:
    place = (target.path, kind, float(level))
    if place not in store.rows:
        before = np.array(keras.ops.convert_to_numpy(target.variable.value))
        transform = _MAKES[kind](level)
        state = {k: s.value for k, s in transform.init(target, before).items()}
        try:
            target.variable.assign(transform.finalize(target, before, state)[0])
            store.rows[place] = measure()
        finally:
            target.variable.assign(before)
    found = store.rows[place]
    return Measurement(target.path, kind, level, found[0], found[1])


@dataclasses.dataclass
class _Measure:
    """Mean loss, and accuracy where there are classes, on the data."""

    model: Any
    data: Any
    loss: Any
    batch_size: int

    def batches(self) -> Iterator[tuple[Any, Any]]:
        """The data as batches of inputs and labels."""
        if isinstance(self.data, tuple | list):
            if len(self.data) != 2:
                raise DataError(
                    "data must be (x, y), inputs and labels. Received: "
                    f"{len(self.data)} parts."
                )
            x, y = self.data[0], np.asarray(self.data[1])
            for start in range(0, len(y), self.batch_size):
                part = slice(start, start + self.batch_size)
                yield keras.tree.map_structure(lambda v, p=part: v[p], x), y[part]
            return
        for batch in self.data:
            if not isinstance(batch, tuple | list) or len(batch) < 2:
                raise DataError("Each batch of the data must be (inputs, labels).")
            yield batch[0], np.asarray(batch[1])

    def __call__(self) -> tuple[float, float | None]:
        total, right, count, classes = 0.0, 0, 0, True
        for x, y in self.batches():
            outputs = keras.ops.convert_to_numpy(self.model.predict_on_batch(x))
            total += len(y) * float(
                keras.ops.convert_to_numpy(keras.ops.mean(self.loss(y, outputs)))
            )
            labels = _labels(y, outputs)
            classes = classes and labels is not None
            right += int(np.sum(labels == outputs.argmax(-1))) if classes else 0
            count += len(y)
        if not count:
            raise DataError("The data hold no examples.")
        return total / count, right / count if classes else None

    def key(self) -> str:
        """A hash of everything that a measurement depends on."""
        found = hashlib.sha256()
        settings = [VERSION, getattr(self.loss, "name", str(self.loss))]
        get_config = getattr(self.loss, "get_config", None)
        settings.append(get_config() if get_config else "")
        found.update(json.dumps(settings, default=str).encode())
        for variable in self.model.weights:
            value = np.asarray(keras.ops.convert_to_numpy(variable.value))
            found.update(f"{variable.path} {value.shape} {value.dtype}".encode())
            found.update(value.tobytes())
        for x, y in self.batches():
            for part in (*keras.tree.flatten(x), y):
                value = np.asarray(part)
                found.update(f"{value.shape} {value.dtype}".encode() + value.tobytes())
        return found.hexdigest()


def _labels(y: np.ndarray, outputs: np.ndarray) -> np.ndarray | None:
    """The right classes: integer labels, or the places of one-hot ones."""
    if outputs.ndim < 2 or outputs.shape[-1] < 2:
        return None
    if y.shape == outputs.shape:
        hot = np.all((y == 0) | (y == 1)) and np.all(y.sum(-1) == 1)
        return y.argmax(-1) if hot else None
    whole = y.dtype.kind in "iu" and y.size == outputs.size // outputs.shape[-1]
    return y.reshape(outputs.shape[:-1]) if whole else None


class _Cache:
    """Measurements in a JSON file, valid for one key; without a file, in memory."""

    def __init__(self, path: str | Path | None, key: str):
        self.path = None if path is None else Path(path)
        self.key = key
        self.base: tuple[float, float | None] | None = None
        self.rows: dict[tuple[str, str, float], tuple[float, float | None]] = {}
        if self.path is not None and self.path.exists():
            self._read(self.path)

    def _read(self, path: Path) -> None:
        try:
            data = parse_json(read_limited(path, MAX_JSON), finite=False)
            if not isinstance(data, dict) or not {"version", "key"} <= set(data):
                raise FormatError("it is no object with 'version' and 'key'")
            if data["version"] != VERSION or data["key"] != self.key:
                return  # another model or other data: measured anew
            self.base = _pair(data["base"])
            self.rows = {
                (
                    checks.text(path, name="a path"),
                    checks.choice(kind, name="a kind", choices=KINDS),
                    checks.number(level, name="a level"),
                ): _pair(found)
                for path, kind, level, found in data["rows"]
            }
        except (ValueError, KeyError, TypeError) as error:
            raise FormatError(
                f"The cache {str(path)!r} is damaged ({error}). Delete it; everything "
                "is measured again."
            ) from None

    def write(self) -> None:
        """Writes the file, whole or not at all."""
        if self.path is None:
            return
        rows = [[*place, found] for place, found in self.rows.items()]
        data = {
            "version": VERSION,
            "key": self.key,
            "base": self.base,
            "rows": rows,
        }
        write_atomic(self.path, json.dumps(data).encode())


def _pair(value: Any) -> tuple[float, float | None]:
    loss, accuracy = value
    return measured(loss), None if accuracy is None else measured(accuracy)
