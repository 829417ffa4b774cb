"""From a transformed model back to an ordinary Keras model."""

import warnings
import weakref
from typing import Any

import keras

from keras_dlopt.errors import ModelError
from keras_dlopt.select import weight_targets
from keras_dlopt.transforms.copying import copy_model
from keras_dlopt.transforms.host import TransformHost
from keras_dlopt.transforms.layer import TransformedLayer
from keras_dlopt.transforms.model import TransformedModel
from keras_dlopt.transforms.updating import hosts

# What is known about the values of a finalized model, by position in its weights.
_HINTS: weakref.WeakKeyDictionary[Any, dict[int, Any]] = weakref.WeakKeyDictionary()


def coding_hints(model: keras.Model) -> dict[int, Any]:
    """How the weights of a finalized model can be coded.

    Returns:
        Position in `model.weights` -> `codecs.Codebook` or `codecs.Grid`; empty for a
        model that `finalize` did not make, or that was reloaded since.
    """
    return dict(_HINTS.get(model, {}))


def finalize(model: keras.Model) -> keras.Model:
    """An ordinary Keras model with the transformed weights baked in.

    Args:
        model: a `TransformedModel`, or a Sequential or Functional model with
            `TransformedLayer`s in it. It stays as it is.

    Returns:
        A new model of the original kind. Activation transforms are left out of it;
        `export.litert` reads them from the transformed model.

    Raises:
        ModelError: if nothing in the model is transformed, a scheduled transform was
            never updated, or the layers cannot be unwrapped.

    Warns:
        UserWarning: if a schedule has not ended; the text says what remains.
    """
    found = hosts(model)
    if not found:
        raise ModelError(
            f"The model {model.name!r} holds no transforms, so there is nothing to "
            "finalize. Build one with keras_dlopt.transform(model, recipe)."
        )
    for host in found:
        host.check_updated()
    left = [text for host in found for text in host.remaining()]
    if left:
        warnings.warn(
            "Finalizing before the schedule ended: " + "; ".join(left) + ".",
            stacklevel=2,
        )
    if isinstance(model, TransformedModel):
        plain = copy_model(model.model)
        _bake(plain, model)
        return plain
    return _unwrapped(model)


def _bake(plain: Any, host: TransformHost) -> None:
    targets = {t.path: t.variable for t in weight_targets(plain)}
    place = {id(v): i for i, v in enumerate(plain.weights)}
    hints = {}
    for target, value, hint in host.final_values():
        variable = targets[target.path]
        variable.assign(value)
        if hint is not None:
            hints[place[id(variable)]] = hint
    _HINTS[plain] = hints


def _unwrapped(model: keras.Model) -> keras.Model:
    functional = hasattr(model, "operations")  # only those know their graph
    if not isinstance(model, keras.Sequential) and not functional:
        raise ModelError(
            f"{type(model).__name__} is a subclassed model, and its layers cannot be "
            "replaced from outside. Build it from plain layers and use "
            "keras_dlopt.transform(model, recipe) instead."
        )

    def unwrap(layer):
        source = layer.layer if isinstance(layer, TransformedLayer) else layer
        return type(source).from_config(source.get_config())

    plain = keras.models.clone_model(model, clone_function=unwrap)
    for new, old in zip(plain.layers, model.layers, strict=True):
        source = old.layer if isinstance(old, TransformedLayer) else old
        new.set_weights(source.get_weights())
        if isinstance(old, TransformedLayer):
            own = {t.path: t.variable for t in weight_targets(new)}
            for target, value, _ in old.final_values():
                own[target.path].assign(value)
    return plain
