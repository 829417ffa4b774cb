"""From a transformed model to an ordinary one, smaller where channels were masked."""

import warnings

import keras

from keras_dlopt.surgery.dead import remove_dead
from keras_dlopt.transforms import finalize as baked


def finalize(
    model: keras.Model, *, copy: bool = True, remove: bool = False
) -> keras.Model:
    """An ordinary Keras model with the transformed weights baked in.

    Args:
        model: a `TransformedModel`, or a Sequential or Functional model with
            `TransformedLayer`s in it, nested ones included.
        copy: whether `model` stays as it is. False bakes into the model inside a
            `TransformedModel` and returns that one, which also serves subclassed models
            without `get_config`; the transformed model is of no use then.
        remove: whether channels that do nothing leave, as in `remove_dead`: those whose
            filters `Prune(pattern=Filters())` masked in every layer that makes them. A
            masked filter still gives its bias, or the offset of a BatchNormalization;
            these go into the biases of the layers that read them.

    Returns:
        A model of the original kind; with `remove` a new one with smaller layers.
        Activation transforms are left out of it; `export.litert` reads them from the
        transformed model. It is compiled as `model` was, with an optimizer of its own
        that has made no step, where a file could hold what it was compiled with: not
        with a lambda, or functions and classes that are not registered with Keras.

    Raises:
        ModelError: if nothing in the model is transformed, a scheduled transform was
            never updated, the layers cannot be unwrapped, or a weight is not finite;
            with `remove` also for a model that cannot be traced or built anew.

    Warns:
        UserWarning: if a schedule has not ended; the text says what remains. With
            `remove`, if a constant stood in front of padding: outputs change where a
            kernel reaches over the border, which some fine-tuning mends.

    Example:
        >>> from keras_dlopt import Prune, Recipe, named, prune, transform
        >>> net = keras.Sequential([keras.Input((4,)),
        ...     keras.layers.Dense(8, name="a"), keras.layers.Dense(2, name="b")])
        >>> half = Prune(0.5, pattern=prune.Filters())
        >>> masked = transform(net, Recipe([(named("kernel"), half)]))
        >>> finalize(masked, remove=True).get_layer("a").units
        4
    """
    plain = baked(model, copy=copy)
    if not remove:
        return plain
    small, report = remove_dead(plain, ignore_padding=True)
    if report.uneven:
        warnings.warn(
            f"Constants of masked channels stood in front of the padding of "
            f"{list(report.uneven)}: outputs change where these layers reach over the "
            "border. Fit the smaller model for some steps, or keep the masks with "
            "remove=False.",
            stacklevel=2,
        )
    return small
