"""A train step as a pure function of all state, on TensorFlow and on JAX.

`fit` changes variables in place. Compiling for other hardware, or splitting state over
devices, needs the same step as a function: all state in, all state out.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras

from keras_dlopt import runtime
from keras_dlopt.errors import ModelError


class TrainState(NamedTuple):
    """Everything a train step reads and writes.

    Attributes:
        trainable: values of the model's trainable variables, in their order.
        non_trainable: values of its other variables: statistics, random seeds, the
            state of transforms.
        optimizer: values of the optimizer's variables.
    """

    trainable: list[Any]
    non_trainable: list[Any]
    optimizer: list[Any]


class FunctionalStep:
    """The train step of a compiled model as `(state, x, y) -> (loss, state)`.

    Losses of layers, regularizers, statistics, dropout and transforms are part of it,
    as they are in `fit`; metrics, callbacks and scheduled transform updates are not.

    Args:
        model: built and compiled. Its variables keep their values; the optimizer's
            state is read when the step is made.

    Raises:
        ModelError: for an unbuilt or uncompiled model, or another backend than
            TensorFlow and JAX.

    Example:
        >>> import numpy as np
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        >>> model.compile(keras.optimizers.SGD(0.1), loss="mse")
        >>> step = FunctionalStep(model)
        >>> loss, state = step(step.state(), np.ones((4, 2)), np.zeros((4, 1)))
        >>> len(state.trainable)
        2
    """

    def __init__(self, model: keras.Model):
        backend = keras.backend.backend()
        if backend not in ("tensorflow", "jax"):
            raise ModelError(
                f"A functional step needs the TensorFlow or JAX backend. Received: "
                f"{backend}. Set KERAS_BACKEND before Keras is imported."
            )
        if not model.built:
            raise ModelError(
                "The model is not built, so it has no variables to pass. Start it with "
                "keras.Input, call model.build(input_shape), or call it once on data."
            )
        if getattr(model, "optimizer", None) is None:
            raise ModelError(
                "The model is not compiled, so there is no loss and no optimizer. Call "
                "model.compile(optimizer=..., loss=...) first."
            )
        self.model = model
        self.optimizer = model.optimizer
        self.optimizer.build(model.trainable_variables)
        if backend == "tensorflow":
            self.optimizer = _apart(self.optimizer, model.trainable_variables)
        self._gradient = _tf_gradient if backend == "tensorflow" else _jax_gradient
        self._update = _tf_update if backend == "tensorflow" else _jax_update

    @property
    def variables(self) -> TrainState:
        """The variables whose values make up the state, in its order."""
        return TrainState(
            list(self.model.trainable_variables),
            list(self.model.non_trainable_variables),
            list(self.optimizer.variables),
        )

    def state(self) -> TrainState:
        """The present values."""
        return TrainState(
            *(
                [keras.ops.convert_to_tensor(v) for v in group]
                for group in self.variables
            )
        )

    def assign(self, state: TrainState) -> None:
        """Writes a state back into the model and into `optimizer`."""
        for variables, values in zip(self.variables, state, strict=True):
            for variable, value in zip(variables, values, strict=True):
                variable.assign(value)

    def store_optimizer(self) -> None:
        """Writes the optimizer's state, after `assign`, into the model's optimizer."""
        if self.optimizer is self.model.optimizer:
            return
        pairs = zip(
            self.model.optimizer.variables, self.optimizer.variables, strict=True
        )
        for variable, value in pairs:
            variable.assign(value)

    def loss(
        self, trainable: Sequence[Any], non_trainable: Sequence[Any], x: Any, y: Any
    ) -> tuple[Any, list[Any]]:
        """The scaled training loss of one batch, and the new non-trainable values."""
        model, rest = self.model, self.model.non_trainable_variables
        mapping = [
            *zip(model.trainable_variables, trainable, strict=True),
            *zip(rest, non_trainable, strict=True),
        ]
        with keras.StatelessScope(mapping, collect_losses=True) as scope:
            predicted = model(x, training=True)
            loss = model.compute_loss(x=x, y=y, y_pred=predicted, training=True)
            loss = self.optimizer.scale_loss(loss)
        after = [scope.get_current_value(v) for v in rest]
        return loss, [
            old if new is None else new
            for old, new in zip(non_trainable, after, strict=True)
        ]

    def predict(
        self, trainable: Sequence[Any], non_trainable: Sequence[Any], x: Any
    ) -> Any:
        """The model's outputs at inference."""
        outputs, _ = self.model.stateless_call(
            list(trainable), list(non_trainable), x, training=False
        )
        return outputs

    def __call__(self, state: TrainState, x: Any, y: Any) -> tuple[Any, TrainState]:
        """One train step.

        Returns:
            The loss before the update, scaled where the optimizer scales it, and the
            new state.
        """
        loss, non_trainable, gradients = self.gradients(state, x, y)
        return loss, self.update(state, non_trainable, gradients)

    def gradients(
        self, state: TrainState, x: Any, y: Any
    ) -> tuple[Any, list[Any], Any]:
        """The first half of a step: loss, new non-trainable values, gradients."""
        return self._gradient(self.loss, TrainState(*state), x, y)

    def update(
        self, state: TrainState, non_trainable: Any, gradients: Any
    ) -> TrainState:
        """The second half: the optimizer's update."""
        trainable, optimizer = self._update(self, TrainState(*state), gradients)
        return TrainState(list(trainable), list(non_trainable), list(optimizer))


def _jax_gradient(
    loss: Callable[..., Any], state: TrainState, x: Any, y: Any
) -> tuple[Any, list[Any], list[Any]]:
    import jax

    function = jax.value_and_grad(loss, has_aux=True)
    (value, non_trainable), gradients = function(
        state.trainable, state.non_trainable, x, y
    )
    return value, non_trainable, gradients


def _jax_update(step: FunctionalStep, state: TrainState, gradients: list[Any]) -> Any:
    return step.optimizer.stateless_apply(state.optimizer, gradients, state.trainable)


def _tf_gradient(
    loss: Callable[..., Any], state: TrainState, x: Any, y: Any
) -> tuple[Any, list[Any], list[Any]]:
    import tensorflow as tf

    trainable = [tf.convert_to_tensor(v) for v in state.trainable]
    with tf.GradientTape() as tape:
        tape.watch(trainable)
        value, non_trainable = loss(trainable, state.non_trainable, x, y)
    gradients = tape.gradient(
        value, trainable, unconnected_gradients=tf.UnconnectedGradients.ZERO
    )
    return value, non_trainable, [tf.convert_to_tensor(g) for g in gradients]


def _tf_update(step: FunctionalStep, state: TrainState, gradients: list[Any]) -> Any:
    """Keras' optimizers write to `tf.Variable`s, so `stateless_apply` fails here."""
    weights, _, own = step.variables
    after = runtime.pure_call(
        lambda: step.optimizer.apply(list(gradients), weights),
        [
            *zip(weights, state.trainable, strict=True),
            *zip(own, state.optimizer, strict=True),
        ],
    )
    return after[: len(weights)], after[len(weights) :]


def _apart(optimizer: Any, trainable: Sequence[Any]) -> Any:
    """A copy of an optimizer and its state, each variable's apart from the others'.

    The optimizers of this package join the state of small weights in one flat variable,
    but not where steps are pure.
    """
    copy = type(optimizer).from_config(optimizer.get_config())
    with runtime.pure():
        copy.build(list(trainable))
    for new, old in zip(copy.variables, optimizer.variables, strict=True):
        new.assign(old)
    return copy
