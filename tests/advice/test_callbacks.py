"""Callbacks: what refused models and optimizers are told to do."""

import keras
import numpy as np
import pytest
from keras import Input, layers

from keras_dlopt import callbacks, optimizers
from keras_dlopt.callbacks import in_graph, rate
from keras_dlopt.callbacks.step_state import StepState

advice = pytest.mark.advice
X = np.random.default_rng(0).normal(size=(16, 3)).astype("float32")
Y = X.sum(1, keepdims=True)
SCHEDULE = keras.optimizers.schedules.CosineDecay(0.1, 100)


def sequential(*inputs):
    keras.utils.set_random_seed(0)
    return keras.Sequential([*inputs, layers.Dense(1)])


def fit(*given, optimizer=None, model=None, compiled=True, x=X, epochs=2):
    """The losses of a training, all finite."""
    model = sequential(Input((3,))) if model is None else model
    if compiled:
        model.compile(optimizer or keras.optimizers.SGD(0.1), "mse")
    history = model.fit(
        x, Y[: len(x)], batch_size=8, epochs=epochs, verbose=0, callbacks=list(given)
    )
    losses = history.history["loss"]
    assert losses
    assert np.isfinite(losses).all()
    return losses


@advice("callbacks/averaged.py", "Compile with use_ema=True, with optimizers.Schedule")
def test_averages_that_nobody_keeps(told):
    with told():
        fit(callbacks.AveragedWeights())
    for optimizer in (
        keras.optimizers.SGD(0.1, use_ema=True),
        optimizers.ScheduleFree(optimizers.SGD(0.1)),
        optimizers.Lookahead(optimizers.SGD(0.1)),
    ):
        fit(callbacks.AveragedWeights(), optimizer=optimizer)
    fit()


@advice("callbacks/finder.py", "Compile with a float learning_rate for the test.")
@advice("callbacks/finder.py", "Check that the data set is not empty.")
def test_range_tests(told, monkeypatch):
    model, finder = sequential(Input((3,))), callbacks.LearningRateFinder(steps=10)
    model.compile(keras.optimizers.SGD(SCHEDULE), "mse")
    with told():
        finder.find(model, X, Y)
    model.compile(keras.optimizers.SGD(0.1), "mse")
    with monkeypatch.context() as patched, told():  # Keras itself refuses no data
        patched.setattr(type(model), "fit", lambda *_, **__: None)
        finder.find(model, X[:0], Y[:0])
    assert len(finder.find(model, X, Y, batch_size=8).losses) == 10


class Explodes(keras.callbacks.Callback):
    """Weights that grow in each step, as they do at too high a rate."""

    def on_train_batch_end(self, batch, logs=None):
        if float(self.model.optimizer.learning_rate) > 0.01:
            for variable in self.model.trainable_variables:
                variable.assign(variable * 30.0)


@advice("callbacks/guard.py", "Start from a lower rate or check the data.")
def test_guards_that_give_up(told):
    guard = dict(smoothing=1, check_every=1, max_rollbacks=1)
    with told():
        fit(
            Explodes(),
            callbacks.DivergenceGuard(**guard),
            optimizer=keras.optimizers.SGD(0.05),
        )
    lower = keras.optimizers.SGD(0.005)
    assert (
        len(fit(Explodes(), callbacks.DivergenceGuard(**guard), optimizer=lower)) == 2
    )


@advice("callbacks/in_graph.py", "Call model.compile(optimizer=..., loss=...) first.")
@advice("callbacks/in_graph.py", "Use keras.callbacks.ReduceLROnPlateau or a schedule")
def test_models_that_are_not_ready(told, monkeypatch):
    model = sequential(Input((3,)))
    with told():
        callbacks.LossDrivenLearningRate().set_model(model)
    fit(callbacks.LossDrivenLearningRate(), model=model)
    with monkeypatch.context() as patched, told():
        patched.setattr(keras.backend, "backend", lambda: "torch")
        in_graph.hub_of(model)
    fit(keras.callbacks.ReduceLROnPlateau("loss"))
    fit(optimizer=keras.optimizers.SGD(SCHEDULE))


@advice(
    "callbacks/in_graph.py", "Train without it, or use a schedule as learning_rate."
)
def test_a_distribution(told, monkeypatch):
    hub = in_graph.StepHub(fitted())
    with monkeypatch.context() as patched:
        patched.setattr(keras.backend, "backend", lambda: "jax")
        patched.setattr(keras.distribution, "distribution", lambda: "two devices")
        with told():
            hub._around(lambda state, iterator: None)
        patched.setattr(keras.distribution, "distribution", lambda: None)
        assert callable(hub._around(lambda state, iterator: None))
    fit(optimizer=keras.optimizers.SGD(SCHEDULE))


def fitted(rate=0.1):
    model = sequential(Input((3,)))
    model.compile(keras.optimizers.SGD(rate), "mse")
    return model


@advice(
    "callbacks/in_graph.py", "Compile with auto_scale_loss=False, or use LossDriven"
)
def test_gradients_that_are_scaled(told):
    scaled = keras.optimizers.LossScaleOptimizer
    model = sequential(Input((3,)))
    model.compile(scaled(keras.optimizers.SGD(0.1)), "mse")
    with told():
        fit(callbacks.HypergradientLearningRate(), model=model, compiled=False)
    model.compile(keras.optimizers.SGD(0.1), "mse", auto_scale_loss=False)
    fit(callbacks.HypergradientLearningRate(), model=model, compiled=False)
    fit(callbacks.LossDrivenLearningRate(), optimizer=scaled(keras.optimizers.SGD(0.1)))


class Own(keras.Model):
    """A train step with an optimizer of its own, or the compiled one."""

    def __init__(self, *, own):
        super().__init__()
        self.dense = layers.Dense(1)
        self.own = keras.optimizers.SGD(0.1) if own else None

    def call(self, x):
        return self.dense(x)

    def train_step(self, data):
        import tensorflow as tf

        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(x, y, self(x, training=True))
        weights = self.trainable_variables
        gradients = tape.gradient(loss, weights)
        (self.own or self.optimizer).apply(gradients, weights)
        return {"loss": loss}


@advice("callbacks/in_graph.py", "Compile with the optimizer that train_step uses as")
def test_steps_with_another_optimizer(told):
    with told():
        fit(callbacks.ReduceOnPlateau("loss"), model=Own(own=True))
    fit(callbacks.ReduceOnPlateau("loss"), model=Own(own=False))
    several = keras.optimizers.MultiOptimizer(
        keras.optimizers.OptimizerMap(keras.optimizers.SGD(0.1))
    )
    fit(callbacks.ReduceOnPlateau("loss"), model=Own(own=False), optimizer=several)
    fit(model=Own(own=True))


@advice(
    "callbacks/loss_driven.py", "Compile with a float learning_rate, or use ReduceO"
)
@advice("callbacks/rate.py", "Compile with a float learning_rate to have it set.")
def test_rates_that_follow_a_schedule(told):
    with told():
        fit(
            callbacks.LossDrivenLearningRate(), optimizer=keras.optimizers.SGD(SCHEDULE)
        )
    fit(callbacks.LossDrivenLearningRate())
    fit(callbacks.ReduceOnPlateau("loss"), optimizer=keras.optimizers.SGD(SCHEDULE))
    for given in (SCHEDULE, 0.1):
        model = sequential(Input((3,)))
        model.compile(keras.optimizers.SGD(given), "mse")
        found = rate.rate_of(model, [model.optimizer])
        if given is SCHEDULE:
            with told():
                found.set(0.2)
        else:
            found.set(0.2)
            assert float(model.optimizer.learning_rate) == pytest.approx(0.2)


@advice(
    "callbacks/momentum.py", "Compile with one of these, or leave the callback out."
)
@advice("callbacks/momentum.py", "Compile with SGD(momentum=0.9) or Adam, or leave the")
def test_momentum(told):
    def scheduled():
        from keras_dlopt.schedules import OneCycle

        return callbacks.ScheduledMomentum(OneCycle(0.1, steps=8))

    for refused in (optimizers.RAdam(0.01), keras.optimizers.SGD(0.1)):
        with told():
            fit(scheduled(), optimizer=refused)
        fit(optimizer=refused)
    for taken in (
        keras.optimizers.SGD(0.1, momentum=0.9),
        optimizers.SGD(0.1, momentum=0.9),
        keras.optimizers.Adam(0.1),
        optimizers.RMSprop(0.01, momentum=0.9),
        optimizers.AdamW(0.1),
    ):
        fit(scheduled(), optimizer=taken)


class Host(layers.Layer):
    """Reads values on the host, which cannot be traced."""

    def call(self, x):
        return x + 0 * np.asarray(x)

    def compute_output_spec(self, x):
        return keras.KerasTensor(x.shape, x.dtype)


class HostStep(Own):
    def train_step(self, data):
        data[0].numpy()
        return super().train_step(data)


@advice(
    "callbacks/preparing.py", "Call the model once on a batch, or give it a keras.I"
)
@advice("callbacks/preparing.py", "Write it with operations of TensorFlow or keras.ops")
def test_steps_that_cannot_be_traced(told):
    def eager(model):
        model.compile(keras.optimizers.SGD(0.1), "mse", run_eagerly=True)
        return {"model": model, "compiled": False}

    guard = callbacks.DivergenceGuard
    with told():
        fit(guard(), **eager(sequential(Host())))
    called = sequential(Host())
    called(X[:1])
    fit(guard(), **eager(called))
    fit(guard(), **eager(sequential(Input((3,)), Host())))
    with told():
        fit(guard(), **eager(HostStep(own=False)))
    fit(guard(), **eager(Own(own=False)))
    fit(**eager(HostStep(own=False)))


@advice(
    "callbacks/rate.py", "Give it a keras.Input, or use a keras.optimizers.Optimize"
)
def test_optimizers_of_a_function(told):
    one = keras.optimizers.SGD(0.1)
    several = keras.optimizers.MultiOptimizer
    with told():
        fit(
            callbacks.DivergenceGuard(),
            model=sequential(),
            optimizer=several(lambda variable: one),
        )
    fit(callbacks.DivergenceGuard(), optimizer=several(lambda variable: one))
    table = several(keras.optimizers.OptimizerMap(keras.optimizers.SGD(0.1)))
    fit(callbacks.DivergenceGuard(), model=sequential(), optimizer=table)


@keras.saving.register_keras_serializable("my_package")
class Halving(keras.optimizers.schedules.LearningRateSchedule):
    def __call__(self, step):
        return 0.1 * 0.5 ** keras.ops.cast(step, "float32")

    def get_config(self):
        return {}


def tenth():
    return 0.1


@advice(
    "callbacks/rate.py", "Pass a float, or a schedule whose class is registered wit"
)
def test_rates_of_functions(told):
    with told():
        fit(
            callbacks.DivergenceGuard(),
            optimizer=keras.optimizers.SGD(tenth),
        )
    for taken in (0.1, Halving()):
        fit(callbacks.DivergenceGuard(), optimizer=keras.optimizers.SGD(taken))


def search(*, low=1e-4, high=1e-1, folds=2, build=fitted, **options):
    found = callbacks.LearningRateSearch(
        build, trials=1, epochs=1, low=low, high=high, folds=folds, **options
    )
    return found.run(X, Y)


@advice(
    "callbacks/search.py", "Use these settings to resume it, or another name or sto"
)
@advice("callbacks/search.py", "Lower both.")
def test_searches(told, tmp_path):
    kept = {"storage": f"sqlite:///{tmp_path / 'a.db'}"}
    first = search(**kept)
    with told():
        search(folds=3, **kept)
    assert search(**kept).best_rate == first.best_rate
    other = {"storage": f"sqlite:///{tmp_path / 'b.db'}"}
    for new in ({"name": "new", **kept}, other):
        assert search(folds=3, **new).best_rate == first.best_rate

    def build(given):
        return fitted(given if given < 1 else 1e30)

    with told():
        search(low=10.0, high=20.0, build=build)
    assert 1e-3 <= search(low=1e-3, high=1e-2, build=build).best_rate <= 1e-2


def steps(name, size):
    class Hub:
        optimizer_name = name
        variable = keras.Variable(np.zeros(size, "float32"))

        def named_variables(self):
            return [("guard_0_0", self.variable)]

        def named_hosts(self):
            return []

    return StepState(Hub())


@advice(
    "callbacks/step_state.py", "Resume with the callbacks, model and arguments that"
)
@advice("callbacks/step_state.py", "Compile the model with {} to resume, or delete the")
def test_state_of_other_runs(told):
    saved = {}
    steps("SGD", 2).save_own_variables(saved)
    saved["guard_0_0"] = np.array([3.0, 4.0])
    for other in (steps("SGD", 3), steps("Adam", 2)):
        with told():
            other.load_own_variables(saved)
        other.load_own_variables({})  # afresh
        assert other.hub.variable.numpy().sum() == 0
    same = steps("SGD", 2)
    same.load_own_variables(saved)
    assert same.hub.variable.numpy().tolist() == [3, 4]
