"""What trained networks say of each example: error, margin, features."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_dlopt import checks
from keras_dlopt.data.select.given import classes
from keras_dlopt.errors import DataError, ModelError
from keras_dlopt.graph import hooks, walk


def probabilities(outputs: np.ndarray) -> np.ndarray:
    """A classifier's outputs as probabilities, float64; logits through softmax.

    Outputs are probabilities where no row has a negative number and all add up to 1.

    Raises:
        DataError: for anything but one row an example, one number a class.
    """
    if not isinstance(outputs, np.ndarray) or outputs.ndim != 2 or outputs.shape[1] < 2:
        shape = getattr(outputs, "shape", type(outputs).__name__)
        raise DataError(
            "The network must have one output with a number for each of two or more "
            f"classes. Received: {shape}."
        )
    found: np.ndarray = outputs.astype("float64")
    sums = found.sum(axis=1)
    if (found >= 0).all() and np.abs(sums - 1).max() < 1e-2:
        return np.asarray(found / sums[:, None])
    found = np.exp(found - found.max(axis=1, keepdims=True))
    return np.asarray(found / found.sum(axis=1, keepdims=True))


def error_norms(outputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """`|p - onehot(y)|_2` of each example, from 0 (sure and right) to 1.41."""
    error = _known(probabilities(outputs), labels)
    error[np.arange(len(labels)), labels] -= 1
    return np.asarray(np.linalg.norm(error, axis=1))


def margins_of(outputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Probability of the label less the largest of the others, -1 to 1."""
    left = _known(probabilities(outputs), labels)
    own = left[np.arange(len(labels)), labels]
    left[np.arange(len(labels)), labels] = -1
    found: np.ndarray = own - left.max(axis=1)
    return found


def _known(found: np.ndarray, labels: np.ndarray) -> np.ndarray:
    if len(found) != len(labels) or labels.max() >= found.shape[1]:
        raise DataError(
            f"The network gives {found.shape[1]} classes for {len(found)} examples. "
            f"Received: {len(labels)} labels up to {labels.max()}."
        )
    return found


def scores_el2n(
    models: keras.Model | Sequence[keras.Model],
    x: Any,
    y: Any,
    *,
    batch_size: int = 256,
) -> np.ndarray:
    """EL2N: the mean over networks of the norm of the error, high for hard examples.

    `|p(x) - onehot(y)|_2`, averaged over networks of several seeds that were trained
    for a few epochs only. Late in training all examples that are not mislabeled have
    small errors, and the score ranks worse.

    Args:
        models: one or several Keras classifiers.
        x: examples, an array.
        y: labels, whole numbers or one-hot, (examples,) or (examples, classes).
        batch_size: of the prediction.

    Returns:
        (examples,), float64, 0 to 1.41.

    Raises:
        DataError: for labels that do not fit, or networks with other outputs.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        >>> scores_el2n(model, np.ones((5, 4)), np.zeros(5)).shape
        (5,)

    Source: Paul, Ganguli, Dziugaite, "Deep Learning on a Data Diet"
    (arXiv:2107.07075), section 2.
    """
    labels = classes(y, count=len(x))
    made = [error_norms(one, labels) for one in _outputs(models, x, batch_size)]
    return np.asarray(np.mean(made, axis=0))


def margins(
    models: keras.Model | Sequence[keras.Model],
    x: Any,
    y: Any,
    *,
    batch_size: int = 256,
) -> np.ndarray:
    """The label's probability less the largest other one, mean over networks.

    Args:
        models: one or several Keras classifiers.
        x: examples, an array.
        y: labels, whole numbers or one-hot.
        batch_size: of the prediction.

    Returns:
        (examples,), float64, -1 (sure and wrong) to 1; low for hard examples.

    Raises:
        DataError: for labels that do not fit, or networks with other outputs.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        >>> margins(model, np.zeros((5, 4)), np.zeros(5)).tolist()
        [0.0, 0.0, 0.0, 0.0, 0.0]
    """
    labels = classes(y, count=len(x))
    made = [margins_of(one, labels) for one in _outputs(models, x, batch_size)]
    return np.asarray(np.mean(made, axis=0))


def _outputs(models: Any, x: Any, batch_size: int) -> list[np.ndarray]:
    batch_size = checks.count(batch_size, name="batch_size")
    several = list(models) if isinstance(models, list | tuple) else [models]
    for one in several:
        walk.check_built(one)
    if not several:
        raise DataError("models must be one Keras model or several. Received: none.")
    return [one.predict(x, batch_size=batch_size, verbose=0) for one in several]


def features(
    model: keras.Model, x: Any, *, layer: str | None = None, batch_size: int = 256
) -> np.ndarray:
    """What the last layer with weights is given, or what a named layer gives.

    Args:
        model: any built Keras model; subclassed and nested ones too.
        x: examples, an array.
        layer: path of a layer, such as `"block/dense"`; its outputs are taken. None
            takes the inputs of the last layer with weights.
        batch_size: of the prediction.

    Returns:
        (examples, features), float32; more axes are laid flat.

    Raises:
        ModelError: for a model that is not built, has no such layer, or does not call
            it just once.

    Example:
        >>> L = keras.layers
        >>> model = keras.Sequential([keras.Input((4,)), L.Dense(6), L.Dense(3)])
        >>> features(model, np.ones((5, 4))).shape
        (5, 6)
    """
    walk.check_built(model)
    batch_size = checks.count(batch_size, name="batch_size")
    found = _layer(model, layer)
    seen: list[np.ndarray] = []

    def see(call: hooks.Called, given: hooks.Given) -> Any:
        outputs = call(given)
        taken = given.inputs()[0] if layer is None else outputs
        seen.append(np.asarray(ops.convert_to_numpy(taken), "float32"))
        return outputs

    parts = []
    with hooks.hooked([(found, see)]):
        for at in range(0, len(x), batch_size):
            model(x[at : at + batch_size], training=False)
            if len(seen) != 1:
                raise ModelError(
                    f"{found.name!r} runs {len(seen)} times in {model.name!r}. Give "
                    "the path of a layer that runs once as layer=..."
                )
            parts.append(seen.pop().reshape(len(x[at : at + batch_size]), -1))
    return np.concatenate(parts)


def _layer(model: keras.Model, path: str | None) -> Any:
    named = {name: one for name, one, _ in walk.walk(model) if name}
    if path is not None:
        checks.choice(path, name="layer", choices=list(named))
        return named[path]
    having = [one for one in named.values() if walk.own_weights(one)]
    if not having:
        raise ModelError(
            f"{model.name!r} has no layer with weights. Give the path of the layer "
            "whose outputs are the features as layer=..."
        )
    return having[-1]
