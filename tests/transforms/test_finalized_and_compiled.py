"""What `finalize` returns evaluates, trains and loads as its parent does."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_dlopt as dlopt
from keras_dlopt import callbacks, optimizers

RNG = np.random.default_rng(0)
X = RNG.normal(size=(24, 5)).astype("float32")
A, B = RNG.integers(0, 3, 24), RNG.normal(size=(24, 2)).astype("float32")
RECIPE = dlopt.Recipe(
    [(dlopt.named("kernel"), dlopt.Prune(0.5) >> dlopt.FakeQuant(bits=4))]
)


@keras.saving.register_keras_serializable("tests")
def registered(y, predicted):
    return keras.ops.mean(keras.ops.abs(y - predicted), axis=-1)


def unregistered(y, predicted):
    return keras.ops.mean(keras.ops.abs(y - predicted), axis=-1)


def _one():
    parts = [
        layers.Dense(4, activation="relu", kernel_regularizer="l2"),
        layers.Dense(2),
    ]
    return keras.Sequential([keras.Input((5,)), *parts])


def _two():
    inputs = keras.Input((5,))
    x = layers.BatchNormalization()(layers.Dense(4)(inputs))
    outputs = {"a": layers.Dense(3, name="a")(x), "b": layers.Dense(2, name="b")(x)}
    return keras.Model(inputs, outputs)


class Own(keras.Model):
    def __init__(self, **options):
        super().__init__(**options)
        self.body = _one()

    def build(self, shape):
        self.built = True

    def call(self, x):
        return self.body(x)

    def compute_loss(self, x, y, y_pred, sample_weight=None, training=True):
        return 2.0 * super().compute_loss(x, y, y_pred, sample_weight, training)


def _layered():
    """No TransformedModel, but layers that are transformed."""
    inner = dlopt.transforms.TransformedLayer(layers.Dense(2), RECIPE)
    return keras.Sequential([keras.Input((5,)), layers.Dense(4), inner])


def _named():
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return {
        "loss": {"a": loss, "b": "mse"},
        "loss_weights": {"a": 1.0, "b": 0.5},
        "metrics": {"a": ["accuracy"], "b": [keras.metrics.RootMeanSquaredError()]},
    }


CASES = {
    "sequential": (_one, lambda: {"loss": "mse", "metrics": ["mae"]}, B),
    "several_steps": (_one, lambda: {"loss": "mse", "steps_per_execution": 2}, B),
    "registered": (_one, lambda: {"loss": registered, "metrics": [registered]}, B),
    "two_outputs": (_two, _named, {"a": A, "b": B}),
    "subclassed": (Own, lambda: {"loss": "mse", "weighted_metrics": ["mae"]}, B),
    "transformed_layer": (_layered, lambda: {"loss": "mse", "metrics": ["mae"]}, B),
}


def _trained(name, **options):
    build, arguments, y = CASES[name]
    keras.utils.set_random_seed(1)
    model = build()
    if isinstance(model, Own):
        model(X[:1])
    small = model if name == "transformed_layer" else dlopt.transform(model, RECIPE)
    small.compile(optimizers.Adam(0.02), **{**arguments(), **options})
    extra = [callbacks.DivergenceGuard()] if name == "sequential" else []
    if name == "transformed_layer":
        extra = [dlopt.transforms.UpdateTransforms()]
    small.fit(X, y, batch_size=8, verbose=0, callbacks=extra)
    return small, y


@pytest.mark.parametrize("copy", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_it_evaluates_as_the_transformed_model(name, copy):
    small, y = _trained(name)
    wanted = small.evaluate(X, y, batch_size=8, verbose=0, return_dict=True)
    state = [v.numpy() for v in small.optimizer.variables]
    plain = dlopt.finalize(small, copy=copy)
    found = plain.evaluate(X, y, batch_size=8, verbose=0, return_dict=True)
    assert list(found) == list(wanted)
    assert found == pytest.approx(wanted, rel=1e-5)
    assert plain.steps_per_execution == small.steps_per_execution
    # It has an optimizer of its own, and trains with it.
    assert type(plain.optimizer) is type(small.optimizer)
    assert plain.optimizer is not small.optimizer
    assert float(plain.optimizer.learning_rate) == pytest.approx(0.02)
    before = [w.numpy() for w in plain.trainable_weights]
    plain.fit(X, y, batch_size=8, verbose=0)
    moved = zip(before, plain.trainable_weights, strict=True)
    assert all(not np.array_equal(a, b.numpy()) for a, b in moved)
    for a, b in zip(state, small.optimizer.variables, strict=True):
        np.testing.assert_array_equal(a, b.numpy())


@pytest.mark.parametrize("name", ["sequential", "registered", "two_outputs"])
def test_a_file_of_it_loads(name, tmp_path):
    small, y = _trained(name)
    dlopt.finalize(small).save(tmp_path / "plain.keras")
    # As of any model that was compiled and not trained: no state of an optimizer.
    with pytest.warns(UserWarning, match="Skipping variable loading for optimizer"):
        loaded = keras.saving.load_model(tmp_path / "plain.keras")
    wanted = small.evaluate(X, y, verbose=0, return_dict=True)
    assert loaded.evaluate(X, y, verbose=0, return_dict=True) == pytest.approx(
        wanted, rel=1e-5
    )


@pytest.mark.parametrize(
    "options",
    [
        {"loss": unregistered},
        {"loss": lambda y, predicted: keras.ops.mean(y - predicted, axis=-1)},
        {"metrics": [unregistered]},
    ],
)
def test_what_no_file_could_hold_leaves_it_uncompiled(options, tmp_path):
    """A file of the finalized model loads without the user's code, as before."""
    small, y = _trained("sequential", **options)
    plain = dlopt.finalize(small)
    assert not plain.compiled
    with pytest.raises(ValueError, match="You must call `compile"):
        plain.evaluate(X, y, verbose=0)
    plain.save(tmp_path / "plain.keras")
    loaded = keras.saving.load_model(tmp_path / "plain.keras")
    loaded.compile(optimizers.Adam(0.02), **{**CASES["sequential"][1](), **options})
    wanted = small.evaluate(X, y, verbose=0)
    assert loaded.evaluate(X, y, verbose=0) == pytest.approx(wanted, rel=1e-5)


def test_a_model_that_was_not_compiled_is_not():
    assert not dlopt.finalize(dlopt.transform(_one(), RECIPE)).compiled
