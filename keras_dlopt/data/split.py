"""Turns raw arrays into a `Dataset`: labels, channels, range, validation part."""

import dataclasses

import numpy as np

from keras_dlopt import checks
from keras_dlopt.data.dataset import Dataset
from keras_dlopt.errors import ConfigError, DataError

DTYPES = ("float32", "uint8")


@dataclasses.dataclass
class Raw:
    """What a source found; parts that it does not have are None."""

    name: str
    x_train: np.ndarray
    y_train: np.ndarray
    x_val: np.ndarray | None = None
    y_val: np.ndarray | None = None
    x_test: np.ndarray | None = None
    y_test: np.ndarray | None = None
    class_names: tuple[str, ...] | None = None
    validation: int | float = 0.1


def held_out(
    name: str,
    x: np.ndarray,
    y: np.ndarray,
    *,
    seed: int,
    class_names: tuple[str, ...] | None = None,
) -> Raw:
    """Examples shuffled by `seed`, of which the last 20 % become the test part."""
    order = np.random.default_rng(seed).permutation(len(x))
    x, y = x[order], y[order]
    cut = len(x) - max(round(0.2 * len(x)), 1)
    return Raw(
        name,
        *(x[:cut], y[:cut]),
        x_test=x[cut:],
        y_test=y[cut:],
        class_names=class_names,
    )


def finish(raw: Raw, *, dtype: str, validation: int | float | None) -> Dataset:
    """The finished data set; see `load` for the rules."""
    checks.choice(
        dtype,
        name="dtype",
        choices=DTYPES,
        hint="float32 images lie in [0, 1], uint8 images in 0..255.",
    )
    if raw.x_test is None or raw.y_test is None:
        raise DataError(f"{raw.name} has no test part.")
    if raw.x_val is None or raw.y_val is None:
        size = raw.validation if validation is None else validation
        count = _count(size, len(raw.x_train), raw.name)
        cut = len(raw.x_train) - count
        raw = dataclasses.replace(
            raw,
            x_train=raw.x_train[:cut],
            y_train=raw.y_train[:cut],
            x_val=raw.x_train[cut:],
            y_val=raw.y_train[cut:],
        )
    elif validation is not None:
        raise ConfigError(
            f"{raw.name} brings its own validation part; leave out "
            f"validation={validation!r}."
        )
    labels, names = _targets(raw)
    images = {p: _examples(getattr(raw, f"x_{p}"), dtype, raw.name) for p in _PARTS}
    return Dataset(
        raw.name,
        *(images["train"], labels["train"]),
        *(images["val"], labels["val"]),
        *(images["test"], labels["test"]),
        class_names=names,
        of_bytes=raw.x_train.dtype == np.uint8,
    )


_SIZE = "It is a share in [0, 1), or a number of the training examples."
_PARTS = ("train", "val", "test")


def _count(size: int | float, total: int, name: str) -> int:
    """Number of validation examples meant by a number or a share."""
    number = checks.number(size, name="validation", least=0, hint=_SIZE)
    whole = np.asarray(size).dtype.kind in "iu"
    count = int(number) if whole else round(number * total)
    if count >= total:
        raise checks.refused(
            size,
            name="validation",
            wanted="a share in [0, 1) or a number below the "
            f"{total} training examples of {name}",
        )
    return count


def _targets(raw: Raw) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """The labels by part, and the names of the classes: none for other targets."""
    given = {p: np.asarray(getattr(raw, f"y_{p}")) for p in _PARTS}
    given = {
        p: y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y for p, y in given.items()
    }
    train = given["train"]
    if train.dtype.kind in "US":
        names = raw.class_names or tuple(map(str, np.unique(train)))
        return {
            p: _numbered(y, names, f"{raw.name}: y_{p}") for p, y in given.items()
        }, (names)
    for part, y in given.items():
        if y.dtype.kind not in "biuf":
            raise DataError(
                f"{raw.name}: y_{part} holds values of type {y.dtype}; expected whole "
                "numbers or texts for classes, one-hot rows, or numbers to predict."
            )
        if not np.isfinite(y).all():
            raise DataError(f"{raw.name}: y_{part} has labels that are not finite.")
    if all(_is_one_hot(y) for y in given.values() if len(y)):
        width = train.shape[1]
        given = {p: y.reshape(-1, width).argmax(1) for p, y in given.items()}
        return _classes(given, raw.class_names or tuple(map(str, range(width))))
    whole = all(
        y.dtype.kind in "biu" or (y == np.rint(y)).all() for y in given.values()
    )
    below = any(y.dtype.kind == "f" and y.min(initial=0) < 0 for y in given.values())
    if not whole or (below and raw.class_names is None):
        return {p: y.astype(np.float32) for p, y in given.items()}, ()
    if train.ndim > 1:  # labels of pixels, or several of an example
        return _classes(given, ())
    top = max(int(y.max()) if y.size else -1 for y in given.values())
    return _classes(given, raw.class_names or tuple(map(str, range(top + 1))))


def _classes(
    given: dict[str, np.ndarray], names: tuple[str, ...]
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    return {p: y.astype(np.int32) for p, y in given.items()}, tuple(names)


def _is_one_hot(y: np.ndarray) -> bool:
    return (
        y.ndim == 2
        and bool(((y == 0) | (y == 1)).all())
        and bool((y.sum(axis=1) == 1).all())
    )


def _numbered(y: np.ndarray, names: tuple[str, ...], where: str) -> np.ndarray:
    unknown = sorted(set(map(str, np.unique(y))) - set(names))
    if unknown:
        raise DataError(
            f"{where} has the classes {unknown[:10]}, which the training part has not."
        )
    number = {name: i for i, name in enumerate(names)}
    return np.array([number[str(name)] for name in y.ravel()], np.int32).reshape(
        y.shape
    )


def _examples(values: np.ndarray, dtype: str, name: str) -> np.ndarray:
    """Adds the channel axis to gray images; scales bytes to [0, 1]."""
    if values.ndim == 3:
        values = values[..., None]
    if values.dtype == np.uint8:
        if dtype == "uint8":
            return np.ascontiguousarray(values)
        return values.astype(np.float32) / np.float32(255)
    if dtype == "uint8":
        raise DataError(
            f"{name} holds values of type {values.dtype}, which cannot be given as "
            "uint8 without loss. Ask for dtype='float32'."
        )
    if not np.issubdtype(values.dtype, np.number):
        raise DataError(
            f"{name} holds examples of type {values.dtype}; expected numbers."
        )
    return values.astype(np.float32)
