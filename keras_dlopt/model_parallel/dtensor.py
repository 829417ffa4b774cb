"""A split model on the TensorFlow backend: a pure train step on DTensors."""

from collections.abc import Iterable
from typing import Any

import keras
import numpy as np

from keras_dlopt.errors import ConfigError, DataError
from keras_dlopt.model_parallel.functional import FunctionalStep, TrainState
from keras_dlopt.model_parallel.layout import BATCH, Axes, Layout


class SplitTrainer:
    """Trains a compiled model with its weights split over devices, on TensorFlow.

    Keras' optimizers change variables in place, which is silently wrong on DTensors. So
    the step here is a function of all state, which lives in DTensors between steps;
    `finish` writes it back into the model.

    Args:
        model: built and compiled.
        layout: which weight is split how. Slots of the optimizer follow their weight.
        device_type: `"CPU"`, `"GPU"` or `"TPU"`.

    Raises:
        ConfigError: on another backend, for a layout that does not fit, or with fewer
            devices than the mesh has.
        ModelError: for a model that is not built or not compiled.
    """

    def __init__(self, model: keras.Model, layout: Layout, *, device_type: str = "CPU"):
        if keras.backend.backend() != "tensorflow":
            raise ConfigError(
                "SplitTrainer is for the TensorFlow backend. Received: "
                f"{keras.backend.backend()}. On JAX use split_model."
            )
        self.model, self.layout = model, layout
        self._axes = layout.axes_of(model)
        self._mesh = _mesh(layout, device_type)
        self._step = FunctionalStep(model)
        variables = self._step.variables
        self._layouts = TrainState(
            *([self._layout_of(v) for v in group] for group in variables)
        )
        self._state = TrainState(
            *(
                [self._placed(v, where) for v, where in zip(*both, strict=True)]
                for both in zip(variables, self._layouts, strict=True)
            )
        )
        self._function: Any = None

    def _layout_of(self, variable: Any) -> Any:
        from tensorflow.experimental import dtensor

        axes = self._axes.get(variable.path) or self._axes_of_slot(variable)
        if axes is None:
            return dtensor.Layout.replicated(self._mesh, rank=len(variable.shape))
        return dtensor.Layout([a or dtensor.UNSHARDED for a in axes], self._mesh)

    def _axes_of_slot(self, variable: Any) -> Axes | None:
        """The split of the weight that an optimizer's variable belongs to."""
        name = variable.path.rsplit("/", 1)[-1]
        for weight in self.model.trainable_variables:
            same = name.startswith(weight.path.replace("/", "_") + "_")
            if same and tuple(weight.shape) == tuple(variable.shape):
                return self._axes.get(weight.path)
        return None

    def _placed(self, value: Any, layout: Any) -> Any:
        import tensorflow as tf
        from tensorflow.experimental import dtensor

        whole = dtensor.Layout.replicated(self._mesh, rank=len(value.shape))
        value = tf.constant(keras.ops.convert_to_numpy(value))
        return dtensor.relayout(dtensor.copy_to_mesh(value, whole), layout)

    def _whole(self, value: Any) -> Any:
        from tensorflow.experimental import dtensor

        rank = len(value.shape)
        return dtensor.relayout(value, dtensor.Layout.replicated(self._mesh, rank=rank))

    def _build(self) -> Any:
        import tensorflow as tf
        from tensorflow.experimental import dtensor

        def step(
            trainable: Any, non_trainable: Any, optimizer: Any, x: Any, y: Any
        ) -> Any:
            state = TrainState(trainable, non_trainable, optimizer)
            # DTensor multiplies split matrices but convolves with whole kernels only:
            # those are put together for the forward and backward pass.
            used = [self._whole(v) if len(v.shape) > 2 else v for v in trainable]
            loss, rest, gradients = self._step.gradients(
                state._replace(trainable=used), x, y
            )
            gradients = [self._whole(g) if len(g.shape) > 2 else g for g in gradients]
            split = zip(gradients, self._layouts.trainable, strict=True)
            gradients = [dtensor.relayout(g, where) for g, where in split]
            after = self._step.update(state, rest, gradients)
            return loss, *(
                [dtensor.relayout(v, where) for v, where in zip(*both, strict=True)]
                for both in zip(after, self._layouts, strict=True)
            )

        return tf.function(step, autograph=False)

    def train_on_batch(self, x: Any, y: Any) -> float:
        """One step; returns the loss before it.

        Raises:
            DataError: for a batch that the `"batch"` axis of the mesh does not divide.
        """
        if self._function is None:
            self._function = self._build()
        x, y = (keras.tree.map_structure(self._batch, value) for value in (x, y))
        loss, *state = self._function(*self._state, x, y)
        self._state = TrainState(*state)
        return float(loss.numpy())

    def _batch(self, value: Any) -> Any:
        from tensorflow.experimental import dtensor

        value = np.asarray(value)
        parts = self.layout.mesh[BATCH]
        if len(value) % parts:
            raise DataError(
                f"A batch of {len(value)} cannot be split over the {parts} devices of "
                "the mesh axis 'batch'. Use a multiple, with drop_remainder=True."
            )
        where = dtensor.Layout.batch_sharded(self._mesh, BATCH, rank=value.ndim)
        if parts == 1:
            where = dtensor.Layout.replicated(self._mesh, rank=value.ndim)
        return self._placed(value, where)

    def fit(
        self, batches: Iterable[tuple[Any, Any]], *, epochs: int = 1
    ) -> list[float]:
        """Trains on (x, y) batches; returns the mean loss of each epoch.

        Args:
            batches: iterated once an epoch: a list or data set, not a generator.
            epochs: how often.

        Raises:
            DataError: for an epoch without a batch, or batches that are no pairs.
        """
        losses = []
        for epoch in range(epochs):
            found = []
            for batch in batches:
                if not isinstance(batch, tuple | list) or len(batch) != 2:
                    raise DataError(
                        "SplitTrainer takes batches (x, y), without weights. "
                        f"Received: {type(batch).__name__} of {len(batch)} parts."
                    )
                found.append(self.train_on_batch(*batch))
            if not found:
                raise DataError(
                    f"There was no batch in epoch {epoch + 1}. A generator gives its "
                    "batches once; pass a list or a tf.data.Dataset."
                )
            losses.append(float(np.mean(found)))
        return losses

    def bytes_by_device(self) -> list[int]:
        """Bytes of all state that each device of the mesh holds."""
        from tensorflow.experimental import dtensor

        total = np.zeros(self.layout.devices, "int64")
        for group in self._state:
            for value in group:
                parts = dtensor.unpack(value)
                total += [part.numpy().nbytes for part in parts]
        return total.tolist()

    def finish(self) -> keras.Model:
        """Writes weights and optimizer state into the model, and returns it."""
        groups = ([self._whole(v).numpy() for v in group] for group in self._state)
        self._step.assign(TrainState(*groups))
        self._step.store_optimizer()
        return self.model


def _mesh(layout: Layout, device_type: str) -> Any:
    import tensorflow as tf
    from tensorflow.experimental import dtensor

    found = tf.config.list_logical_devices(device_type)
    if len(found) < layout.devices:
        raise ConfigError(
            f"The mesh {dict(layout.mesh)} has {layout.devices} devices, and there are "
            f"{len(found)} of type {device_type}. For a trial on a CPU call "
            "tf.config.set_logical_device_configuration before anything else."
        )
    names = [f"{device_type}:{i}" for i in range(layout.devices)]
    return dtensor.create_mesh(list(layout.mesh.items()), devices=names)
