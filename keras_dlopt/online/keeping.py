"""Zeros and shared values of a compressed model, kept while it learns on."""

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from keras_dlopt import checks
from keras_dlopt.errors import ConfigError
from keras_dlopt.runtime import to_numpy

# More values than this are no codebook.
_MOST = 256


class Keeper:
    """Puts weights back into the form that they had, after each step.

    `"zeros"`: what is 0 in a kernel stays 0. `"codes"`: weights of a kernel that are
    equal stay equal, as in the fine-tuning of Deep Compression: each code moves by the
    mean of what its weights were to move by, and 0 stays 0.

    Args:
        model: built.
        what: `"zeros"`, `"codes"`, or None for nothing.

    Raises:
        ConfigError: for a model that has none.

    Source: Han, Mao, Dally, "Deep Compression" (arXiv:1510.00149), section 3.
    """

    def __init__(self, model: Any, what: str | None):
        checks.choice(what, name="keep", choices=("zeros", "codes", None))
        self._zeros: list[tuple[Any, np.ndarray]] = []
        self._codes: list[tuple[Any, np.ndarray, np.ndarray, Any]] = []
        if what == "zeros":
            self._zeros = [(v, w != 0) for v, w in _kernels(model) if (w == 0).any()]
        elif what == "codes":
            for variable, weight in _kernels(model):
                values, places = np.unique(weight, return_inverse=True)
                if len(values) <= min(_MOST, weight.size // 2):
                    codes = keras.Variable(values, trainable=False, dtype=values.dtype)
                    entry = (variable, places.ravel().astype("int32"), values != 0)
                    self._codes.append((*entry, codes))
        if what is not None and not (self._zeros or self._codes):
            raise ConfigError(
                f"keep={what!r}, and no kernel of {model.name!r} has "
                f"{'zeros' if what == 'zeros' else 'weights that share values'}. Pass "
                "keep=None, or a model that was pruned or clustered and finalized."
            )

    @property
    def variables(self) -> list[Any]:
        """The values that weights share."""
        return [codes for *_, codes in self._codes]

    def project(self) -> None:
        """Puts the weights back; in a graph or not."""
        import tensorflow as tf

        for variable, mask in self._zeros:
            value = tf.convert_to_tensor(variable.value)
            variable.assign(tf.where(tf.constant(mask), value, tf.zeros_like(value)))
        for variable, places, free, codes in self._codes:
            value = tf.convert_to_tensor(variable.value)
            old = tf.convert_to_tensor(codes.value)
            moved = tf.reshape(value, (-1,)) - tf.gather(old, places)
            mean = tf.math.unsorted_segment_mean(moved, places, len(free))
            new = tf.where(tf.constant(free), old + mean, tf.zeros_like(old))
            codes.assign(new)
            variable.assign(tf.reshape(tf.gather(new, places), value.shape))


def _kernels(model: Any) -> Iterator[tuple[Any, np.ndarray]]:
    for variable in model.trainable_variables:
        if len(variable.shape) >= 2:
            yield variable, to_numpy(variable)
