"""What the wrappers of TFMOT become: a transformed model, or a transformed layer."""

from collections.abc import Callable
from typing import Any

import keras

from keras_dlopt.errors import ConfigError
from keras_dlopt.select import Selector, inside, named
from keras_dlopt.transforms import Recipe, TransformedLayer, transform

# What TFMOT's registries list for pruning and clustering: kernels, but those of
# depthwise convolutions.
WEIGHTS: Selector = named(
    "kernel", "pointwise_kernel", "embeddings", "recurrent_kernel"
) & ~inside(keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)

# A list of layers may hold these, and TFMOT leaves them as they are.
_WITHOUT = (
    keras.layers.BatchNormalization,
    keras.layers.DepthwiseConv1D,
    keras.layers.DepthwiseConv2D,
    keras.layers.GroupNormalization,
    keras.layers.LayerNormalization,
    keras.layers.PReLU,
)


def wrap(
    what: Any, recipe: Callable[[Any], Recipe], *, function: str, **kwargs: Any
) -> Any:
    """Applies a recipe to a model, a layer, or each layer of a list.

    Args:
        what: a built model, a layer, or a list of layers.
        recipe: gives the recipe of a model or layer.
        function: the caller's name, for the error text.
        **kwargs: of the new layer; not used for a model.

    Raises:
        ConfigError: for anything else.
    """
    if isinstance(what, list | tuple):
        return [wrap(one, recipe, function=function) for one in what]
    if isinstance(what, keras.Model):
        return transform(what, recipe(what))
    if isinstance(what, (TransformedLayer, keras.layers.InputLayer, *_WITHOUT)):
        return what
    if isinstance(what, keras.layers.Layer):
        if what.built and not what.weights:
            return what  # nothing in it to transform
        return TransformedLayer(what, recipe(what), **kwargs)
    raise ConfigError(
        f"{function} takes a keras.Model, a layer or a list of layers of Keras 3. "
        f"Received: {what!r}. A model of tf_keras is converted from its file: "
        "keras_dlopt.interop.tfmot.load_model('model.h5')."
    )
