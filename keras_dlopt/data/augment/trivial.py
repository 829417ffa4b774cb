"""TrivialAugment: one operation an image, of a strength that is drawn."""

import math
from typing import Any, NamedTuple

import keras

from keras_dlopt import checks
from keras_dlopt.config import Value, frozen
from keras_dlopt.data.augment import operations as ops
from keras_dlopt.data.augment.operations import Tensor
from keras_dlopt.errors import DataError


class _Range(NamedTuple):
    """From the weakest to the strongest, and whether the sign is drawn."""

    weakest: float
    strongest: float
    signed: bool = False


# The paper's table 1; rotation in degrees, translation in 1/32 of a side.
RANGES = {
    "identity": _Range(0, 0),
    "shear x": _Range(0, 0.3, True),
    "shear y": _Range(0, 0.3, True),
    "translate x": _Range(0, 10, True),
    "translate y": _Range(0, 10, True),
    "rotate": _Range(0, 30, True),
    "brightness": _Range(0, 0.9, True),
    "color": _Range(0, 0.9, True),
    "contrast": _Range(0, 0.9, True),
    "sharpness": _Range(0, 0.9, True),
    "posterize": _Range(8, 4),
    "solarize": _Range(256, 0),
    "autocontrast": _Range(0, 0),
    "equalize": _Range(0, 0),
}
WIDE = RANGES | {
    "shear x": _Range(0, 0.99, True),
    "shear y": _Range(0, 0.99, True),
    "translate x": _Range(0, 32, True),
    "translate y": _Range(0, 32, True),
    "rotate": _Range(0, 135, True),
    "brightness": _Range(0, 0.99, True),
    "color": _Range(0, 0.99, True),
    "contrast": _Range(0, 0.99, True),
    "sharpness": _Range(0, 0.99, True),
    "posterize": _Range(8, 2),
}
NAMES = tuple(RANGES)
_LEVELS = 31  # strengths 0 to 30
_SLACK = 1.0  # of 255: by as much pictures may stand out that were made smaller


@keras.saving.register_keras_serializable("keras_dlopt")
@frozen
class TrivialAugment(Value):
    """To each image one of 14 operations of Pillow's, both drawn: which, how strong.

    Nothing is to be tuned. Images are uint8, or floats from 0 to `most`, of any number
    of channels; `color` changes nothing in images that do not have 3.

    Args:
        wide: the wider ranges of the paper, for large images.
        most: largest value of float images, 1.0 or 255.0.

    Example:
        >>> policy = TrivialAugment()
        >>> policy(np.zeros((4, 8, 8, 1), "uint8"), seed=[0, 0]).shape
        TensorShape([4, 8, 8, 1])

    Source: Müller, Hutter, "TrivialAugment: Tuning-free Yet State-of-the-Art Data
    Augmentation" (arXiv:2103.10158), algorithm 1 and table 1. Differs from the paper:
    translation is in 1/32 of a side, 10 pixels of its 32; pixels are the nearest ones.
    """

    wide: bool = False
    most: float = 1.0

    def __post_init__(self) -> None:
        checks.boolean(self.wide, name="wide")
        checks.positive(self.most, name="most")

    def __call__(self, images: Any, seed: Any) -> Tensor:
        """Images of the same type and shape, a function of the images and the seed.

        Args:
            images: (n, height, width, channels).
            seed: two whole numbers, or a tensor of them.

        Raises:
            DataError: for anything but batches of images of uint8 or floats.
        tf.errors.InvalidArgumentError: for floats that are not from 0 to `most`.
        """
        import tensorflow as tf

        images = tf.convert_to_tensor(images)
        which, strength = self.drawn(tf.shape(images)[0], seed)
        return applied(images, which, strength, most=self.most)

    def drawn(self, count: Any, seed: Any) -> tuple[Tensor, Tensor]:
        """For each of `count` images the number of its operation, and its strength."""
        import tensorflow as tf

        # Named, since the choice among generators is another one under XLA.
        draw = tf.random.experimental.stateless_split(seed, 3, alg="philox")

        def below(most: int, i: int) -> Tensor:
            return tf.random.stateless_uniform(
                [count], draw[i], 0, most, "int32", alg="philox"
            )

        ranges = [(WIDE if self.wide else RANGES)[name] for name in NAMES]
        which, level, sign = below(len(NAMES), 0), below(_LEVELS, 1), below(2, 2)
        share = tf.cast(level, "float32") / (_LEVELS - 1)
        low, high, signed = (
            tf.gather(tf.constant([float(r[i]) for r in ranges]), which)
            for i in range(3)
        )
        strength = low + share * (high - low)
        signs = tf.cast(sign * 2 - 1, "float32")
        return which, tf.where(signed > 0, strength * signs, strength)


def applied(images: Tensor, which: Tensor, strength: Tensor, *, most: float) -> Tensor:
    """Each image through the operation of its number, with its strength.

    Args:
        images: (n, height, width, channels), uint8 or floats.
        which: (n,), numbers in `NAMES`.
        strength: (n,), in the units of `RANGES`.
        most: largest value of floats.

    Raises:
        DataError: for anything else.
    """
    import tensorflow as tf

    if len(images.shape) != 4 or not (
        images.dtype == tf.uint8 or images.dtype.is_floating
    ):
        raise DataError(
            "Images to augment must be batches (n, height, width, channels) of uint8 "
            f"or floats. Received: {tuple(images.shape)}, {images.dtype.name}."
        )
    scale = 1.0 if images.dtype == tf.uint8 else 255.0 / most
    x = tf.cast(images, "float32") * scale
    if images.dtype != tf.uint8:  # XLA leaves such a look out
        low, high = tf.reduce_min(x), tf.reduce_max(x)
        fits = (low >= -_SLACK) & (high <= 255 + _SLACK)
        tf.debugging.Assert(fits, [out_of_range(most), low / scale, high / scale])
    made = _pixels(_moved(x, which, strength), which, strength)
    made.set_shape(images.shape)
    if images.dtype == tf.uint8:
        return tf.cast(tf.round(made), "uint8")
    same = which == NAMES.index("identity")
    made = tf.where(same[:, None, None, None], x, made)
    return tf.cast(made / scale, images.dtype)


def out_of_range(most: float) -> str:
    """What is told where float images are on another scale."""
    return (
        f"Float images to augment must lie between 0 and most={most}. Give the policy "
        "the largest value that yours have, such as most=255.0, and rescale or "
        "normalize them afterwards. Received, from least to largest:"
    )


def _moved(x: Tensor, which: Tensor, strength: Tensor) -> Tensor:
    """The operations that move pixels, in one call for all images."""
    import tensorflow as tf

    def of(name: str) -> Tensor:
        return tf.where(which == NAMES.index(name), strength, 0.0)

    angle = of("rotate") * (math.pi / 180)
    sides = tf.cast(tf.shape(x)[1:3], "float32") / 32
    matrices = [
        tf.cos(angle),
        tf.sin(angle) + of("shear x"),
        of("translate x") * sides[1],
        -tf.sin(angle) + of("shear y"),
        tf.cos(angle),
        of("translate y") * sides[0],
    ]
    return ops.moved(x, tf.stack(matrices, axis=1))


def _pixels(x: Tensor, which: Tensor, strength: Tensor) -> Tensor:
    """The operations that change values; each image gets the one that is its own."""
    import tensorflow as tf

    def is_(name: str) -> Tensor:
        return (which == NAMES.index(name))[:, None, None, None]

    rounded = tf.round(x)
    base = {
        "brightness": tf.zeros_like(x),
        "contrast": ops.mean_gray(rounded),
        "sharpness": ops.smoothed(rounded),
    }
    if x.shape[-1] == 3:
        base["color"] = ops.gray(rounded)
    made = x
    for name, one in base.items():
        made = tf.where(is_(name), ops.blended(rounded, one, 1 + strength), made)
    for name, changed in (
        ("posterize", ops.posterized(rounded, strength)),
        ("solarize", ops.solarized(rounded, strength)),
        ("autocontrast", ops.autocontrasted(rounded)),
        ("equalize", ops.equalized(rounded)),
    ):
        made = tf.where(is_(name), changed, made)
    return made
