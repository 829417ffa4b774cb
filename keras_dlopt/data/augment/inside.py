"""Augmentation as a layer of the model itself."""

from typing import Any

import keras

from keras_dlopt import checks, runtime
from keras_dlopt.data.augment.trivial import TrivialAugment, applied
from keras_dlopt.errors import ModelError


def _start(seed: int) -> Any:
    return lambda shape, dtype=None: keras.ops.convert_to_tensor([seed, 0], dtype)


@keras.saving.register_keras_serializable("keras_dlopt")
class AugmentationLayer(keras.layers.Layer):
    """A policy as a layer: images are changed in training, and left alone otherwise.

    It stands where the images come in, so that plain arrays and data sets go to `fit`,
    and is nothing in `predict`, `evaluate` and exported files. What is drawn follows
    from the seed and the number of the call in training, which are in `.keras` files.
    On replicas each image of a batch that divides by them is changed as on one device.
    Of the layers before it none learns: no gradient passes.

    Args:
        policy: a `TrivialAugment`; None for its defaults. Keras' own, such as
            `keras.layers.RandAugment`, are layers as they are.
        seed: of all that is drawn.

    Raises:
        ConfigError: for another policy.
        ModelError: when called on another backend than TensorFlow.
        DataError: when called on anything but batches of images of uint8 or floats;
            TensorFlow's `InvalidArgumentError` for floats that exceed the policy's
            `most`, which XLA does not look at.

    Example:
        >>> L = keras.layers
        >>> model = keras.Sequential(
        ...     [keras.Input((8, 8, 1)), AugmentationLayer(), L.Flatten(), L.Dense(3)])
        >>> model.layers[0](keras.ops.ones((1, 8, 8, 1)), training=False).shape
        TensorShape([1, 8, 8, 1])

    Source: as of `TrivialAugment`.
    """

    def __init__(
        self, policy: TrivialAugment | None = None, *, seed: int = 0, **kwargs: Any
    ):
        # Half precision has fewer steps than an image has values.
        super().__init__(**{"autocast": False} | kwargs)
        self.policy = checks.instance(
            TrivialAugment() if policy is None else policy,
            TrivialAugment,
            name="policy",
            wanted="a TrivialAugment",
            hint="Put layers of Keras, such as RandAugment, into the model themselves.",
        )
        self.seed = checks.whole(seed, name="seed", least=0, most=2**31 - 1)

    def build(self, input_shape: Any = None) -> None:
        # No SeedGenerator: files would leave it out, and replicas get others of it.
        self.state = self.add_weight(
            name="seed_generator_state",
            shape=(2,),
            dtype="int32",
            initializer=_start(self.seed),
            trainable=False,
        )

    def call(self, images: Any, training: bool = False) -> Any:
        """The images, each changed in its own way in training."""
        if not training:
            return images
        if not runtime.on_tensorflow():
            raise ModelError(
                f"{self.name!r} augments on TensorFlow, and the backend is "
                f"{keras.backend.backend()!r}. Use keras.layers.RandAugment there."
            )
        import tensorflow as tf

        images, seed = tf.convert_to_tensor(images), tf.convert_to_tensor(self.state)
        self.state.assign(seed + tf.constant([0, 1]))
        count, replicas = tf.shape(images)[0], runtime.replica_count()
        # Of the whole batch, of which this replica has the part of its number.
        which, strength = self.policy.drawn(count * replicas, seed)
        if replicas > 1:
            context = tf.distribute.get_replica_context()
            first = count * context.replica_id_in_sync_group
            part = tf.range(count) + first
            which, strength = tf.gather(which, part), tf.gather(strength, part)
        made = applied(images, which, strength, most=self.policy.most)
        return tf.stop_gradient(made)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape

    def compute_output_spec(self, images: Any, training: bool = False) -> Any:
        return keras.KerasTensor(images.shape, dtype=images.dtype)

    def get_config(self) -> dict[str, Any]:
        policy = keras.saving.serialize_keras_object(self.policy)
        return {**super().get_config(), "policy": policy, "seed": self.seed}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "AugmentationLayer":
        policy = keras.saving.deserialize_keras_object(config["policy"])
        return cls(**config | {"policy": policy})
