"""InstaHide: mixed images with drawn signs, and how little that hides."""

import numpy as np

from keras_dlopt import checks
from keras_dlopt.errors import DataError


def mix(
    x: np.ndarray,
    y: np.ndarray,
    *,
    public: np.ndarray | None = None,
    count: int = 2,
    most: float = 0.65,
    center: float = 0.5,
    epoch: int = 0,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    r"""Encodings of images after InstaHide (Huang 2020, arXiv:2010.02772, algorithm 1).

    Each example i is mixed with others by weights that add up to 1, and the sign of
    each pixel is drawn anew:

        x~_i = s * sum_j l_j (x_j - center)        y~_i = sum_j l_j y_j / sum of them

    where j runs over i, another private image, and `count` - 2 public ones, which have
    no label. A model is trained on |x~| as well as on x~.

    Hides an image from a person who looks at one encoding. Does not hide it from a
    program that has several encodings of each image, as each epoch makes one: signs
    come off with |x~|, encodings of one image are alike, and mixing is linear; Carlini
    2021 (arXiv:2011.05315) got back the images of the authors' challenge. Where
    `center` is not between the darkest and the brightest pixel, signs hide nothing at
    all. There is no epsilon.

    Args:
        x: images (count, ...).
        y: labels of whole numbers (count,), or one row of weights an example.
        public: images that nobody needs to hide, for `count` above 2.
        count: images in a mixture, 2 or more.
        most: largest weight of one image, above 1 / count.
        center: what is subtracted first.
        epoch: number of the pass; each has mixtures and signs of its own.
        seed: of all draws.

    Returns:
        The encodings, float32, and their labels, (count, classes).

    Raises:
        DataError: for labels that do not fit, and missing public images.

    Example:
        >>> x, y = np.random.default_rng(0).random((6, 4, 4)), np.arange(6) % 3
        >>> encoded, labels = mix(x, y, seed=1)
        >>> encoded.shape, labels.shape, labels.sum(axis=1).round(4).tolist()
        ((6, 4, 4), (6, 3), [1.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    """
    x, labels = np.asarray(x, "float32"), _rows(y)
    if len(x) != len(labels) or len(x) < 2:
        raise DataError(
            "x and y must have as many images as labels, two or more. Received: "
            f"{len(x)} images and {len(labels)} labels."
        )
    count = checks.whole(count, name="count", least=2)
    most = checks.number(most, name="most", above=1 / count, most=1)
    others = np.zeros((0, *x.shape[1:]), "float32")
    if count > 2:
        others = others if public is None else np.asarray(public, "float32")
        if others.shape[1:] != x.shape[1:] or not len(others):
            raise DataError(
                f"A mixture of {count} images needs public ones beside two private. "
                f"Received: public of the shape {others.shape}, and images of "
                f"{x.shape[1:]}. Pass public images of that shape, or count=2."
            )
    rng = np.random.default_rng([checks.seed(seed), checks.seed(epoch, name="epoch")])
    weights = _weights(rng, len(x), count, most)
    partners = (np.arange(len(x)) + rng.integers(1, len(x), len(x))) % len(x)
    mixed = weights[:, 0, None] * _flat(x, center)
    mixed += weights[:, 1, None] * _flat(x, center)[partners]
    for j in range(2, count):
        chosen = rng.integers(0, len(others), len(x))
        mixed += weights[:, j, None] * _flat(others, center)[chosen]
    signs = rng.choice(np.array([-1, 1], "float32"), mixed.shape)
    named = weights[:, 0, None] * labels + weights[:, 1, None] * labels[partners]
    named /= named.sum(axis=1, keepdims=True)
    return (signs * mixed).reshape(x.shape).astype("float32"), named.astype("float32")


def _flat(images: np.ndarray, center: float) -> np.ndarray:
    flat: np.ndarray = images.reshape(len(images), -1) - np.float32(center)
    return flat


def _weights(
    rng: np.random.Generator, rows: int, count: int, most: float
) -> np.ndarray:
    """Rows that add up to 1, none of whose weights is above `most`."""
    weights = rng.dirichlet(np.ones(count), rows)
    while (high := weights.max(axis=1) > most).any():
        weights[high] = rng.dirichlet(np.ones(count), int(high.sum()))
    return weights.astype("float32")


def _rows(y: np.ndarray) -> np.ndarray:
    """Labels as rows of weights."""
    y = np.asarray(y)
    if y.ndim == 2:
        return y.astype("float32")
    if y.ndim != 1 or not np.issubdtype(y.dtype, np.integer) or (y < 0).any():
        raise DataError(
            "y must be whole numbers from 0, or a row of weights an example. Received: "
            f"{y.dtype} of the shape {y.shape}."
        )
    one_hot: np.ndarray = np.eye(int(y.max(initial=0)) + 1, dtype="float32")[y]
    return one_hot
