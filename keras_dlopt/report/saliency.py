"""Whether two models look at the same parts of their inputs."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_dlopt.errors import ConfigError, DataError
from keras_dlopt.runtime.pure import on_tensorflow

AT_MOST = 64  # examples
SHOWN = 4
_NONE = (
    "No example has a gradient in both models. Check that the models answer to their "
    "inputs, or leave saliency out."
)


@dataclasses.dataclass(frozen=True, eq=False)
class Saliency:
    """How far two models agree on what matters in an input.

    Attributes:
        agreement: mean rank correlation of their maps, in [-1, 1].
        lowest: of all examples.
        examples: how many were looked at.
        maps: of some of them, (examples, 3, height, width): the image, and each model's
            map; empty for inputs that are no images.
    """

    agreement: float
    lowest: float
    examples: int
    maps: np.ndarray

    def to_dict(self) -> dict[str, Any]:
        """Plain data, without the maps."""
        return {k: v for k, v in vars(self).items() if k != "maps"}


def saliency(models: Sequence[keras.Model], x: Any) -> Saliency:
    """Compares |d score / d input| of two models.

    The score is that of the label which the first model gives, in both. Absolute
    gradients are summed over channels, if there are any, and the maps of an example
    are compared by Spearman's rank correlation. An example on which either map is
    constant tells nothing and is left out.

    Args:
        models: the two, on the TensorFlow backend.
        x: one array of inputs that are numbers; the first 64 examples are used.

    Raises:
        ConfigError: on another backend.
        DataError: for inputs that have no gradient, or several of them, and where no
            example has one.

    Source: Simonyan et al. (arXiv:1312.6034), section 3.
    """
    if not on_tensorflow():
        raise ConfigError(
            "saliency=True takes gradients by TensorFlow. Received: the backend "
            f"{keras.backend.backend()!r}. Leave it out."
        )
    parts = keras.tree.flatten(x)
    if len(parts) != 1 or np.asarray(parts[0]).dtype.kind not in "f":
        kinds = [str(np.asarray(p).dtype) for p in parts]
        raise DataError(
            "saliency=True needs one input of floating-point numbers. Received: "
            f"{kinds}. Give x.astype('float32') for images of whole numbers, or leave "
            "saliency out."
        )
    images = np.asarray(parts[0])[:AT_MOST]
    one, two = _maps(models, images)
    pairs = [_ranks(a, b) for a, b in zip(one, two, strict=True)]
    known = [p for p in pairs if p is not None]
    if not known:
        raise DataError(_NONE)
    maps = np.zeros((0, 3, 1, 1))
    if images.ndim == 4:
        gray = images.mean(-1)
        maps = np.stack([gray, one, two], 1)[:SHOWN].astype(np.float64)
    return Saliency(float(np.mean(known)), float(np.min(known)), len(known), maps)


def _maps(models: Sequence[keras.Model], images: np.ndarray) -> list[np.ndarray]:
    """Of each model, an array (n, ...) without the channels of images."""
    import tensorflow as tf

    label = None
    found = []
    for model in models:
        given = tf.constant(images)
        with tf.GradientTape() as tape:
            tape.watch(given)
            rows = model(given, training=False)
            rows = tf.reshape(rows, (len(images), -1))
            if label is None:
                label = tf.argmax(rows, -1)
            score = tf.gather(rows, label, axis=1, batch_dims=1)
        moved = tape.gradient(score, given)
        if moved is None:
            raise DataError(_NONE)
        gradient = np.abs(np.asarray(moved))
        found.append(gradient.sum(-1) if images.ndim == 4 else gradient)
    return found


def _ranks(one: np.ndarray, two: np.ndarray) -> float | None:
    """Spearman's correlation; None where either is constant."""
    from scipy.stats import rankdata

    a, b = (rankdata(m.ravel()) for m in (one, two))
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(np.corrcoef(a, b)[0, 1])
