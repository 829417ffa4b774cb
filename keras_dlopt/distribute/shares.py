"""How the replicas' shares of a batch make up the step of the whole batch."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import keras

from keras_dlopt import _compat, runtime
from keras_dlopt.errors import ConfigError, ModelError


class Shares:
    """Tells, inside a replica's step, how much of the batch the replica holds.

    Replica r of R has n_r of the N examples. Its gradients count by the share
    s_r = n_r R / N, of which Keras takes the mean, and so do the losses it reports.
    That is right for a loss that is a mean over examples. A loss that divides by D_r,
    such as the tokens that a mask leaves or the sum of the weights, must count by
    D_r R / D, and one that adds up by R / R = 1: `change` multiplies them by the
    quotient of that and s_r.
    """

    def __init__(self):
        self.results = _compat.SeenResults(runtime.on_several)
        # Every replica is traced in a thread of its own.
        self._local = threading.local()

    @property
    def here(self) -> Any:
        """s_r of the replica that asks; None where all are known to be 1."""
        return getattr(self._local, "share", None)

    @property
    def weight(self) -> Any:
        """How much the batch counts in means over batches; None for Keras' rule."""
        return getattr(self._local, "weight", None)

    @contextlib.contextmanager
    def of(self, data: Any, *, same: bool, batches: bool) -> Iterator[None]:
        """Inside, this replica's step sees `data`.

        Args:
            data: the replica's part of a batch.
            same: whether a static shape is that of every replica and batch.
            batches: whether means over batches count each batch once, as Keras does
                for data whose batches have no size that is known before.
        """
        import tensorflow as tf

        x, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        first = next(leaf for leaf in keras.tree.flatten(x) if leaf is not None)
        shape = first.shape
        share = weight = None
        if not (same and shape.rank is not None and shape[0] is not None):
            count = tf.cast(tf.shape(first)[0], tf.float32)
            part = tf.math.divide_no_nan(count, runtime.total(count))
            share = part * runtime.replica_count()
            weight = part if batches else count
        self._local.share, self._local.weight = share, weight
        try:
            yield
        finally:
            self._local.share = self._local.weight = None

    def change(
        self, value: Any, *, loss: Any, values: Any, mask: Any, sample_weight: Any
    ) -> Any:
        """A compiled loss that makes the replicas' mean that of the whole batch.

        Raises:
            ModelError: for one number in place of one per example.
            ConfigError: where that needs the replicas to meet inside XLA.
        """
        if not runtime.on_several() or loss.reduction in (None, "none"):
            return value  # it divides by itself
        check_values(loss, values)
        if tuple(value.shape) == (0,):  # Keras' loss of no example
            value = keras.ops.sum(value)
        weighted = loss.reduction == "mean_with_sample_weight"
        factor = None
        if loss.reduction == "sum":
            if self.here is not None:
                factor = _quotient(1.0, self.here)
        elif mask is not None or (weighted and sample_weight is not None):
            if _compat.in_xla():
                raise ConfigError(
                    f"jit_compile=True compiles what each replica does alone, and the "
                    f"loss {loss.name!r} divides by a mask or by weights, which takes "
                    "all replicas. Compile with jit_compile=False."
                )
            own = _compat.weight_of_values(
                loss, values, mask, sample_weight if weighted else None
            )
            own = keras.ops.cast(own, "float32")
            factor = _quotient(own * runtime.replica_count(), runtime.total(own))
            if self.here is not None:
                factor = _quotient(factor, self.here)
        return value if factor is None else value * keras.ops.cast(factor, value.dtype)


def _quotient(one: Any, other: Any) -> Any:
    return keras.ops.divide_no_nan(one, other)


def check_values(loss: Any, values: Any) -> None:
    """Refuses what a compiled loss gave, if Keras would not divide it by the replicas.

    Raises:
        ModelError: for one number in place of one per example.
    """
    if len(values.shape) == 0:
        raise ModelError(
            f"The compiled loss {loss.name!r} gives one number for a batch. Keras "
            f"divides only values per example by the {runtime.replica_count()} "
            "replicas, so that the steps would be too large. Return one value per "
            "example: leave the last mean out, and give a keras.losses object that it "
            "calls reduction=None."
        )
