"""The compiled calls of a learner: predict, learn, and learn from the memory."""

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from keras_dlopt.errors import ConfigError, ModelError
from keras_dlopt.online.terms import MixedRows, Terms
from keras_dlopt.runtime import on_tensorflow


@dataclasses.dataclass
class MixedBatches:
    """What some steps learn: arrays of the shape (steps, rows, ...).

    Attributes:
        x: inputs, in the model's structure.
        y: labels.
        kept: logits of kept rows.
        memory: 1 for rows whose `kept` counts, float32.
        weight: of each row in the compiled loss; None for none.
    """

    x: Any
    y: Any
    kept: np.ndarray
    memory: np.ndarray
    weight: np.ndarray | None = None


class Steps:
    """Runs a compiled model's own `train_step` and `predict_step` in one call each.

    Every call has arrays of the same shapes, so that each is traced once. With several
    replicas each takes every n-th row.

    Args:
        model: compiled.
        terms: what is added to its loss.
        augment: a layer that changes the inputs of a step; None for none.
        project: called after each step; keeps zeros or shared values.

    Raises:
        ConfigError: for options of `compile` that have no meaning here.
    """

    def __init__(
        self, model: Any, terms: Terms, augment: Any, project: Callable[[], None]
    ):
        check_compiled(model)
        import tensorflow as tf

        self.model, self._terms = model, terms
        self._augment, self._project = augment, project
        self._strategy = model.distribute_strategy
        self.replicas = int(self._strategy.num_replicas_in_sync)
        self._jit = bool(model.jit_compile)
        if self.replicas > 1 and (self._jit or augment is not None):
            what = "jit_compile=True" if self._jit else "Replay(augment=...)"
            raise ConfigError(
                f"{what} has no place beside {self.replicas} replicas. Leave it out, "
                "or learn on one device."
            )
        self._one = self._step
        if not model.run_eagerly and self.replicas == 1:
            self._one = tf.function(self._step, jit_compile=self._jit, autograph=False)
        self._learn = self._compiled(self._learning)
        self._train = self._compiled(self._training)
        self._predict = self._compiled(self._predicting, jit=self._jit)

    def _compiled(self, function: Any, *, jit: bool = False) -> Any:
        import tensorflow as tf

        if self.model.run_eagerly:
            return function
        return tf.function(function, jit_compile=jit, autograph=False)

    def traces(self) -> dict[str, int]:
        """How often each call was traced."""
        calls = {"learn": self._learn, "train": self._train, "predict": self._predict}
        return {
            name: call.experimental_get_tracing_count()
            for name, call in calls.items()
            if hasattr(call, "experimental_get_tracing_count")
        }

    def learn(self, x: Any, batches: MixedBatches) -> Any:
        """Predicts new samples, then learns; what it predicted, as NumPy."""
        return _numpy(self._learn(x, *_fields(batches)))

    def train(self, batches: MixedBatches) -> None:
        """Learns."""
        self._train(*_fields(batches))

    def predict(self, x: Any) -> Any:
        """Predicts a batch, as NumPy."""
        return _numpy(self._predict(x))

    def _learning(self, x: Any, *batches: Any) -> Any:
        outputs = self._predicting(x)
        self._training(*batches)
        return outputs

    def _training(self, *batches: Any) -> None:
        for step in range(batches[3].shape[0]):
            one = keras.tree.map_structure(
                lambda a, step=step: a if a is None else a[step], batches
            )
            self._strategy.run(self._on_replica, args=(one,))
            self._project()

    def _on_replica(self, batch: Any) -> None:
        self._one(*keras.tree.map_structure(self._share, batch))

    def _predicting(self, x: Any) -> Any:
        import tensorflow as tf

        def predict(x: Any) -> Any:
            return self.model.predict_step((keras.tree.map_structure(self._share, x),))

        made = self._strategy.run(predict, args=(x,))
        if self.replicas == 1:
            return made

        def together(one: Any) -> Any:
            parts = tf.stack(self._strategy.experimental_local_results(one), axis=1)
            return tf.reshape(parts, (-1, *parts.shape[2:]))

        return keras.tree.map_structure(together, made)

    def _share(self, rows: Any) -> Any:
        """The rows of this replica, every n-th."""
        import tensorflow as tf

        if rows is None or self.replicas == 1:
            return rows
        rows = tf.convert_to_tensor(rows)
        here = tf.distribute.get_replica_context().replica_id_in_sync_group
        return tf.gather(
            tf.reshape(rows, (-1, self.replicas, *rows.shape[1:])), here, axis=1
        )

    def _step(self, x: Any, y: Any, kept: Any, memory: Any, weight: Any) -> None:
        if self._augment is not None:
            x = self._augment(x, training=True)
        data = (x, y) if weight is None else (x, y, weight)
        with self._terms.over(MixedRows(x, None, kept, memory), name=self.model.name):
            self.model.train_step(data)


def check_compiled(model: Any) -> None:
    """Refuses a model that no learner can train.

    Raises:
        ModelError: for one that is not compiled, and on other backends.
        ConfigError: for `steps_per_execution`.
    """
    if not on_tensorflow():
        raise ModelError(
            "OnlineLearner runs its steps in TensorFlow's graphs, and Keras runs on "
            f"{keras.backend.backend()!r}. Set KERAS_BACKEND=tensorflow."
        )
    if not getattr(model, "compiled", False) or model.optimizer is None:
        raise ModelError(
            f"{model.name!r} is not compiled. Call compile() with the optimizer and "
            "the loss with which it is to learn."
        )
    if model.steps_per_execution > 1:
        raise ConfigError(
            f"steps_per_execution={model.steps_per_execution} is for fit(): a learner "
            "runs all steps of a batch in one call as it is. Compile without it; "
            "Replay(steps=...) says how many steps a batch has."
        )


def _fields(batches: MixedBatches) -> tuple[Any, ...]:
    return (batches.x, batches.y, batches.kept, batches.memory, batches.weight)


def _numpy(structure: Any) -> Any:
    return keras.tree.map_structure(
        lambda t: np.asarray(keras.ops.convert_to_numpy(t)), structure
    )
