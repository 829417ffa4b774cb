"""Images whose pixels, or blocks of pixels, stand in an order that a key gives."""

import dataclasses
import hmac
from typing import Any

import numpy as np

from keras_dlopt import checks
from keras_dlopt.data.obfuscate import keys
from keras_dlopt.errors import ConfigError, DataError


class Permutation:
    """One order of the pixels for all images of a size, from a key.

    For arrays and, in `tf.data.Dataset.map`, for tensors. Linear and dense models learn
    from permuted images just as well; convolutions do not.

    Hides what an image shows from a person who looks at it. Does not hide: histograms,
    and so brightness; which images are alike; classes; the order itself, which
    correlations of neighbours tell from many images, and one known image with its
    permuted form tells where no two pixels are equal.

    Args:
        key: a text of 8 characters or more, or 16 bytes or more.
        shape: of an image, `(height, width)` or `(height, width, channels)`.
        block: side of blocks that stay together, in pixels, with one order inside all
            of them; None for single pixels.

    Raises:
        ConfigError: for keys that are too short, and blocks that do not fill the image.

    Example:
        >>> order = Permutation(b"sixteen bytes it", (4, 4))
        >>> image = np.arange(16).reshape(1, 4, 4)
        >>> bool((order(image) == image).all())
        False
        >>> bool((order.invert(order(image)) == image).all())
        True
    """

    def __init__(
        self, key: str | bytes, shape: tuple[int, ...], *, block: int | None = None
    ):
        secret = keys.secret(key)
        sizes = checks.several(shape, checks.count, name="shape")
        if len(sizes) not in (2, 3):
            raise checks.refused(
                shape,
                name="shape",
                wanted="(height, width) or (height, width, channels)",
            )
        self.shape, self.block = (
            sizes,
            checks.optional(checks.count, block, name="block"),
        )
        height, width = sizes[:2]
        side = self.block or 1
        if height % side or width % side:
            raise ConfigError(
                f"block must divide height and width. Received: block={block} and "
                f"shape={tuple(shape)}. Give a block that divides {height} and {width}."
            )
        purpose = f"{height}x{width} in blocks of {side}"
        self.order = _order(keys.rng(secret, purpose), height, width, side)
        #: Tells this key from others without giving it away.
        self.digest = keys.digest(secret, purpose)

    def __call__(self, images: Any) -> Any:
        """Images (count, height, width, ...) with their pixels in the key's order."""
        return self._taken(images, self.order)

    def invert(self, images: Any) -> Any:
        """The images that `__call__` was given."""
        return self._taken(images, np.argsort(self.order))

    def _taken(self, images: Any, order: np.ndarray) -> Any:
        inner = tuple(images.shape[1:])
        if inner != self.shape:
            raise DataError(
                f"images must be of the shape (count, "
                f"{', '.join(map(str, self.shape))}). Received: {tuple(images.shape)}."
            )
        flat = (-1, self.shape[0] * self.shape[1], *self.shape[2:])
        if isinstance(images, np.ndarray):
            return images.reshape(flat)[:, order].reshape(images.shape)
        import tensorflow as tf

        taken = tf.gather(tf.reshape(images, flat), order, axis=1)
        return tf.reshape(taken, (-1, *self.shape))


def _order(rng: np.random.Generator, height: int, width: int, side: int) -> np.ndarray:
    """Which pixel comes to each place."""
    rows, columns = height // side, width // side
    places = np.arange(height * width).reshape(rows, side, columns, side)
    blocks = places.transpose(0, 2, 1, 3).reshape(rows * columns, side * side)
    moved = blocks[rng.permutation(len(blocks))][:, rng.permutation(side * side)]
    moved = moved.reshape(rows, columns, side, side).transpose(0, 2, 1, 3)
    return moved.reshape(-1)


@dataclasses.dataclass(frozen=True, eq=False)
class Scrambled:
    """Images in another order, and what tells the right key.

    Attributes:
        images: (count, height, width, ...).
        digest: of the key; safe to keep beside the images.
        block: side of the blocks, None for single pixels.
    """

    images: np.ndarray
    digest: str
    block: int | None = None


def scramble(
    images: np.ndarray, key: str | bytes, *, block: int | None = None
) -> Scrambled:
    """Images with their pixels, or blocks, in an order that only the key gives back.

    See `Permutation` for what this hides, and what it does not.

    Args:
        images: (count, height, width) or (count, height, width, channels).
        key: a text of 8 characters or more, or 16 bytes or more.
        block: side of blocks that stay together; None for single pixels.

    Example:
        >>> images = np.random.default_rng(0).random((2, 8, 8, 1))
        >>> hidden = scramble(images, "correct horse battery", block=2)
        >>> bool((unscramble(hidden, "correct horse battery") == images).all())
        True
    """
    images = np.asarray(images)
    order = Permutation(key, images.shape[1:], block=block)
    return Scrambled(order(images), order.digest, block)


def unscramble(hidden: Scrambled, key: str | bytes) -> np.ndarray:
    """The images that were scrambled with this key.

    Args:
        hidden: from `scramble`.
        key: the same.

    Raises:
        ConfigError: for another key, told by the digest.
    """
    checks.instance(hidden, Scrambled, name="hidden", wanted="what scramble() returned")
    order = Permutation(key, hidden.images.shape[1:], block=hidden.block)
    if not hmac.compare_digest(order.digest, hidden.digest):
        raise ConfigError(
            f"The key is not the one that these images were scrambled with: its "
            f"digest is {order.digest}, theirs is {hidden.digest}. Give the key of "
            "scramble(); there is no way back without it."
        )
    images: np.ndarray = order.invert(hidden.images)
    return images
