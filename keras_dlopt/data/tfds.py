"""Data sets of TensorFlow Datasets, by name."""

import contextlib
import sys
from typing import Any

import numpy as np

from keras_dlopt.data.folders import resized
from keras_dlopt.data.split import Raw, held_out
from keras_dlopt.errors import DataError, require

PREFIX = "tfds:"


def from_tfds(name: str, *, image_size: tuple[int, int] | None, seed: int) -> Raw:
    """`tensorflow_datasets.load(name)` in memory, downloaded where it is not there.

    Its `validation` part is the test part where it has no `test` with labels; with
    neither, the examples are shuffled by `seed`, and the last 20 % become the test
    part.
    """
    require("tensorflow-datasets", extra="tfds", purpose=PREFIX + name)
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name)
        with contextlib.redirect_stdout(sys.stderr):  # its news of the download
            builder.download_and_prepare()
    except Exception as error:  # of the network, the disk, or its own
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise DataError(
            f"TensorFlow Datasets gives no {name!r}: {lines[0][:300].rstrip('.')}. Its "
            "names are on https://www.tensorflow.org/datasets/catalog."
        ) from error
    keys = builder.info.supervised_keys
    if keys is None or len(keys) != 2 or "train" not in builder.info.splits:
        raise DataError(
            f"{PREFIX}{name} has no pairs of examples and labels, or no part 'train'. "
            "On the command line module:function, which returns (x, y), can do without."
        )
    names = getattr(builder.info.features[keys[1]], "names", None)
    found: dict[str, Any] = {}
    for part, kept in (("train", "train"), ("validation", "val"), ("test", "test")):
        if part in builder.info.splits:
            pairs = builder.as_dataset(split=part, as_supervised=True)
            x, y = _arrays(tfds.as_numpy(pairs), image_size, f"{PREFIX}{name}")
            # Classes are all -1 where they are kept secret.
            if y.size and (y.dtype.kind not in "iu" or y.min() >= 0):
                found |= {f"x_{kept}": x, f"y_{kept}": y}
    if "x_test" not in found and "x_val" in found:
        found |= {"x_test": found.pop("x_val"), "y_test": found.pop("y_val")}
    names = None if names is None else tuple(names)
    if "x_test" not in found:
        x, y = found["x_train"], found["y_train"]
        return held_out(name, x, y, seed=seed, class_names=names)
    return Raw(name, **found, class_names=names)


def _arrays(
    pairs: Any, image_size: tuple[int, int] | None, name: str
) -> tuple[np.ndarray, np.ndarray]:
    images: list[np.ndarray] = []
    labels: list[Any] = []
    for image, label in pairs:
        image = np.asarray(image)
        if image_size is not None and image.ndim == 3:
            # A gray image has an axis of 1 here, which Pillow does not know.
            image = resized(image.squeeze(), image_size).reshape(*image_size, -1)
        if images and image.shape != images[0].shape:
            raise DataError(
                f"{name} has examples of the shapes {images[0].shape} and "
                f"{image.shape}. Give image_size=(height, width) to resize."
            )
        images.append(image)
        labels.append(label)
    return np.stack(images), np.asarray(labels)
