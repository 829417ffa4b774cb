"""Where arrays come from: scikit-learn, idx folders, `.npz` files, image folders.

Each function returns a `Raw`, or raises `DataError` with a text that says what is wrong
with what it found.
"""

import pathlib
import zipfile
from typing import Any

import numpy as np

from keras_dlopt.data.idx import IMAGES, LABELS, find_idx, read_idx
from keras_dlopt.data.split import Raw, held_out
from keras_dlopt.errors import DataError, FormatError
from keras_dlopt.files import read_npz

MNIST_CLASSES = tuple("0123456789")
FASHION_CLASSES = (
    "t-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
# name -> class names, number of validation images.
IDX_SETS: dict[str, tuple[tuple[str, ...], int]] = {
    "mnist": (MNIST_CLASSES, 5_000),
    "fashion_mnist": (FASHION_CLASSES, 10_000),
}
IDX_STEMS = tuple(f"{p}-{k}" for p in ("train", "t10k") for k in (IMAGES, LABELS))


def digits(seed: int) -> Raw:
    """scikit-learn's 1,797 digits of 8x8 pixels, shuffled by `seed`."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    # 17 gray levels, 0 to 16; as bytes they are rounded to multiples of 255/16.
    x = np.rint(x.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    order = np.random.default_rng(seed).permutation(len(x))
    x, y = x[order], y[order]
    return Raw(
        "digits",
        *(x[:1437], y[:1437]),
        x_test=x[1437:],
        y_test=y[1437:],
        class_names=MNIST_CLASSES,
        validation=180,
    )


def has_idx(folder: pathlib.Path) -> bool:
    """Whether all four files of an idx data set are in `folder`."""
    return all(find_idx(folder, stem) for stem in IDX_STEMS)


def from_idx(folder: pathlib.Path, name: str) -> Raw:
    """The four idx files in `folder`."""
    arrays = []
    for stem in IDX_STEMS:
        path = find_idx(folder, stem)
        if path is None:
            raise DataError(
                f"{folder} has no {stem} or {stem}.gz. It needs all of "
                f"{', '.join(IDX_STEMS)}."
            )
        array = read_idx(path)
        if array.ndim != (3 if IMAGES in stem else 1):
            raise DataError(f"{path} holds an array of shape {array.shape}.")
        arrays.append(array)
    names, validation = IDX_SETS.get(name, (None, 0.1))
    x_train, y_train, x_test, y_test = arrays
    return Raw(
        name,
        *(x_train, y_train),
        x_test=x_test,
        y_test=y_test,
        class_names=names,
        validation=validation,
    )


def from_keras(name: str) -> Raw:
    """Keras' own copy, downloaded into `~/.keras` where it is not yet there."""
    import keras

    module = getattr(keras.datasets, name)
    try:
        (x_train, y_train), (x_test, y_test) = module.load_data()
    except Exception as error:  # whatever the network, the disk or the hash say
        raise DataError(f"{type(error).__name__}: {error}") from error
    names, validation = IDX_SETS[name]
    return Raw(
        name,
        *(x_train, y_train),
        x_test=x_test,
        y_test=y_test,
        class_names=names,
        validation=validation,
    )


def from_npz(path: pathlib.Path, *, seed: int) -> Raw:
    """A NumPy archive with `x_train, y_train, x_test, y_test`, maybe `x_val, y_val`.

    Or with `x, y`, of which the last 20 % become the test part after a shuffle by
    `seed`. `X` means `x`.
    """
    wanted = [f"{a}{p}" for p in _PARTS for a in "xXyY"]
    try:
        arrays = read_npz(path.read_bytes(), wanted=wanted)
    except (OSError, MemoryError, FormatError) as error:
        raise DataError(
            f"{path} cannot be read as an .npz archive of plain arrays: {error}. "
            "Arrays of Python objects are refused, since loading them runs code; "
            "write it with np.savez(path, x_train=..., y_train=..., x_test=..., "
            "y_test=...)."
        ) from error
    found: dict[str, Any] = {}
    for name, array in arrays.items():
        found.setdefault(name[0].lower() + name[1:], array)
    parts = [p for p in _PARTS if f"x{p}" in found and f"y{p}" in found]
    if len(arrays) != 2 * len(parts) or parts not in _LAYOUTS:
        with zipfile.ZipFile(path) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
        raise DataError(
            f"{path} holds {names}; expected x_train, y_train, x_test, y_test and, if "
            "it has its own validation part, both x_val and y_val; or x and y, of "
            "which a fifth is held out as test part."
        )
    if "_test" in parts:
        return Raw(path.stem, **found)
    return held_out(path.stem, found["x"], found["y"], seed=seed)


_PARTS = ("", "_train", "_val", "_test")
_LAYOUTS = ([""], ["_train", "_test"], ["_train", "_val", "_test"])
