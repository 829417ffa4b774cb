"""Deep compression in one call: zeros, few values, and a code that knows both."""

from typing import Any

import keras

from keras_dlopt import checks
from keras_dlopt.auto.compressed import Compressed
from keras_dlopt.auto.compressing import compress
from keras_dlopt.errors import ConfigError

RATIO = 50.0  # Deep Compression's files are 35 to 49 times smaller


def deep_compression(
    model: keras.Model,
    train: Any,
    val: Any = None,
    *,
    ratio: float | None = None,
    max_bytes: int | None = None,
    max_accuracy_drop: float | None = None,
    **options: Any,
) -> Compressed:
    """Prunes, shares and codes a trained model in one training: 50 times smaller.

    This is `compress` under the name of the paper and with its goal. Where the training
    has 500 steps or more, the loss gets the price of the bits (`RateAware`): which
    weights become zero and which whole numbers the others are is then learned together.
    A shorter one prunes on a schedule, then shares values. The paper's three trainings
    are one, and its two codes one that looks at neighbours.

    Args:
        model: a trained, built Keras model, which stays as it is.
        train: `(x, y)`, a `data.Dataset`, or batches whose number is known.
        val: examples to judge on, as in `compress`.
        ratio: how many times smaller the file is than the variables in memory; 50 if no
            goal is given.
        max_bytes: the same in bytes.
        max_accuracy_drop: instead, the smallest file that loses no more on `val`, as a
            share of the examples; beside a size, what that may cost.
        **options: of `compress`: `path` of the file, `epochs` over which the schedules
            run, `batch_size`, `rate`, `loss`, `teacher`, `seed` and others.

    Returns:
        The model, its file, what was done and why, and the report on `val`.

    Raises:
        ConfigError: for a ratio of 1 or less or beside `max_bytes`, and as `compress`.
        DataError: for data that does not fit.
        ModelError: for a model that is not built, is transformed, or cannot be copied.

    Example:
        >>> digits = dlopt.data.load("digits")
        >>> net = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(),
        ...     keras.layers.Dense(64, "relu"), keras.layers.Dense(10)])
        >>> small = dlopt.deep_compression(net, digits, ratio=12, epochs=1)
        >>> small.ratio > 12
        True

    Source: Han et al., "Deep Compression" (arXiv:1510.00149), section 5; Oktay et al.
    (arXiv:1906.06624), for the price of the bits.
    Differs from the paper: see above; biases are coded, too, and the file describes the
    model.
    """
    if ratio is not None and max_bytes is not None:
        raise ConfigError(
            f"Give ratio or max_bytes, not both. Received: ratio={ratio!r}, "
            f"max_bytes={max_bytes!r}."
        )
    if ratio is None and max_bytes is None and max_accuracy_drop is None:
        ratio = RATIO
    if ratio is not None and checks.positive(ratio, name="ratio") <= 1:
        raise ConfigError(
            f"ratio is how many times smaller the file is, above 1. Received: {ratio}."
        )
    return compress(
        model,
        train,
        val,
        size=None if ratio is None else 1 / ratio,
        max_bytes=max_bytes,
        max_accuracy_drop=max_accuracy_drop,
        **options,
    )
