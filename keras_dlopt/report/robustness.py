"""What two models lose when their images are corrupted in common ways."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from keras_dlopt.errors import DataError
from keras_dlopt.report.tasks import compared, judge

SEVERITIES = (1, 3, 5)
AT_MOST = 1000  # images
Corruption = Callable[[np.ndarray, float, np.random.Generator], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Corrupted:
    """Two models on the same corrupted images.

    Attributes:
        corruption: what was done.
        severity: 1, 3 or 5.
        examples: images.
        before: accuracy of the first model.
        after: accuracy of the second.
        churn: share of labels that differ between the two.
    """

    corruption: str
    severity: int
    examples: int
    before: float
    after: float
    churn: float


def _noise(x: np.ndarray, level: float, rng: np.random.Generator) -> np.ndarray:
    return np.asarray(x + rng.normal(size=x.shape) * level)


def _impulse(x: np.ndarray, level: float, rng: np.random.Generator) -> np.ndarray:
    hit, white = rng.random(x.shape) < level, rng.random(x.shape) < 0.5
    return np.where(hit, white.astype(x.dtype), x)


def _blur(x: np.ndarray, level: float, rng: np.random.Generator) -> np.ndarray:
    from scipy.ndimage import gaussian_filter

    return np.asarray(gaussian_filter(x, (0, level, level, 0)))


def _brightness(x: np.ndarray, level: float, rng: np.random.Generator) -> np.ndarray:
    return np.asarray(x + level)


def _contrast(x: np.ndarray, level: float, rng: np.random.Generator) -> np.ndarray:
    mean = x.mean((1, 2), keepdims=True)
    return np.asarray((x - mean) * level + mean)


def _pixelate(x: np.ndarray, level: float, rng: np.random.Generator) -> np.ndarray:
    for axis in (1, 2):
        length = x.shape[axis]
        fewer = max(int(length * level), 1)
        at = (np.arange(length) * fewer // length + 0.5) * length / fewer
        x = np.take(x, at.astype(int), axis)
    return x


# What is done, and its levels at severities 1, 3 and 5, for values in [0, 1].
CORRUPTIONS: dict[str, tuple[Corruption, tuple[float, float, float]]] = {
    "Gaussian noise": (_noise, (0.04, 0.08, 0.10)),
    "impulse noise": (_impulse, (0.01, 0.03, 0.07)),
    "blur": (_blur, (0.4, 0.7, 1.0)),
    "brightness": (_brightness, (0.05, 0.15, 0.3)),
    "contrast": (_contrast, (0.75, 0.4, 0.15)),
    "pixelated": (_pixelate, (0.95, 0.85, 0.65)),
}


def corrupted(
    images: np.ndarray, corruption: str, severity: int, *, seed: int = 0
) -> np.ndarray:
    """Images with one corruption; range and dtype stay.

    Args:
        images: (n, height, width, channels); their least and largest value are taken
            for black and white.
        corruption: one of `CORRUPTIONS`.
        severity: 1, 3 or 5.
        seed: of the noise.

    Example:
        >>> x = np.linspace(0, 1, 64).reshape(1, 8, 8, 1)
        >>> float(corrupted(x, "brightness", 5).min())
        0.3
    """
    apply, levels = CORRUPTIONS[corruption]
    low, high = float(images.min()), float(images.max())
    scale = high - low or 1.0
    x = (images.astype(np.float64) - low) / scale
    level = levels[SEVERITIES.index(severity)]
    x = np.clip(apply(x, level, np.random.default_rng(seed)), 0, 1) * scale + low
    return (np.rint(x) if images.dtype.kind in "iu" else x).astype(images.dtype)


def robustness(
    models: Sequence[keras.Model],
    images: np.ndarray | None,
    y: np.ndarray,
    *,
    task: str = "classification",
    from_logits: bool | None = None,
    batch_size: int = 256,
) -> tuple[Corrupted, ...]:
    """Two models under six corruptions of three severities.

    Args:
        models: the two, which take images.
        images: (n, height, width, 1 or 3); the first 1,000 are used.
        y: their labels.
        task: as for `compare`, but no regression.
        from_logits: as for `compare`.
        batch_size: images predicted at a time.

    Raises:
        DataError: for inputs that are no images, and for a regression.

    Source: Hendrycks and Dietterich (arXiv:1903.12261), whose levels for 32 x 32
    images these are. Differs: brightness is added to each channel, and pixels are
    repeated, not averaged.
    """
    if images is None or task == "regression":
        raise DataError(
            "robustness=True corrupts images, (n, height, width, 1 or 3), whose labels "
            "stay right. Leave it out for other inputs and for a regression."
        )
    images, y = images[:AT_MOST], y[: min(len(images), AT_MOST)]
    found = []
    for name in CORRUPTIONS:
        for severity in SEVERITIES:
            x = corrupted(images, name, severity)
            one, two = (m.predict(x, batch_size=batch_size, verbose=0) for m in models)
            told: dict[str, Any] = {"from_logits": from_logits}
            # No regression: what is found is a classifier's.
            first: Any = judge(task, one, y, **told)
            second: Any = judge(task, two, y, **told)
            change: Any = compared(task, one, two, y, **told)
            shares = first.accuracy, second.accuracy, change.churn
            found.append(Corrupted(name, severity, len(x), *shares))
    return tuple(found)
