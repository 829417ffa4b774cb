"""Predictions averaged over views of each image."""

from typing import Any

import keras
from keras import ops

from keras_dlopt import checks
from keras_dlopt.data.augment.trivial import NAMES, applied
from keras_dlopt.errors import ConfigError
from keras_dlopt.graph.walk import check_built

_VIEWS = (
    ("identity", 0.0),
    ("translate x", 1.0),
    ("translate x", -1.0),
    ("translate y", 1.0),
    ("translate y", -1.0),
)


@keras.saving.register_keras_serializable("keras_dlopt")
class TestTimeAugmentation(keras.Model):
    """A trained model whose outputs are the mean over several views of each image.

    The views are fixed, so predictions do not depend on the batch, and are the same on
    replicas. Compile it with the loss and metrics of the model to evaluate. It costs
    as many runs of the model as there are views. It is for prediction: `fit` is the
    model's own.

    Args:
        model: a built Keras model of one image input and one output.
        views: pairs of an operation of `TrivialAugment` and its strength: rotation in
            degrees, translation in 1/32 of a side, shear, 1 + strength for color,
            brightness, contrast and sharpness; and `("flip", 0)`, left and right.
        most: largest value of float images, 1.0 or 255.0.

    Raises:
        ConfigError: for other views.
        ModelError: for a model that is not built.

    Example:
        >>> L = keras.layers
        >>> model = keras.Sequential([keras.Input((8, 8, 1)), L.Flatten(), L.Dense(3)])
        >>> averaged = TestTimeAugmentation(model, views=[("identity", 0), ("flip", 0)])
        >>> averaged.predict(np.zeros((2, 8, 8, 1)), verbose=0).shape
        (2, 3)
    """

    __test__ = False  # pytest takes it for a test by its name

    def __init__(
        self,
        model: keras.Model,
        *,
        views: Any = _VIEWS,
        most: float = 1.0,
        **kwargs: Any,
    ) -> None:
        check_built(model)
        super().__init__(**kwargs)
        self.model = model
        self.views = tuple(_checked(one) for one in views)
        if not self.views:
            raise ConfigError("views must hold one view or more. Received: none.")
        self.most = checks.positive(most, name="most")
        self.built = True

    def build(self, input_shape: Any = None) -> None:
        pass

    def call(self, inputs: Any, training: bool = False) -> Any:
        total: Any = 0.0
        for name, strength in self.views:
            seen = _view(inputs, name, strength, self.most)
            total = total + self.model(seen, training=False)
        return total / len(self.views)

    @property
    def trainable_variables(self) -> list[Any]:
        """None: an optimizer that was compiled or loaded has nothing to keep."""
        return []

    def fit(self, *args: Any, **kwargs: Any) -> Any:
        raise ConfigError(
            "TestTimeAugmentation averages predictions and is not trained. Train the "
            "model inside, and wrap it afterwards."
        )

    def get_config(self) -> dict[str, Any]:
        model = keras.saving.serialize_keras_object(self.model)
        model.pop("compile_config", None)  # its optimizer has nothing to do here
        return {
            **super().get_config(),
            "model": model,
            "views": [list(one) for one in self.views],
            "most": self.most,
        }

    @classmethod
    def from_config(cls, config: Any, custom_objects: Any = None) -> Any:
        model = keras.saving.deserialize_keras_object(
            config.pop("model"), custom_objects=custom_objects
        )
        return cls(model, **config)


def _checked(view: Any) -> tuple[str, float]:
    if not isinstance(view, tuple | list) or len(view) != 2:
        raise ConfigError(
            "A view must be a pair of an operation and a strength, such as ('rotate', "
            f"5). Received: {view!r}."
        )
    name = checks.choice(view[0], name="view", choices=(*NAMES, "flip"))
    return name, checks.number(view[1], name=name)


def _view(images: Any, name: str, strength: float, most: float) -> Any:
    if name == "identity":
        return images
    if name == "flip":
        return ops.flip(images, axis=2)
    import tensorflow as tf

    count = tf.shape(images)[0]
    which = tf.fill([count], NAMES.index(name))
    return applied(images, which, tf.fill([count], strength), most=most)
