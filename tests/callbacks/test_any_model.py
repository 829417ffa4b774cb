"""Callbacks on models that their first batch builds, and on any train step."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_dlopt import callbacks, optimizers, schedules
from keras_dlopt.errors import ConfigError, ModelError

X = np.random.default_rng(0).normal(size=(32, 3)).astype("float32")
Y = X[:, :1] * 2


class Nested(keras.Model):
    """Subclassed, with a Sequential without Input inside."""

    def __init__(self):
        super().__init__()
        self.body = keras.Sequential(
            [keras.layers.Dense(4, activation="relu"), keras.layers.Dense(1)]
        )

    def call(self, x):
        return self.body(x)


def _sequential(*first):
    return keras.Sequential([*first, keras.layers.Dense(4), keras.layers.Dense(1)])


CALLBACKS = {
    "driven": lambda: callbacks.LossDrivenLearningRate(start=1e-2),
    "guard": lambda: callbacks.DivergenceGuard(check_every=2),
    "plateau": lambda: callbacks.ReduceOnPlateau("loss", patience=1, min_delta=9.0),
    "hypergradient": lambda: callbacks.HypergradientLearningRate(beta=0.2),
    "momentum": lambda: callbacks.ScheduledMomentum(schedules.OneCycle(0.1, steps=4)),
}


def _fit(model, *extra, epochs=2, **options):
    return model.fit(
        X,
        Y,
        batch_size=8,
        epochs=epochs,
        shuffle=False,
        verbose=0,
        callbacks=list(extra),
        **options,
    ).history


def _trained(build, name, optimizer):
    keras.utils.set_random_seed(1)
    model = build()
    model.compile(optimizer, "mse")
    history = _fit(model, CALLBACKS[name]())
    return history, [v.numpy() for v in (*model.weights, *model.optimizer.variables)]


@pytest.mark.parametrize("name", CALLBACKS)
@pytest.mark.parametrize("build", [_sequential, Nested])
def test_a_model_without_input_trains_as_one_with_it(name, build):
    def eager():
        model = build()
        model(X[:1])
        return model

    late = _trained(build, name, keras.optimizers.Adam(0.01))
    early = _trained(eager, name, keras.optimizers.Adam(0.01))
    assert late[0] == early[0]
    for a, b in zip(late[1], early[1], strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("build", [_sequential, Nested])
def test_the_finder_leaves_a_model_without_input_as_it_was_built(build):
    keras.utils.set_random_seed(1)
    model = build()
    model.compile(keras.optimizers.Adam(0.01), "mse")
    found = callbacks.LearningRateFinder(steps=10).find(model, X, Y, batch_size=8)
    assert np.isfinite(found.losses).all()
    keras.utils.set_random_seed(1)
    plain = build()
    plain(X[:1])
    for a, b in zip(model.weights, plain.weights, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())
    assert int(model.optimizer.iterations) == 0
    assert float(model.optimizer.learning_rate) == pytest.approx(0.01)


def _two_rates():
    table = keras.optimizers.OptimizerMap(keras.optimizers.Adam(0.01))
    table[".*bias"] = optimizers.SGD(0.04)
    return keras.optimizers.MultiOptimizer(table)


@pytest.mark.parametrize("name", [n for n in CALLBACKS if n != "momentum"])
def test_the_rates_of_a_multi_optimizer_keep_their_ratio(name):
    keras.utils.set_random_seed(1)
    model = _sequential(keras.Input((3,)))
    model.compile(_two_rates(), "mse")
    x = X.copy()
    if name == "guard":
        x[8] = np.nan
    history = model.fit(
        x, Y, batch_size=8, epochs=2, verbose=0, callbacks=[CALLBACKS[name]()]
    ).history
    bias, default = (float(o.learning_rate) for o in model.optimizer.optimizers)
    assert bias == pytest.approx(4 * default, rel=1e-5)
    assert default != pytest.approx(0.01, rel=1e-3)
    if name != "plateau":  # logs the rate of the epoch, then lowers it
        assert history["learning_rate"][-1] == pytest.approx(default)


def test_the_finder_puts_both_rates_back():
    model = _sequential(keras.Input((3,)))
    model.compile(_two_rates(), "mse")
    callbacks.LearningRateFinder(steps=10).find(model, X, Y, batch_size=8)
    rates = [float(o.learning_rate) for o in model.optimizer.optimizers]
    assert rates == pytest.approx([0.04, 0.01])


def test_the_plateau_multiplies_a_schedule_beside_a_number():
    schedule = keras.optimizers.schedules.CosineDecay(0.1, 1000)
    table = keras.optimizers.OptimizerMap(keras.optimizers.SGD(0.01))
    table[".*bias"] = keras.optimizers.SGD(schedule)
    model = _sequential(keras.Input((3,)))
    model.compile(keras.optimizers.MultiOptimizer(table), "mse")
    _fit(model, callbacks.ReduceOnPlateau("loss", factor=0.5, patience=1, min_delta=9))
    bias, default = (float(o.learning_rate) for o in model.optimizer.optimizers)
    # The first epoch always improves on infinity, the second does not.
    assert default == pytest.approx(0.005)
    assert bias == pytest.approx(0.5 * float(schedule(8)), rel=1e-5)
    with pytest.raises(ConfigError, match="whose learning_rate is a schedule"):
        _fit(model, callbacks.LossDrivenLearningRate())


def test_a_function_as_map_needs_a_built_model():
    model = _sequential()
    one = keras.optimizers.SGD(0.1)
    model.compile(keras.optimizers.MultiOptimizer(lambda v: one), "mse")
    with pytest.raises(
        ConfigError, match="MultiOptimizer that is made from a function"
    ):
        _fit(model, callbacks.DivergenceGuard())
    model.build((None, 3))
    assert np.isfinite(_fit(model, callbacks.DivergenceGuard())["loss"]).all()


class Coder(keras.Model):
    """The train step of keras.io's variational autoencoder: its own means, no loss=."""

    def __init__(self):
        super().__init__()
        self.encode, self.decode = keras.layers.Dense(2), keras.layers.Dense(3)
        self.total = keras.metrics.Mean(name="total_loss")
        self.part = keras.metrics.Mean(name="kl_loss")

    @property
    def metrics(self):
        return [self.total, self.part]

    def train_step(self, data):
        with tf.GradientTape() as tape:
            code = self.encode(data)
            part = tf.reduce_mean(tf.square(code))
            loss = tf.reduce_mean(tf.square(self.decode(code) - data)) + 0.1 * part
        gradients = tape.gradient(loss, self.trainable_weights)
        self.optimizer.apply_gradients(
            zip(gradients, self.trainable_weights, strict=True)
        )
        self.total.update_state(loss)
        self.part.update_state(part)
        return {"loss": self.total.result(), "kl_loss": self.part.result()}


def _coder(*extra, epochs=2):
    keras.utils.set_random_seed(1)
    model = Coder()
    model.compile(optimizer=keras.optimizers.Adam(0.01))
    model.fit(X, batch_size=8, epochs=epochs, verbose=0, callbacks=list(extra))
    return model


def test_a_loss_by_another_name_is_found():
    guarded, plain = _coder(callbacks.DivergenceGuard()), _coder()
    assert guarded.history.history["loss"] == pytest.approx(
        plain.history.history["loss"], rel=1e-6
    )
    assert guarded.history.history["kl_loss"] == plain.history.history["kl_loss"]
    for a, b in zip(guarded.weights, plain.weights, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())
    driven = _coder(callbacks.LossDrivenLearningRate(start=1e-3))
    assert float(driven.optimizer.learning_rate) != pytest.approx(1e-3)
    assert np.isfinite(driven.history.history["loss"]).all()


class Bare(keras.Model):
    """A train step that returns its loss as it is, and keeps no mean of it."""

    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(1)

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(self.dense(x) - y))
        gradients = tape.gradient(loss, self.trainable_weights)
        self.optimizer.apply(gradients, self.trainable_weights)
        return {"loss": loss}


def test_a_loss_without_a_mean_is_taken_from_the_logs():
    model = Bare()
    model.compile(keras.optimizers.SGD(0.1))
    x = X.copy()
    x[8] = np.nan
    guard = callbacks.DivergenceGuard()
    model.fit(x, Y, batch_size=8, verbose=0, shuffle=False, callbacks=[guard])
    assert guard.undone == 1
    assert np.isfinite(model.dense.kernel.numpy()).all()


class Two(keras.Model):
    """The train step of keras.io's GAN: two optimizers of its own, no "loss"."""

    def __init__(self):
        super().__init__()
        self.maker, self.judge = keras.layers.Dense(3), keras.layers.Dense(1)

    def compile(self, one, two):
        super().compile()
        self.one, self.two = one, two

    def train_step(self, data):
        losses = {}
        for name, layer, optimizer in (
            ("d_loss", self.judge, self.one),
            ("g_loss", self.maker, self.two),
        ):
            with tf.GradientTape() as tape:
                losses[name] = tf.reduce_mean(tf.square(self.judge(self.maker(data))))
            weights = layer.trainable_weights
            gradients = tape.gradient(losses[name], weights)
            optimizer.apply_gradients(zip(gradients, weights, strict=True))
        return losses


def _two(*extra, x=X):
    keras.utils.set_random_seed(1)
    model = Two()
    model.compile(keras.optimizers.Adam(0.01), keras.optimizers.SGD(0.02))
    model.fit(x, batch_size=8, verbose=0, shuffle=False, callbacks=list(extra))
    return model


def test_a_guard_undoes_every_optimizer_of_a_step():
    x = X.copy()
    x[8] = np.nan
    guarded = _two(callbacks.DivergenceGuard(factor=0.5), x=x)
    assert float(guarded.one.learning_rate) == pytest.approx(0.005)
    assert float(guarded.two.learning_rate) == pytest.approx(0.01)
    values = [*guarded.weights, *guarded.one.variables, *guarded.two.variables]
    assert all(np.isfinite(v.numpy()).all() for v in values)
    assert int(guarded.one.iterations) == int(guarded.two.iterations) == 3


@pytest.mark.parametrize(
    ("callback", "text"),
    [
        (lambda: callbacks.LossDrivenLearningRate(), "keeps no mean of its loss"),
        (
            lambda: callbacks.ReduceOnPlateau("g_loss"),
            r"train_step of Two does not use model.optimizer.*\['adam.*', 'sgd.*'\]",
        ),
    ],
)
def test_what_such_a_step_does_not_give_is_said(callback, text):
    with pytest.raises(ModelError, match=text):
        _two(callback())


def test_an_eager_step_of_its_own_must_be_traceable():
    class Eager(Bare):
        def train_step(self, data):
            data[0].numpy()
            return super().train_step(data)

    model = Eager()
    model.compile(keras.optimizers.SGD(0.1), run_eagerly=True)
    with pytest.raises(ModelError, match=r"cannot be traced.*without \.numpy\(\)"):
        _fit(model, callbacks.DivergenceGuard())
