"""Batches as a `tf.data.Dataset` that does not stall at the end of `fit`."""

from typing import Any

import numpy as np

from keras_dlopt import checks
from keras_dlopt.errors import DataError


def batches(
    x: np.ndarray,
    y: np.ndarray,
    *,
    batch_size: int = 128,
    shuffle: bool = False,
    drop_remainder: bool = False,
    augment: Any = None,
    seed: int = 0,
) -> Any:
    """A `tf.data.Dataset` of `(x, y)` batches with autotuning off.

    Autotuning runs a thread that can hold the last step of `fit` for seconds; with
    `options.autotune.enabled = False` it does not start. The data stay in memory, are
    shuffled as whole (a new order each epoch) and fetched by batch, which costs one
    gather per step in place of one slice per example. The cardinality is known, which
    spares Keras a phantom step per epoch. Pass `shuffle=False` to `fit`, which
    otherwise warns that it cannot shuffle a data set.

    Args:
        x: examples, first axis the example.
        y: labels, of the same length.
        batch_size: examples per batch.
        shuffle: draw a new order in each epoch.
        drop_remainder: leave out a last, smaller batch. Under `tf.distribute` and XLA
            every batch then has one shape.
        augment: a function of one batch of `x` (a tensor) that returns another, such
            as a Keras preprocessing layer; run in the pipeline.
        seed: of the order.

    Raises:
        DataError: when `x` and `y` differ in length or are empty.
        ConfigError: for a batch size below 1.

    Example:
        >>> data = batches(np.zeros((5, 2)), np.arange(5), batch_size=2)
        >>> [labels.numpy().tolist() for _, labels in data]
        [[0, 1], [2, 3], [4]]
    """
    import tensorflow as tf

    batch_size = checks.count(batch_size, name="batch_size")
    if len(x) != len(y) or not len(x):
        raise DataError(
            f"Expected as many labels as examples, and some. Received: {len(x)} "
            f"examples and {len(y)} labels."
        )
    count = len(x)
    data = tf.data.Dataset.range(count)
    if shuffle:
        data = data.shuffle(count, seed=seed, reshuffle_each_iteration=True)
    data = data.batch(batch_size, drop_remainder=drop_remainder)
    x, y = tf.constant(x), tf.constant(y)
    data = data.map(lambda i: (tf.gather(x, i), tf.gather(y, i)))
    if augment is not None:
        data = data.map(lambda images, labels: (augment(images), labels))
    data = data.prefetch(2)
    options = tf.data.Options()
    options.autotune.enabled = False
    return data.with_options(options)
