"""Puts a catalogued object into a small model and trains it for a few steps."""

import dataclasses
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from catalogue import Case
from contracts.equality import Calls, Run

BATCH, STEPS, CLASSES = 8, 4, 4


@dataclasses.dataclass
class Trial:
    """A compiled model, the data and callbacks it trains with."""

    model: keras.Model
    x: np.ndarray
    y: np.ndarray
    callbacks: list[Any]
    traces: list[int]

    def run(self, *, epochs: int = 1, passes: int = 1) -> Run:
        """Trains, and tells what came of it."""
        calls = Calls()
        self.callbacks.append(calls)
        history = self.fit(epochs=epochs, passes=passes).history
        return Run(self.weights(), history, calls.made)

    def fit(self, *, epochs: int = 1, passes: int = 1):
        """Trains, each epoch so many passes over the data; returns the history."""
        batches = tf.data.Dataset.from_tensor_slices((self.x, self.y)).batch(BATCH)
        batches = batches.repeat(passes)
        # tf.data's autotuning, of which arrays have no say, can idle for seconds.
        options = tf.data.Options()
        options.autotune.enabled = False
        return self.model.fit(
            batches.with_options(options),
            epochs=epochs,
            shuffle=False,
            verbose=0,
            callbacks=self.callbacks,
        )

    def weights(self) -> list[np.ndarray]:
        """The model's weights, in order."""
        return [
            np.asarray(keras.ops.convert_to_numpy(v.value)) for v in self.model.weights
        ]


def _base(shape, layer=None):
    inputs = keras.Input(shape)
    x = layer(inputs) if layer is not None else inputs
    if len(x.shape) > 2:
        x = keras.layers.Flatten()(x)
    x = keras.layers.Dense(8, activation="relu")(x)
    return keras.Model(inputs, keras.layers.Dense(CLASSES)(x))


def _conv():
    return keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            keras.layers.Conv2D(4, 3, use_bias=False),
            keras.layers.ReLU(),
            keras.layers.Flatten(),
            keras.layers.Dense(CLASSES),
        ]
    )


def _transformed(transform):
    import keras_dlopt as dlopt

    if transform.kind == "activation":
        selector = dlopt.named("output") & dlopt.inside(keras.layers.ReLU)
    else:
        selector = dlopt.named("kernel")
    return dlopt.transform(_conv(), dlopt.Recipe([(selector, transform)]))


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.hidden, self.out = _late_layers()

    def call(self, x):
        return self.out(self.hidden(x))


class Nested(keras.Model):
    def __init__(self):
        super().__init__()
        self.body = keras.Sequential(_late_layers())

    def call(self, x):
        return self.body(x)


def _late_layers():
    dense = keras.layers.Dense
    return [dense(8, activation="relu"), dense(CLASSES)]


# Models that their first batch builds.
LATE = {
    "sequential": lambda: keras.Sequential(_late_layers()),
    "subclassed": Subclassed,
    "nested": Nested,
}


def trial(
    case: Case,
    *,
    jit: bool = False,
    steps_per_execution: int = 1,
    late: str | None = None,
) -> Trial:
    """Builds and compiles the small model around one catalogued object.

    Args:
        case: of the catalogue.
        jit: as for `compile`.
        steps_per_execution: as for `compile`.
        late: of `LATE`, for callbacks, optimizers and schedules.
    """
    keras.utils.set_random_seed(7)
    obj = case.make()
    optimizer: Any = (case.optimizer or (lambda: keras.optimizers.SGD(0.05)))()
    callbacks: list[Any] = []
    shape = case.input_shape
    if case.kind == "transform":
        model, shape = _transformed(obj), (6, 6, 2)
    elif case.kind == "layer":
        model = _base(shape, obj)
    elif case.kind == "model":
        model = obj
    else:
        model = _base(shape) if late is None else LATE[late]()
        if case.kind == "optimizer":
            optimizer = obj
        elif case.kind == "schedule":
            optimizer = keras.optimizers.SGD(obj)
        elif case.kind == "callback":
            callbacks = [obj]
        else:
            raise AssertionError(f"unknown kind {case.kind}")
    traces: list[int] = []

    def loss(y_true, y_pred):
        traces.append(1)  # runs once per trace, not once per step
        return keras.losses.sparse_categorical_crossentropy(
            y_true, y_pred, from_logits=True
        )

    model.compile(
        optimizer=optimizer,
        loss=loss,
        jit_compile=jit,
        steps_per_execution=steps_per_execution,
    )
    rng = np.random.default_rng(3)
    x = rng.normal(size=(BATCH * STEPS, *shape)).astype("float32")
    if case.images:
        x = 1 / (1 + np.exp(-x))
    y = rng.integers(0, CLASSES, BATCH * STEPS).astype("int32")
    return Trial(model, x, y, callbacks, traces)
