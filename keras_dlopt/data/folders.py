"""Folders of images, one subfolder per class."""

import pathlib
from typing import Any

import numpy as np

from keras_dlopt.data.split import Raw
from keras_dlopt.errors import DataError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".ppm", ".pgm")
PARTS = ("train", "val", "test")


def class_folders(folder: pathlib.Path) -> list[pathlib.Path]:
    """The subfolders of `folder` that hold images, sorted by name."""
    return [p for p in sorted(folder.iterdir()) if p.is_dir() and image_files(p)]


def image_files(folder: pathlib.Path) -> list[pathlib.Path]:
    """The image files directly in `folder`, sorted by name."""
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)


def has_images(folder: pathlib.Path) -> bool:
    """Whether `folder` is laid out as classes, or as parts with classes."""
    return any(
        p.is_dir() and class_folders(p)
        for p in (folder, folder / "train", folder / "test")
    )


def from_folder(
    folder: pathlib.Path, *, image_size: tuple[int, int] | None, seed: int
) -> Raw:
    """Reads `folder/<class>/*.png` or `folder/{train,val,test}/<class>/*.png`.

    Without parts, the images are shuffled by `seed` and the last 20 % become the test
    part.
    """
    parts = {p: folder / p for p in PARTS if (folder / p).is_dir()}
    if "train" not in parts:
        return _one_folder(folder, image_size, seed)
    if "test" not in parts:
        raise DataError(f"{folder} has a folder train and no folder test. Add one.")
    names = [p.name for p in class_folders(parts["train"])]
    arrays: dict[str, Any] = {}
    for part, path in parts.items():
        unknown = {p.name for p in class_folders(path)} - set(names)
        if unknown:
            raise DataError(
                f"{path} has classes {sorted(unknown)} that {parts['train']} has not."
            )
        x, y = _read(path, names, image_size)
        order = np.random.default_rng(seed).permutation(len(x))
        arrays |= {f"x_{part}": x[order], f"y_{part}": y[order]}
    return Raw(folder.name, **arrays, class_names=tuple(names))


def _one_folder(folder, image_size, seed) -> Raw:
    names = [p.name for p in class_folders(folder)]
    x, y = _read(folder, names, image_size)
    order = np.random.default_rng(seed).permutation(len(x))
    x, y = x[order], y[order]
    cut = len(x) - max(round(0.2 * len(x)), 1)
    return Raw(
        folder.name,
        *(x[:cut], y[:cut]),
        x_test=x[cut:],
        y_test=y[cut:],
        class_names=tuple(names),
    )


def _read(folder, names, image_size) -> tuple[np.ndarray, np.ndarray]:
    from PIL import Image

    images: list[np.ndarray] = []
    labels: list[int] = []
    first: pathlib.Path | None = None
    for label, name in enumerate(names):
        for path in image_files(folder / name):
            image = _image(Image, path, image_size)
            first = first or path
            if images and image.shape != images[0].shape:
                raise DataError(
                    f"{path} has shape {image.shape} and {first} has "
                    f"{images[0].shape}. Give image_size=(height, width) to resize."
                )
            images.append(image)
            labels.append(label)
    if not images:
        raise DataError(
            f"{folder} has no images ({', '.join(IMAGE_SUFFIXES)}) in subfolders named "
            "after the classes."
        )
    return np.stack(images), np.asarray(labels, np.int32)


def _image(pillow, path: pathlib.Path, image_size) -> np.ndarray:
    try:
        with pillow.open(path) as image:
            gray = image.mode in ("L", "1", "I", "I;16", "F", "LA")
            image = image.convert("L" if gray else "RGB")
            if image_size is not None:
                height, width = image_size
                image = image.resize((width, height), pillow.Resampling.BILINEAR)
            array = np.asarray(image, np.uint8)
    except (OSError, ValueError, SyntaxError, pillow.DecompressionBombError) as error:
        raise DataError(f"{path} cannot be read as an image: {error}") from error
    return array[..., None] if array.ndim == 2 else array
