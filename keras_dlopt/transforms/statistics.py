"""Gradients at the weights that the layers see, measured when an update asks."""

import contextlib
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_dlopt.errors import ConfigError
from keras_dlopt.runtime.values import value
from keras_dlopt.transforms.batches import DrawnBatches
from keras_dlopt.transforms.host import hosts, probing


class Statistics:
    """Mean gradients of a compiled model's loss over some batches of data.

    `fit` builds one by itself from its own data. A custom loop hands it over:
    `model.update_transforms(step, statistics=Statistics(model, (x, y)))`. Nothing is
    computed until a transform reads `Member.statistics`.

    The gradient is taken with respect to the effective weights, the values that the
    layers see, so that weights at zero behind a mask have a gradient too. Layers run in
    training mode; what they write (moving averages, seeds) is dropped. The same step
    gives the same batches, so that a resumed run repeats an unbroken one.

    Args:
        model: a compiled model that is, or contains, transformed models or layers.
        data: arrays `(x, y)`, a `tf.data.Dataset` of batches, or a `PyDataset`; no
            generator.
        batches: how many batches.
        batch_size: examples a batch, where `data` are arrays.
        seed: of the draw of examples.

    Raises:
        ConfigError: for a generator, empty data, a model that is not compiled, or a
            backend other than TensorFlow and JAX.

    Example:
        >>> import keras
        >>> from keras_dlopt import Prune, Recipe, named, transform
        >>> from keras_dlopt.transforms.prune import Taylor
        >>> net = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> recipe = Recipe([(named("kernel"), Prune(0.5, score=Taylor()))])
        >>> small = transform(net, recipe)
        >>> small.compile("sgd", "mse")
        >>> data = np.ones((8, 4)), np.ones((8, 2))
        >>> small.update_transforms(0, statistics=Statistics(small, data))
    """

    def __init__(
        self,
        model: keras.Model,
        data: Any,
        *,
        batches: int = 8,
        batch_size: int = 32,
        seed: int = 0,
    ):
        if not getattr(model, "compiled", False):
            raise ConfigError(
                f"The gradients of {model.name!r} need its loss. Call compile() first."
            )
        if keras.backend.backend() not in ("tensorflow", "jax"):
            raise ConfigError(
                "Gradients for transforms are measured on the TensorFlow and JAX "
                f"backends. Received: {keras.backend.backend()!r}. Use a score that "
                "needs none, such as Magnitude()."
            )
        self._model = model
        self._batches = DrawnBatches(
            data, count=batches, batch_size=batch_size, seed=seed
        )
        self._gradients: Any = None
        self._step: int | None = None
        self._measured: dict[int, dict[str, np.ndarray]] = {}

    def __call__(self, variable: Any, name: str, step: int) -> np.ndarray:
        """One statistic of one weight, measured once a step for all of them.

        Args:
            variable: the latent weight.
            name: `"gradient"` or `"squared_gradient"`.
            step: training steps done so far; decides the examples.
        """
        if self._step != step:
            self._measured, self._step = self._measure(step), step
        return self._measured[id(variable)][name]

    def _measure(self, step: int) -> dict[int, dict[str, np.ndarray]]:
        slots = [
            (group.transform, slot)
            for host in hosts(self._model)
            for group in host.groups
            if group.transform.kind == "weight"
            for slot in group.slots
        ]
        if self._gradients is None:
            run = {"tensorflow": _tensorflow, "jax": _jax}[keras.backend.backend()]
            self._gradients = run(self._model, slots)
        batches = self._batches.at(step)
        sums = [np.zeros((2, *(slot.target.shape or ()))) for _, slot in slots]
        for batch in batches:
            gradients = self._gradients(keras.tree.map_structure(_tensor, batch))
            for total, gradient in zip(sums, gradients, strict=True):
                one = np.asarray(ops.convert_to_numpy(gradient), "float64")
                total += np.stack([one, np.square(one)])
        return {
            id(slot.target.variable): {
                "gradient": total[0] / len(batches),
                "squared_gradient": total[1] / len(batches),
            }
            for (_, slot), total in zip(slots, sums, strict=True)
        }


def _tensor(leaf):
    return None if leaf is None else ops.convert_to_tensor(leaf)


def _loss(model, slots, values, batch):
    """The compiled loss with given effective weights; nothing is written."""
    x, y, weight = batch
    keys = [id(slot.target.variable) for _, slot in slots]
    with probing(dict(zip(keys, values, strict=True))):
        predicted = model(x, training=True)
        return model.compute_loss(
            x=x, y=y, y_pred=predicted, sample_weight=weight, training=True
        )


def _tensorflow(model, slots):
    import tensorflow as tf

    @tf.function(reduce_retracing=True)
    def gradients(batch):
        # Regularizers look for values in the scope itself.
        mapping = [(v, value(v)) for v in model.trainable_variables]
        with keras.StatelessScope(mapping, collect_losses=True):
            # A transform may return the weight itself, which a tape cannot watch.
            values = [value(slot.effective(transform)) for transform, slot in slots]
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(values)
                loss = _loss(model, slots, values, batch)
        return tape.gradient(loss, values, unconnected_gradients="zero")

    strategy = getattr(model, "distribute_strategy", None)
    scope = strategy.scope if strategy is not None else contextlib.nullcontext

    def run(batch):
        with scope():
            return gradients(batch)

    return run


def _jax(model, slots):
    import jax

    variables = model.variables

    @jax.jit
    def gradients(state, batch):
        mapping = list(zip(variables, state, strict=True))
        with keras.StatelessScope(mapping, collect_losses=True):
            values = [slot.effective(transform) for transform, slot in slots]

        def loss(values):
            with keras.StatelessScope(mapping, collect_losses=True):
                return _loss(model, slots, values, batch)

        return jax.grad(loss)(values)

    return lambda batch: gradients([v.value for v in variables], batch)
