"""`use_fused`: an existing model on faster layers, with the same numbers."""

import keras

from keras_dlopt import _compat
from keras_dlopt.errors import ModelError
from keras_dlopt.graph.walk import layers_below
from keras_dlopt.layers.batch_normalization import BatchNormalization


def use_fused(model: keras.Model) -> keras.Model:
    """Lets a model's batch normalizations run on the fused kernel, in place.

    Every `keras.layers.BatchNormalization`, however deeply nested and in whatever kind
    of model, becomes this package's, which computes the same by one op. Variables,
    names, compile state and optimizer slots stay as they are. A file saved afterwards
    names this package's class, so loading it needs `import keras_dlopt.layers`.

    Subclasses of Keras' layer are left alone, since they may compute something else.
    On backends other than TensorFlow the model computes as before.

    Args:
        model: any Keras model.

    Returns:
        The same model.

    Raises:
        ModelError: for something that is not a Keras model.

    Example:
        >>> model = keras.Sequential(
        ...     [keras.Input((4, 4, 2)), keras.layers.BatchNormalization(name="bn")]
        ... )
        >>> isinstance(use_fused(model).get_layer("bn"), BatchNormalization)
        True
    """
    if not isinstance(model, keras.Model):
        raise ModelError(
            f"use_fused takes a Keras model. Received: {type(model).__name__}."
        )
    for layer in [model, *layers_below(model)]:
        if type(layer) is keras.layers.BatchNormalization:
            # Same variables, same arguments, another `call`: nothing to copy.
            _compat.set_class(layer, BatchNormalization)
        elif isinstance(layer, keras.Model):
            # What was traced before holds the old ops; `fit` traces anew.
            layer.train_function = None
            layer.test_function = None
            layer.predict_function = None
    return model
