"""The diagonal of the Fisher information of a model's weights."""

from typing import Any

import keras
import numpy as np

from keras_dlopt import checks


def fisher_diagonal(
    model: Any,
    x: Any,
    y: Any = None,
    *,
    logits: Any = None,
) -> list[np.ndarray]:
    """Mean squared gradients of the log-likelihood of a classifier, by weight.

        F_i = 1/n sum_x sum_c q(c|x) (d log p(c|x) / d w_i)^2

    With labels q is the data's: 1 at the label. Without, it is the model's own p, over
    all classes, which is the Fisher information itself.

    Args:
        model: a built Keras model with one output, (batch, classes) or (batch, 1).
        x: inputs, in the model's structure, (n, ...).
        y: labels, whole numbers, (n,); None for the model's own.
        logits: a function from outputs to logits; None where they are logits.

    Returns:
        An array for each trainable variable, of its shape, float32.

    Example:
        >>> net = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
        >>> kernel, bias = fisher_diagonal(net, np.ones((4, 2), "float32"))
        >>> kernel.shape, bool((bias >= 0).all())
        ((2, 2), True)

    Source: Kirkpatrick et al., "Overcoming catastrophic forgetting in neural networks"
    (arXiv:1612.00796), section 2.
    """
    import tensorflow as tf

    checks.instance(model, keras.Model, name="model")
    variables = list(model.trainable_variables)
    n = len(keras.tree.flatten(x)[0])

    def likely(row: Any) -> Any:
        inputs = keras.tree.map_structure(lambda a: tf.convert_to_tensor(a)[None], row)
        out = model(inputs, training=False)
        out = tf.cast(out if logits is None else logits(out), tf.float32)[0]
        if out.shape[-1] == 1:  # one logit: the class, and not the class
            out = tf.concat([tf.zeros_like(out), out], axis=-1)
        return tf.nn.log_softmax(out)

    def squares(row: Any, label: Any) -> Any:
        with tf.GradientTape() as tape:
            told = tf.gather(likely(row), label)
        found = tape.gradient(
            told, variables, unconnected_gradients=tf.UnconnectedGradients.ZERO
        )
        return [tf.square(tf.cast(tf.convert_to_tensor(g), tf.float32)) for g in found]

    @tf.function
    @tf.autograph.experimental.do_not_convert
    def add(row: Any, labels: Any, shares: Any) -> Any:
        each = tf.map_fn(
            lambda pair: [pair[1] * s for s in squares(row, pair[0])],
            (labels, shares),
            fn_output_signature=[tf.TensorSpec(v.shape, tf.float32) for v in variables],
        )
        return [tf.reduce_sum(part, axis=0) for part in each]

    chances = tf.function(lambda row: tf.exp(likely(row)), autograph=False)
    total = [np.zeros(tuple(v.shape), "float64") for v in variables]
    for i in range(n):
        row = keras.tree.map_structure(lambda a, i=i: tf.constant(np.asarray(a)[i]), x)
        if y is None:
            shares = chances(row)
            labels = tf.range(shares.shape[0], dtype=tf.int32)
        else:
            labels = tf.constant([int(np.asarray(y)[i])], tf.int32)
            shares = tf.ones(1)
        for sum_, part in zip(total, add(row, labels, shares), strict=True):
            sum_ += part.numpy()
    return [(part / n).astype("float32") for part in total]
