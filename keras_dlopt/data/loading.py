"""`load`: one call for every data set this package's examples use."""

import os
import pathlib
from typing import Any

from keras_dlopt.data import csv_file, folders, sources, tfds
from keras_dlopt.data.dataset import Dataset
from keras_dlopt.data.idx import find_idx
from keras_dlopt.data.split import Raw, finish
from keras_dlopt.errors import ConfigError, DataError

ENVIRONMENT = "KERAS_DLOPT_DATA"
NAMES = ("digits", *sources.IDX_SETS)


def load(
    name: str | os.PathLike[str] = "digits",
    *,
    folder: str | os.PathLike[str] | None = None,
    dtype: str = "float32",
    validation: int | float | None = None,
    image_size: tuple[int, int] | None = None,
    label: str | None = None,
    seed: int = 0,
) -> Dataset:
    """Loads a data set by name or from a path, split in three.

    | `name` | source | validation | test |
    |---|---|---|---|
    | `"digits"` | scikit-learn, 8x8x1 | last 180 of 1,437 | 360 |
    | `"mnist"` | idx files or Keras | last 5,000 of 60,000 | 10,000 |
    | `"fashion_mnist"` | idx files or Keras | last 10,000 of 60,000 | 10,000 |
    | a `.npz` file | `x_train, y_train, x_test, y_test` | last 10 %, or `x_val` | own |
    | the same, without parts | `x, y` | last 10 % | 20 % |
    | a `.csv` or `.tsv` file | an example a row, with its label | last 10 % | 20 % |
    | `"tfds:NAME"` | TensorFlow Datasets | last 10 %, or own | own, or 20 % |
    | a folder of idx files | the same four files | last 10 % | own |
    | a folder of images | a subfolder per class | last 10 % | last 20 %, or own |

    What has no test part of its own, and `digits`, is shuffled by `seed` first. The
    others keep their order, so the split is the same for everybody. Labels are whole
    numbers from 0, texts (numbered in the order of the alphabet) or one-hot rows, which
    give classes; other numbers are kept as what is to be predicted.

    Of a table, the last column holds the labels or the one called `label`; its first
    line names the columns unless all of it are numbers. An image folder may hold
    `train`, `test` and `val` folders, each with a subfolder per class. Its pictures are
    turned as their EXIF data say; gray ones of 16 bits keep them, as float32; files of
    several pictures, of 32 bits a pixel or 16 a color channel, and pictures with
    transparent pixels are refused.

    The files of `mnist` and `fashion_mnist` are looked for in `folder` or, without
    it, in the folder that the environment variable `KERAS_DLOPT_DATA` names: first in
    its subfolder of that name (also with `-` for `_`), then in the folder itself
    unless that is called after the other data set. Without either, Keras' own copy is
    used and, where absent, downloaded. A given `folder` is the only place looked in.

    Args:
        name: see the table.
        folder: where the idx files are, or a folder above.
        dtype: `"float32"`, with bytes scaled to [0, 1], or `"uint8"`, 0 to 255.
        validation: number (int) or share (float) of the training examples, taken from
            the end, to validate on; None takes the table's.
        image_size: `(height, width)` in pixels for image folders and `tfds:`; None
            takes them as they are, all alike.
        label: name of the column of labels in a table; None takes the last one.
        seed: of the shuffle, where there is one.

    Raises:
        DataError: when nothing usable was found; the text lists what was tried, in
            order, and what to do.
        ConfigError: for arguments that do not fit the data set.

    Example:
        >>> load("digits")
        Dataset('digits', 1257 train, 180 validation, 360 test, shape (8, 8, 1), \
10 classes)
    """
    name = os.fspath(name)
    no_folder = name in NAMES or name.endswith((".npz", *csv_file.SUFFIXES))
    if image_size is not None and no_folder:
        raise ConfigError(
            f"image_size applies to folders of images. Received: {name!r} and "
            f"image_size={image_size!r}."
        )
    if folder is not None and name not in sources.IDX_SETS:
        raise ConfigError(
            f"folder goes with {' or '.join(sources.IDX_SETS)}. Received: {name!r} and "
            f"folder={os.fspath(folder)!r}. Give the path itself as name instead."
        )
    if label is not None and not name.endswith(csv_file.SUFFIXES):
        raise ConfigError(
            f"label names a column of a .csv or .tsv file. Received: {name!r} and "
            f"label={label!r}."
        )
    if name == "digits":
        raw = sources.digits(seed)
    elif name in sources.IDX_SETS:
        raw = _named(name, folder)
    elif name.startswith(tfds.PREFIX):
        wanted = name.removeprefix(tfds.PREFIX)
        raw = tfds.from_tfds(wanted, image_size=image_size, seed=seed)
    elif name.endswith(csv_file.SUFFIXES) and os.path.isfile(name):
        raw = csv_file.from_csv(pathlib.Path(name), label=label, seed=seed)
    else:
        raw = _from_path(pathlib.Path(name), image_size=image_size, seed=seed)
    return finish(raw, dtype=dtype, validation=validation)


def _named(name: str, folder: str | os.PathLike[str] | None) -> Raw:
    """`mnist` or `fashion_mnist`, from the first place that has it."""
    tried: list[str] = []
    if folder is not None:
        places = [("folder", os.fspath(folder))]
    else:
        value = os.environ.get(ENVIRONMENT)
        if value is None:
            tried.append(f"the environment variable {ENVIRONMENT}: not set")
        places = [] if value is None else [(ENVIRONMENT, value)]
    for label, place in places:
        for candidate in _candidates(pathlib.Path(place), name):
            if sources.has_idx(candidate):
                return sources.from_idx(candidate, name)
            tried.append(f"{label}, {candidate}: {_lack(candidate)}")
    if folder is None:
        try:
            return sources.from_keras(name)
        except DataError as error:
            tried.append(f"Keras' own copy in ~/.keras, or its download: {error}")
    lines = "\n".join(f"  {i}. {text}" for i, text in enumerate(tried, 1))
    raise DataError(
        f"{name} was not found. Tried, in order:\n{lines}\n"
        f"Put {', '.join(sources.IDX_STEMS)} (each may end in .gz) in a folder and "
        f"give it as folder=... or in the environment variable {ENVIRONMENT}, or use "
        "'digits', which needs no download."
    )


def _candidates(place: pathlib.Path, name: str) -> list[pathlib.Path]:
    """Subfolders first: the same four file names serve both data sets."""
    found = [place / name]
    if "_" in name:
        found.append(place / name.replace("_", "-"))
    others = set(sources.IDX_SETS) - {name}
    if place.name.replace("-", "_") not in others:
        found.append(place)
    return found


def _lack(folder: pathlib.Path) -> str:
    if not folder.is_dir():
        return "no such folder"
    absent = [s for s in sources.IDX_STEMS if find_idx(folder, s) is None]
    return f"no {', '.join(absent)}"


def _from_path(path: pathlib.Path, *, image_size: Any, seed: int) -> Raw:
    if path.suffix == ".npz" and path.is_file():
        return sources.from_npz(path, seed=seed)
    if path.is_dir():
        if sources.has_idx(path):
            return sources.from_idx(path, path.name.replace("-", "_"))
        if folders.has_images(path):
            return folders.from_folder(path, image_size=image_size, seed=seed)
        raise DataError(
            f"{path} is a folder with neither the four idx files "
            f"({', '.join(sources.IDX_STEMS)}) nor subfolders of images "
            f"({', '.join(folders.IMAGE_SUFFIXES)}), one per class."
        )
    state = "is none of these files" if path.exists() else "does not exist"
    raise DataError(
        f"{str(path)!r} is not a data set. Tried, in order:\n"
        f"  1. a known name: {', '.join(NAMES)}\n"
        f"  2. a path: it {state}\n"
        "Give one of the names, tfds:NAME, a .npz, .csv or .tsv file, a folder of idx "
        "files, or a folder with one subfolder of images per class."
    )
