"""A layer that runs another layer with transformed weights."""

from typing import Any

import keras

from keras_dlopt.errors import ModelError
from keras_dlopt.transforms.host import TransformHost
from keras_dlopt.transforms.recipe import Recipe, check_recipe


@keras.saving.register_keras_serializable("keras_dlopt")
class TransformedLayer(TransformHost, keras.layers.Wrapper):
    """Runs `layer` with its weights transformed by `recipe`.

    For models built by hand; `transform` does the same to a whole model. Scheduled
    transforms need `UpdateTransforms()` among the callbacks of `fit`.

    Args:
        layer: any Keras layer.
        recipe: which transform for which of its weights; paths start below the layer,
            so a Dense kernel is `"kernel"`.

    Raises:
        ConfigError: for anything but a recipe; when built, if it matches nothing.

    Example:
        >>> import keras
        >>> from keras_dlopt import FakeQuant, Recipe, named
        >>> eight_bits = Recipe([(named("kernel"), FakeQuant(bits=8))])
        >>> layer = TransformedLayer(keras.layers.Dense(2), eight_bits)
        >>> layer(keras.ops.ones((1, 3))).shape
        TensorShape([1, 2])
    """

    def __init__(self, layer: keras.layers.Layer, recipe: Recipe, **kwargs: Any):
        if isinstance(layer, TransformedLayer):
            raise ModelError(
                f"{layer.name!r} is transformed already. Chain the transforms instead, "
                "such as Prune(0.9) >> FakeQuant(bits=8)."
            )
        check_recipe(recipe)
        kwargs.setdefault("name", layer.name)
        # Transforms compute in float32; the layer inside keeps its own dtype policy.
        kwargs.setdefault("dtype", "float32")
        super().__init__(layer, **kwargs)
        self.recipe = recipe
        self.supports_masking = layer.supports_masking
        if any(transform.random for _, transform in recipe.entries):
            self.seed_generator = keras.random.SeedGenerator(0)

    def build(self, input_shape=None):
        super().build(input_shape)
        self._attach(self.layer, self.recipe)

    def call(self, inputs, *args, training=None, **kwargs):
        return self.run(
            lambda: self.layer(inputs, *args, training=training, **kwargs),
            training=bool(training),
        )

    def compute_output_shape(self, input_shape):
        return self.layer.compute_output_shape(input_shape)

    def compute_output_spec(self, *args, **kwargs):
        """As the layer itself says: not every layer computes shapes from shapes."""
        return self.layer.compute_output_spec(*args, **kwargs)

    def get_config(self) -> dict[str, Any]:
        """Keras' own entries, the layer and the recipe."""
        return {**super().get_config(), "recipe": self.recipe.to_dict()}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        """Builds the layer from its `get_config()`."""
        config = dict(config)
        layer = keras.saving.deserialize_keras_object(
            config.pop("layer"), custom_objects=custom_objects
        )
        return cls(layer, Recipe.from_dict(config.pop("recipe")), **config)
