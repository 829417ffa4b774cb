"""Batch normalization by the runtime's fused kernel."""

import keras

# The smallest epsilon that cuDNN's kernel takes.
MIN_EPSILON = 1.001e-5


@keras.saving.register_keras_serializable("keras_dlopt")
class BatchNormalization(keras.layers.BatchNormalization):
    """Keras' batch normalization, computed by one fused op where TensorFlow has it.

    Arguments, variables, names and numbers are those of
    `keras.layers.BatchNormalization`, up to the rounding of float32:

        y = gamma * (x - mean) / sqrt(variance + epsilon) + beta
        moving <- moving * momentum + batch * (1 - momentum)

    On the TensorFlow backend Keras composes this of a dozen ops, each of which reads
    and writes the whole activation; the fused op reads it twice, forward and backward
    alike. Under XLA the same op is lowered to XLA's own normalization. The layer gives
    way to Keras' own `call` wherever the fused op does not apply: other backends, other
    ranks than 4, channels that are not last, float64, masks, renormalization,
    synchronized statistics, or an epsilon below 1.001e-5.

    Under a TensorFlow strategy each replica normalizes by its own share of the batch
    and the saved statistics are those of one replica, as with Keras' layer;
    `synchronized=True` makes them one, by Keras' own ops.

    Args:
        *args: of `keras.layers.BatchNormalization`.
        **kwargs: of `keras.layers.BatchNormalization`.

    Example:
        >>> x = np.random.default_rng(0).normal(size=(4, 2, 2, 3)).astype("float32")
        >>> ours, theirs = BatchNormalization(), keras.layers.BatchNormalization()
        >>> np.abs(ours(x, training=True) - theirs(x, training=True)).max() < 1e-5
        np.True_

    Source: Ioffe and Szegedy (arXiv:1502.03167), algorithms 1 and 2; the op is
    TensorFlow's `FusedBatchNormV3`.
    """

    def call(self, inputs, training=None, mask=None):
        if mask is not None or not self._fusable(inputs):
            return super().call(inputs, training=training, mask=mask)
        return self._fused(inputs, training=bool(training and self.trainable))

    def _fusable(self, inputs) -> bool:
        return (
            keras.backend.backend() == "tensorflow"
            and len(inputs.shape) == 4
            and self.axis in (-1, 3)
            and not self.renorm
            and not self.synchronized
            and self.epsilon >= MIN_EPSILON
            and keras.backend.standardize_dtype(inputs.dtype)
            in ("float32", "float16", "bfloat16")
            and self.moving_mean.dtype == "float32"
        )

    def _fused(self, inputs, *, training: bool):
        import tensorflow as tf

        def value(variable, default):
            if variable is None:
                return tf.fill([inputs.shape[-1]], default)
            return keras.ops.convert_to_tensor(variable)

        moving_mean = keras.ops.convert_to_tensor(self.moving_mean)
        moving_variance = keras.ops.convert_to_tensor(self.moving_variance)
        outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=inputs,
            scale=value(self.gamma, 1.0),
            offset=value(self.beta, 0.0),
            mean=moving_mean,
            variance=moving_variance,
            epsilon=self.epsilon,
            is_training=training,
        )
        if training:
            # The op divides by n - 1 for the moving variance, Keras by n.
            count = tf.size(inputs, out_type=tf.int64) // inputs.shape[-1]
            count = tf.cast(count, "float32")
            variance = variance * ((count - 1.0) / count)
            rest = 1.0 - self.momentum
            self.moving_mean.assign(moving_mean * self.momentum + mean * rest)
            self.moving_variance.assign(
                moving_variance * self.momentum + variance * rest
            )
        return tf.cast(outputs, self.compute_dtype)
