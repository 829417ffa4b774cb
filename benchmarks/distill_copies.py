"""A training set several times over, each image moved in a way of its own."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

from keras_dlopt import distill


class Copies:
    """A training set several times, each image moved in its own fixed way.

    Args:
        x: images, (n, height, width, 1).
        y: labels, (n,).
        count: how often; 1 with `how=None` is the set as it is.
        how: `"turn"`, `"bend"`, `"flip"` or None.
        seed: of the moves.
    """

    def __init__(self, x, y, count=1, how=None, seed=0):
        self.x, self.y, self.count, self.how = x, y, count, how
        rng = np.random.default_rng(seed)
        self.made, self.moves = {}, None
        if how is not None:
            self.moves = moves(rng, count * len(x), how, x.shape[1])

    def images(self, index):
        """Images of a batch of numbers below `count * n`."""
        x = tf.gather(self.source, index % len(self.x))
        if self.moves is None:
            return x
        return tf.raw_ops.ImageProjectiveTransformV3(
            images=x,
            transforms=tf.gather(self.table, index),
            output_shape=self.x.shape[1:3],
            fill_value=0.0,
            interpolation="BILINEAR",
        )

    def batches(self, order, batch_size, targets=None):
        """Batches in an order; without targets the images alone."""
        self.source = tf.constant(self.x)
        self.table = None if self.moves is None else tf.constant(self.moves)
        kept = {} if targets is None else keras.tree.map_structure(tf.constant, targets)

        def make(index):
            if targets is None:
                return self.images(index)
            y = keras.tree.map_structure(lambda one: tf.gather(one, index), kept)
            return self.images(index), y

        data = tf.data.Dataset.from_tensor_slices(order).batch(
            batch_size, drop_remainder=targets is not None
        )
        options = tf.data.Options()
        options.autotune.enabled = False
        return data.map(make).prefetch(2).with_options(options)

    def outputs(self, teacher, path):
        """Of a teacher, for all copies; kept, since even the digest takes a while."""
        if path not in self.made:
            every = self.batches(np.arange(self.count * len(self.x)), 1000)
            self.made[path] = distill.teacher_outputs(teacher, every, path=path)
        return self.made[path]

    def fit(self, model, args, *, epochs, seed, outputs=None):
        """Trains a compiled model, one copy an epoch, in turn."""
        n, rng = len(self.x), np.random.default_rng(seed)
        order = [rng.permutation(n) + n * (e % self.count) for e in range(epochs)]
        targets = np.tile(self.y, self.count)
        if outputs is not None:
            targets = distill.taught(targets, outputs)
        batches = self.batches(np.concatenate(order), args.batch_size, targets)
        steps = n // args.batch_size
        model.fit(
            batches, epochs=epochs, steps_per_epoch=steps, shuffle=False, verbose=2
        )


def moves(rng, n, how, size):
    """Rows of `ImageProjectiveTransformV3`, turned and scaled about the middle.

    Shifts are up to 2 of 28 pixels, whole ones; to `"bend"` also shears, by up to a
    tenth, and shifts by up to 1.5.
    """
    most = round(2 * size / 28)
    shift = rng.integers(-most, most + 1, (2, n)).astype("float32")
    if how == "bend":
        shift = rng.uniform(-1.5, 1.5, (2, n)).astype("float32") * size / 28
    across, along = np.zeros((2, n), "float32")
    width = height = np.ones(n, "float32")
    if how == "flip":
        width = rng.choice([-1.0, 1.0], n)
    else:
        angle = np.deg2rad(rng.uniform(-10, 10, n))
        scale = rng.uniform(0.9, 1.1, (2, n))
        width, across = np.cos(angle) * scale[0], -np.sin(angle) * scale[1]
        along, height = np.sin(angle) * scale[0], np.cos(angle) * scale[1]
    if how == "bend":
        shear = rng.uniform(-0.1, 0.1, (2, n))
        across, along = across + shear[0], along + shear[1]
    middle = (size - 1) / 2
    right = middle - (width + across) * middle + shift[0]
    down = middle - (along + height) * middle + shift[1]
    zero = np.zeros(n)
    rows = [width, across, right, along, height, down, zero, zero]
    return np.stack(rows, axis=1).astype("float32")
