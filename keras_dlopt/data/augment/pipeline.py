"""Augmented batches without end, the same ones for the same seed."""

from typing import Any

import keras
import numpy as np

from keras_dlopt import checks
from keras_dlopt.errors import ConfigError, DataError
from keras_dlopt.graph.walk import layers_below

_MIXING = (keras.layers.MixUp, keras.layers.CutMix)


def augmented(
    data: Any,
    policy: Any,
    *,
    batch_size: int = 128,
    repeats: int = 1,
    classes: int | None = None,
    seed: int = 0,
    first_epoch: int = 0,
) -> Any:
    """A `tf.data.Dataset` of augmented batches that never ends: give `steps_per_epoch`.

    What a batch holds depends on the seed, its epoch and its number alone, so it is the
    same at any `steps_per_execution` and on any number of replicas, and in a run that
    goes on: `fit(..., initial_epoch=3)` with `first_epoch=3`.

    Args:
        data: arrays `(x, y)`, shuffled anew in each epoch, `batch_size` images a batch,
            a last smaller one left out; or a `tf.data.Dataset` of batches `(x, y)`,
            taken in its own order.
        policy: a `TrivialAugment`; a Keras layer such as `keras.layers.RandAugment`,
            `MixUp`, `CutMix`, `RandomFlip` or a `keras.layers.Pipeline` of some; or a
            function of images and a seed of two numbers.
        batch_size: images a batch, of arrays.
        repeats: repeated augmentation: how often each image is in a batch, each time
            augmented in another way. An epoch of arrays then has so many times the
            steps; batches of a data set grow by it.
        classes: makes labels one-hot, which layers that mix images need.
        seed: of all that is drawn.
        first_epoch: the number of the first epoch, from 0.

    Raises:
        ConfigError: for a batch size that `repeats` does not divide, or a layer that
            cannot be seeded.
        DataError: for arrays that do not fit, or whole-number labels to be mixed.

    Example:
        >>> x, y = np.zeros((8, 4, 4, 1), "float32"), np.arange(8)
        >>> data = augmented((x, y), keras.layers.RandomFlip(), batch_size=4)
        >>> images, labels = next(iter(data))
        >>> images.shape
        TensorShape([4, 4, 4, 1])

    Source of repeated augmentation: Hoffer et al., "Augment Your Batch: Improving
    Generalization Through Instance Repetition" (CVPR 2020).
    """
    import tensorflow as tf

    batch_size = checks.count(batch_size, name="batch_size")
    repeats = checks.count(repeats, name="repeats")
    seed = checks.whole(seed, name="seed", least=0, most=2**31 - 1)
    first_epoch = checks.whole(first_epoch, name="first_epoch", least=0)
    checks.optional(checks.count, classes, name="classes")
    apply = _applied(checks.function(policy, name="policy"))
    if hasattr(data, "element_spec"):
        _check_spec(data)
        one_epoch = _of_batches(data, repeats)
    else:
        x, y = _arrays(data, batch_size, repeats)
        data = x, y
        one_epoch = _of_arrays(x, y, batch_size, repeats, seed)
    _check_labels(policy, data, classes)

    def epoch(number: Any) -> Any:
        def change(i: Any, batch: Any) -> Any:
            images, labels = batch
            if classes is not None:
                labels = tf.one_hot(tf.reshape(labels, [-1]), classes)
            key = tf.random.experimental.stateless_fold_in([seed, 1], number)
            key = tf.random.experimental.stateless_fold_in(key, i)
            return apply(images, labels, key)

        return one_epoch(number).enumerate().map(change)

    made = tf.data.Dataset.range(first_epoch, 2**62).flat_map(epoch).prefetch(2)
    options = tf.data.Options()
    options.autotune.enabled = False
    return made.with_options(options)


def _check_spec(data: Any) -> None:
    spec = data.element_spec
    if not isinstance(spec, tuple) or len(spec) != 2:
        raise DataError(
            f"A data set to augment must give batches (x, y). Received: {spec}."
        )


def _of_batches(data: Any, repeats: int) -> Any:
    import tensorflow as tf

    def repeated(*batch: Any) -> Any:
        return tuple(tf.repeat(one, repeats, axis=0) for one in batch)

    return lambda number: data.map(repeated) if repeats > 1 else data


def _arrays(data: Any, batch_size: int, repeats: int) -> Any:
    if not isinstance(data, tuple | list) or len(data) != 2:
        raise DataError(
            "data must be arrays (x, y) or a tf.data.Dataset of batches. Received: "
            f"{type(data).__name__}."
        )
    x, y = (np.asarray(one) for one in data)
    if batch_size % repeats:
        raise ConfigError(
            f"repeats must divide batch_size. Received: {repeats} and {batch_size}."
        )
    if len(x) != len(y) or len(x) < batch_size // repeats:
        raise DataError(
            f"Expected as many labels as images, and enough for a batch. Received: "
            f"{len(x)} images, {len(y)} labels, {batch_size // repeats} in a batch."
        )
    return x, y


def _of_arrays(x: Any, y: Any, batch_size: int, repeats: int, seed: int) -> Any:
    import tensorflow as tf

    images, labels = tf.constant(x), tf.constant(y)
    size = batch_size // repeats
    steps = len(x) // size

    def take(rows: Any) -> Any:
        rows = tf.repeat(rows, repeats)
        rows.set_shape([batch_size])
        return tf.gather(images, rows), tf.gather(labels, rows)

    def one_epoch(number: Any) -> Any:
        key = tf.random.experimental.stateless_fold_in([seed, 0], number)
        order = tf.random.experimental.stateless_shuffle(tf.range(len(x)), key)
        order = tf.reshape(order[: steps * size], [steps, size])
        return tf.data.Dataset.from_tensor_slices(order).map(take)

    return one_epoch


def _applied(policy: Any) -> Any:
    """A function of images, labels and a seed that gives images and labels."""
    if not isinstance(policy, keras.layers.Layer):
        return lambda images, labels, key: (policy(images, key), labels)
    generators = _generators(policy)
    mixing = _mixes(policy)

    def apply(images: Any, labels: Any, key: Any) -> Any:
        import tensorflow as tf

        for i, one in enumerate(generators):
            state = tf.random.experimental.stateless_fold_in(key, i)
            one.state.assign(tf.cast(tf.abs(state), one.state.dtype))
        if not mixing:
            return policy(images, training=True), labels
        labels = tf.cast(labels, "float32")
        made = policy({"images": images, "labels": labels}, training=True)
        return made["images"], made["labels"]

    return apply


def _mixes(policy: keras.layers.Layer) -> bool:
    return any(isinstance(one, _MIXING) for one in (policy, *layers_below(policy)))


def _check_labels(policy: Any, data: Any, classes: int | None) -> None:
    """Labels that a layer mixes must be one-hot."""
    if not isinstance(policy, keras.layers.Layer) or not _mixes(policy):
        return
    labels = data.element_spec[1] if hasattr(data, "element_spec") else data[1]
    if classes is None and len(labels.shape) != 2:
        raise DataError(
            f"{policy.name!r} mixes labels, which must be one-hot. Received: shape "
            f"{tuple(labels.shape)}. Give classes=... to make them so."
        )


def _generators(policy: keras.layers.Layer) -> list[Any]:
    """The seed generators of a layer and those in it."""
    layers = {id(one): one for one in (policy, *layers_below(policy))}
    found = [getattr(one, "generator", None) for one in layers.values()]
    generators = [one for one in found if isinstance(one, keras.random.SeedGenerator)]
    if not generators:
        raise ConfigError(
            f"{policy.name!r} has no seed generator, so that what it draws cannot be "
            "repeated. Give a random layer of keras.layers, or a function of images "
            "and a seed."
        )
    return generators
