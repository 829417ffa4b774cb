"""Folders of images, one subfolder per class."""

import pathlib
import re
from typing import Any

import numpy as np

from keras_dlopt.data.split import Raw, held_out
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


def _one_folder(folder: pathlib.Path, image_size: Any, seed: int) -> Raw:
    names = [p.name for p in class_folders(folder)]
    x, y = _read(folder, names, image_size)
    return held_out(folder.name, x, y, seed=seed, class_names=tuple(names))


def _read(
    folder: pathlib.Path, names: list[str], image_size: Any
) -> tuple[np.ndarray, np.ndarray]:
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
            if images and image.dtype != images[0].dtype:
                raise DataError(
                    f"{path} and {first} differ: one has 8 bits a pixel, the other "
                    "16. Save all alike."
                )
            images.append(image)
            labels.append(label)
    if not images:
        raise DataError(
            f"{folder} has no images ({', '.join(IMAGE_SUFFIXES)}) in subfolders named "
            "after the classes."
        )
    return np.stack(images), np.asarray(labels, np.int32)


def _image(pillow: Any, path: pathlib.Path, image_size: Any) -> np.ndarray:
    """Height, width, channels: bytes, or float32 in [0, 1] for 16 bits a pixel."""
    from PIL import ImageOps

    try:
        with pillow.open(path) as image:
            _check_colors(image, path)
            image.load()
            if getattr(image, "n_frames", 1) > 1:
                raise DataError(
                    f"{path} holds {image.n_frames} pictures, one after the other. "
                    "Save the one that is meant as a file of its own."
                )
            # A camera that was held upright notes so, and leaves the pixels lying.
            wide = _is_wide(image, path)
            image = ImageOps.exif_transpose(image)
            _check_opaque(image, path)
            array = np.asarray(_wide(image) if wide else _narrow(image))
    except (
        OSError,
        ValueError,
        SyntaxError,
        pillow.DecompressionBombError,
    ) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} cannot be read as an image: {error}") from error
    if image_size is not None:
        array = resized(array, image_size)
    if wide:
        array = array.astype(np.float32) / np.float32(65535)
    return array[..., None] if array.ndim == 2 else array


def _check_colors(image: Any, path: pathlib.Path) -> None:
    """Refuses colors of 16 bits, of which Pillow keeps 8 without a word."""
    # What the pixels are read as, known before they are read.
    for _, _, _, args in getattr(image, "tile", ()):
        rawmode, *rest = args if isinstance(args, tuple) else (args,)
        most = next((n for n in rest if isinstance(n, int)), 0)
        colored = image.mode not in ("1", "L") and not image.mode.startswith("I")
        wide = re.match(r"(RGB|LA|CMYK).*;16", str(rawmode)) or (
            image.format == "PPM" and most > 255
        )
        if colored and wide:
            raise DataError(
                f"{path} has 16 bits a color channel, of which Pillow reads 8. Save 8 "
                "bits a channel, or an .npz file with x_train, y_train, x_test and "
                "y_test."
            )


def _check_opaque(image: Any, path: pathlib.Path) -> None:
    """Refuses pixels that something unknown shines through."""
    if image.mode.startswith("I"):
        clear = bool((np.asarray(image) == image.info.get("transparency", -1)).any())
    elif image.has_transparency_data:
        clear = image.convert("RGBA").getchannel("A").getextrema()[0] < 255
    else:
        clear = False
    if clear:
        raise DataError(
            f"{path} has transparent pixels, and nothing says what lies behind them. "
            "Put it on a background, as PIL.Image.alpha_composite does, and save it "
            "without transparency."
        )


def _is_wide(image: Any, path: pathlib.Path) -> bool:
    """Whether the pixels are gray values of 16 bits, which `convert` would clip."""
    if image.mode.startswith("I;16"):
        return True
    if image.mode == "I" and image.format in ("PNG", "PPM"):
        return True  # as older versions of Pillow give them
    if image.mode in ("I", "F"):
        raise DataError(
            f"{path} has pixels of 32 bits (mode {image.mode!r}), of which nothing "
            "says what is black and what is white. Save 8 or 16 bits a pixel, or an "
            ".npz file with x_train, y_train, x_test and y_test."
        )
    return False


def _wide(image: Any) -> np.ndarray:
    clipped: np.ndarray = np.clip(np.asarray(image), 0, 65535)
    return clipped.astype(np.uint16)


def _narrow(image: Any) -> Any:
    return image.convert("L" if image.mode in ("L", "1", "LA", "La") else "RGB")


def resized(array: np.ndarray, image_size: tuple[int, int]) -> np.ndarray:
    """An image of bytes or 16 bits a pixel, gray ones without an axis of channels."""
    from PIL import Image

    height, width = image_size
    wide = array.dtype == np.uint16
    image = Image.fromarray(array.astype(np.float32) if wide else array)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    small = np.asarray(image)
    return np.rint(small).astype(np.uint16) if wide else small
