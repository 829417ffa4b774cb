"""AveragedWeights: what sees the averages, and that training does not notice."""

import keras
import numpy as np
import pytest

from keras_dlopt import optimizers
from keras_dlopt.callbacks import AveragedWeights
from keras_dlopt.errors import ConfigError, ModelError

X = np.random.default_rng(0).normal(size=(32, 3)).astype("float32")
Y = X[:, :1] * 2
STEPS, EPOCHS, KEEP = 4, 3, 0.9  # of an epoch; PERIOD does not divide them
PERIOD, ALPHA = 3, 0.5


def _sgd(**options):
    return optimizers.SGD(0.05, **options)


def _ema(kind=optimizers.Adam, **options):
    return kind(0.05, use_ema=True, ema_momentum=KEEP, **options)


def _multi():
    table = keras.optimizers.OptimizerMap(_ema())
    table[".*bias"] = _ema(keras.optimizers.SGD)
    return keras.optimizers.MultiOptimizer(table)


OPTIMIZERS = {
    "ema": _ema,
    "keras": lambda: _ema(keras.optimizers.Adam),
    "free": lambda: optimizers.ScheduleFree(_sgd()),
    "lookahead": lambda: optimizers.Lookahead(_sgd(), period=PERIOD, alpha=ALPHA),
    "lookahead_of_keras": lambda: optimizers.Lookahead(
        keras.optimizers.Adam(0.05), period=PERIOD, alpha=ALPHA
    ),
    "lookahead_ema": lambda: optimizers.Lookahead(_ema(), period=100),
    "scaled": lambda: keras.optimizers.LossScaleOptimizer(_ema(), initial_scale=2.0),
    "scaled_lookahead": lambda: keras.optimizers.LossScaleOptimizer(
        optimizers.Lookahead(_sgd(), period=PERIOD, alpha=ALPHA), initial_scale=2.0
    ),
    "multi": _multi,
}


def _model(optimizer=None):
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(4),
            keras.layers.BatchNormalization(),
            keras.layers.Dense(1),
        ]
    )
    if optimizer is not None:
        model.compile(optimizer, "mse")
    return model


def _fit(model, *callbacks, epochs=EPOCHS):
    options = {"batch_size": 8, "epochs": epochs, "shuffle": False, "verbose": 0}
    data = {"validation_data": (X, Y), "callbacks": list(callbacks)}
    return model.fit(X, Y, **options, **data).history


class Steps(keras.callbacks.Callback):
    """Keeps the trained weights after each step, and all weights after an epoch."""

    def on_train_begin(self, logs=None):
        self.steps = [self._now(self.model.trainable_weights)]
        self.epochs, self.seen = [], []

    def on_train_batch_end(self, batch, logs=None):
        self.steps.append(self._now(self.model.trainable_weights))
        self.held = self._now(self.model.weights)

    def on_epoch_end(self, epoch, logs=None):
        self.epochs.append(self.held)
        self.seen.append(self._now(self.model.weights))

    def _now(self, weights):
        return [np.array(w, "float64") for w in weights]


def _wanted(name, steps):
    """The averages after the last of these steps, by the formulas."""
    if name == "free":  # not a function of the weights; see optimizers/test_rules.py
        return None
    if name in ("lookahead", "lookahead_of_keras", "scaled_lookahead"):
        return steps[(len(steps) - 1) // PERIOD * PERIOD]
    average = steps[1]  # Keras starts from the weights after the first step
    for step in steps[2:]:
        average = [
            KEEP * a + (1 - KEEP) * s for a, s in zip(average, step, strict=True)
        ]
    return average


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_epoch_is_validated_on_the_averages(name):
    plain, steps = _model(OPTIMIZERS[name]()), Steps()
    before = _fit(plain, steps)
    model, seen = _model(OPTIMIZERS[name]()), Steps()
    history = _fit(model, AveragedWeights(), seen)
    assert history["loss"] == before["loss"]  # training is the same, to the bit
    assert history["val_loss"] != before["val_loss"]
    twin = _model("sgd")
    for epoch in range(EPOCHS):
        wanted = _wanted(name, steps.steps[: 1 + (epoch + 1) * STEPS])
        twin.set_weights(seen.seen[epoch])
        if wanted is not None:
            for a, b in zip(twin.trainable_weights, wanted, strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
        # The statistics are those that training left.
        for a, b in zip(twin.weights[4:6], steps.epochs[epoch][4:6], strict=True):
            np.testing.assert_array_equal(a, b.astype("float32"))
        loss = twin.evaluate(X, Y, verbose=0)
        assert history["val_loss"][epoch] == pytest.approx(loss, rel=1e-5)
    for a, b in zip(model.weights, seen.seen[-1], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)
    assert "finalize_variable_values" not in vars(model.optimizer)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_checkpoints_and_early_stopping_hold_the_averages(name, tmp_path):
    model = _model(OPTIMIZERS[name]())
    saver = keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.keras")
    # Worse from the first epoch on: the last one's weights are not the best.
    stop = keras.callbacks.EarlyStopping(
        patience=1, mode="max", restore_best_weights=True
    )
    renewed = AveragedWeights(statistics_from=[X[:16], X[16:]])
    history = _fit(model, renewed, saver, stop, epochs=4)
    best = int(np.argmax(history["val_loss"]))
    assert best < len(history["val_loss"]) - 1
    losses = [model.evaluate(X, Y, verbose=0)]
    for epoch in range(len(history["val_loss"])):
        saved = keras.saving.load_model(tmp_path / f"{epoch + 1}.keras")
        losses.append(saved.evaluate(X, Y, verbose=0))
    assert losses[1:] == pytest.approx(history["val_loss"], rel=1e-5)
    assert losses[0] == pytest.approx(history["val_loss"][best], rel=1e-5)


@pytest.mark.parametrize("name", ["ema", "free", "lookahead"])
def test_statistics_are_those_of_the_averages(name):
    model, seen = _model(OPTIMIZERS[name]()), Steps()
    _fit(model, AveragedWeights(statistics_from=[X[:16], X[16:]]), seen)
    twin = _model()
    for weights in (*seen.seen, [w.numpy() for w in model.weights]):
        twin.set_weights(weights)
        norm, hidden = twin.layers[1], twin.layers[0](X).numpy()
        np.testing.assert_allclose(norm.moving_mean.numpy(), hidden.mean(0), atol=1e-6)
        halves = np.mean([hidden[:16].var(0), hidden[16:].var(0)], axis=0)
        np.testing.assert_allclose(norm.moving_variance.numpy(), halves, rtol=1e-5)
    assert model.layers[1].momentum == 0.99


class _Fails(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        raise OSError("the disk is full")


@pytest.mark.parametrize("name", ["ema", "free", "lookahead"])
def test_a_fit_that_broke_off_between_epochs_goes_on(name):
    """With the callback from the trained weights, without it from the averages."""
    averaged, steps = AveragedWeights(), Steps()
    model = _model(OPTIMIZERS[name]())
    with pytest.raises(OSError, match="disk is full"):
        _fit(model, averaged, steps, _Fails())
    seen = [w.numpy() for w in model.trainable_weights]
    _fit(model, averaged, again := Steps(), epochs=1)
    for a, b in zip(again.steps[0], steps.steps[-1], strict=True):
        np.testing.assert_array_equal(a, b)
    model = _model(OPTIMIZERS[name]())
    with pytest.raises(OSError, match="disk is full"):
        _fit(model, AveragedWeights(), _Fails())
    _fit(model, last := Steps(), epochs=1)
    for a, b in zip(last.steps[0], seen, strict=True):
        np.testing.assert_array_equal(a, b.astype("float64"))
    if name == "lookahead":  # nothing that `fit` puts in place of the last step
        for a, b in zip(model.trainable_weights, last.steps[-1], strict=True):
            np.testing.assert_array_equal(a, b.astype("float32"))


def test_averages_of_schedule_free_are_its_own():
    model, seen = _model(OPTIMIZERS["free"]()), Steps()

    class Read(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            read = self.model.optimizer.averages()
            self.last = [np.array(v, "float64") for v in read]

    read = Read()
    _fit(model, read, AveragedWeights(), seen)
    now = seen.seen[-1]
    for a, b in zip([*now[:4], *now[6:]], read.last, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)


def test_slow_weights_are_read_and_put_in_place():
    optimizer = OPTIMIZERS["lookahead"]()
    with pytest.raises(ModelError, match="no slow weights to read yet: train"):
        optimizer.averages()
    weight = keras.Variable([1.0])
    optimizer.build([weight])
    optimizer.put_slow_weights()  # before the first step: nothing
    for _ in range(PERIOD + 1):
        optimizer.apply([keras.ops.ones(1)], [weight])
    slow = 1 - ALPHA * PERIOD * 0.05
    assert float(weight[0]) == pytest.approx(slow - 0.05)
    assert float(optimizer.averages()[0][0]) == pytest.approx(slow)
    optimizer.put_slow_weights()
    assert float(weight[0]) == pytest.approx(slow)


def test_an_optimizer_without_averages_is_refused():
    text = "SGD keeps no averaged weights.*use_ema.*Lookahead"
    with pytest.raises(ConfigError, match=text):
        _fit(_model(keras.optimizers.SGD(0.1)), AveragedWeights())
    for advised in (_ema(), optimizers.ScheduleFree(_sgd()), OPTIMIZERS["lookahead"]()):
        _fit(_model(advised), AveragedWeights(), epochs=1)
