"""Whether two models predict the same, seen on inputs made up for it."""

from typing import Any

import keras
import numpy as np

from keras_dlopt.errors import ModelError
from keras_dlopt.graph.trace import input_specs

ROWS, OPEN = 2, 32  # size of the batch, and of dimensions that a model leaves open
CLOSE = 1e-4  # of the largest output: another order of sums, not another weight


def difference(model: keras.Model, other: keras.Model) -> float | None:
    """Largest difference of the outputs over the largest output; None if unknown.

    It is unknown for models that do not tell their inputs or cannot take those made up
    here, and for models that disagree with themselves. Neither model is changed.
    """
    try:
        inputs = keras.tree.map_structure(_made_up, input_specs(model))
        expected = _outputs(model, inputs)
    except Exception:  # the model's own code: what it takes is its affair
        return None
    found = _largest(expected, _outputs(other, inputs))
    if found > CLOSE and _largest(expected, _outputs(model, inputs)) > CLOSE:
        return None
    return found


def check(model: keras.Model, other: keras.Model) -> None:
    """Raises `ModelError` if the other model, loaded from its file, differs."""
    try:
        found = difference(model, other)
    except Exception as error:
        raise ModelError(
            f"It fails on inputs that the model takes ({type(error).__name__}: "
            f"{error!s:.300})."
        ) from error
    if found is not None and found > CLOSE:
        raise ModelError(
            f"Its predictions would differ by {found:.2g} of the largest output. A "
            "layer has state that is neither in its variables nor in its config: give "
            "it save_own_variables() and load_own_variables()."
        )


def _made_up(spec: Any) -> Any:
    shape = [OPEN if d is None else d for d in spec.shape[1:]]
    shape = [ROWS, *shape]
    rng = np.random.default_rng(0)
    if spec.dtype == "string":
        import tensorflow as tf  # Keras has strings with TensorFlow only

        return tf.constant(rng.choice(["a", "b c"], shape))
    if "int" in spec.dtype or spec.dtype == "bool":
        return keras.ops.convert_to_tensor(rng.integers(0, 2, shape), spec.dtype)
    return keras.ops.convert_to_tensor(rng.normal(1, 2, shape), spec.dtype)


def _outputs(model: keras.Model, inputs: Any) -> list[np.ndarray]:
    with keras.StatelessScope():  # what it would write is dropped
        outputs = model(inputs, training=False)
        flat = [_dense(y) for y in keras.tree.flatten(outputs)]
    return flat


def _dense(y: Any) -> np.ndarray:
    array = np.asarray(keras.ops.convert_to_numpy(y))
    return array if array.dtype.kind in "OSU" else array.astype(np.float64)


def _largest(one: list[np.ndarray], other: list[np.ndarray]) -> float:
    if [a.shape for a in one] != [b.shape for b in other]:
        return np.inf
    found = 0.0
    for a, b in zip(one, other, strict=True):
        if a.dtype.kind != "f" or b.dtype.kind != "f":
            found = max(found, 0.0 if np.array_equal(a, b) else np.inf)
        elif a.size and not np.array_equal(a, b, equal_nan=True):
            finite = np.isfinite(a)
            if not np.array_equal(finite, np.isfinite(b)):
                return np.inf
            size = np.abs(a[finite]).max(initial=0) or 1.0
            found = max(found, np.abs(a - b)[finite].max(initial=0) / size)
    return float(found)
