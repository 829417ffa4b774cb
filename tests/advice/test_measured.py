"""Measuring, calibrating and comparing: what refused data and models are told."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import Input, layers

import keras_dlopt as dlopt
from keras_dlopt import Prune, Recipe, finalize, named, post_training, report, transform
from keras_dlopt.measure import profile_fit
from keras_dlopt.report import measuring
from keras_dlopt.report.examples import numbered, predicted
from keras_dlopt.report.health.numbers import risky
from keras_dlopt.report.regression import errors
from keras_dlopt.report.training import Recorder, training_figure

advice = pytest.mark.advice
X = np.random.default_rng(0).normal(size=(16, 4)).astype("float32")
Y = np.arange(16) % 3
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def net(*, compiled=True):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([Input((4,)), layers.Dense(3, name="d")], name="m")
    if compiled:
        model.compile("sgd", LOSS)
    return model


# -- auto ------------------------------------------------------------------------------


def measured(model, y=Y, **options):
    return dlopt.sensitivity(model, (X, y), sparsities=(0.5,), bits=(8,), **options)


@advice("auto/sensitivity.py", "Measure finalize(model), or the model from before.")
@advice(
    "auto/sensitivity.py", "Compile the model with one, or pass loss=keras.losses.Sp"
)
@advice("auto/sensitivity.py", "Delete it; everything is measured again.")
@advice("auto/sensitivity_result.py", "Use quality='loss'.")
def test_sensitivity(told, tmp_path):
    small = transform(net(), Recipe([(named("kernel"), Prune(0.5))]))
    with told():
        measured(small, loss=LOSS)
    for model in (finalize(small), net()):
        assert len(measured(model, loss=LOSS).rows) == 2
    with told():
        measured(net(compiled=False))
    first = measured(net())
    assert measured(net(compiled=False), loss=LOSS) == first
    cache = tmp_path / "cache.json"
    cache.write_text("{")
    with told():
        measured(net(), cache=cache)
    cache.unlink()
    assert measured(net(), cache=cache) == first
    regression = measured(net(), y=X[:, :3], loss="mse")
    with told():
        regression.costs("bits", quality="accuracy")
    assert list(regression.costs("bits", quality="loss")) == ["d/kernel"]


# -- post_training ---------------------------------------------------------------------


def quantized(data, **options):
    return post_training.quantize(net(), data, **options)


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        pytest.param(
            X[:0],
            X,
            marks=advice("post_training/data.py", "Give some hundred examples of what"),
        ),
        pytest.param(
            tf.data.Dataset.from_tensor_slices(X).batch(8).repeat(),
            tf.data.Dataset.from_tensor_slices(X).batch(8).repeat().take(8),
            marks=advice("post_training/data.py", "Take some batches of them, such as"),
        ),
        pytest.param(
            [X, Y],
            X,
            marks=advice("post_training/data.py", "Give batches of inputs, without la"),
        ),
        pytest.param(
            np.where(X > 1, np.nan, X),
            X[(X <= 1).all(1)],
            marks=advice("post_training/data.py", "Remove the examples with NaN or in"),
        ),
    ],
)
def test_calibration_data(told, wrong, right):
    with told():
        quantized(wrong)
    assert np.isfinite(quantized(right)(X)).all()


@advice(
    "post_training/adaround.py", "Use quantize(model, data, weights=FakeQuant(bits="
)
@advice("post_training/mixed.py", "Allow fewer bits, raise the budget, or make the")
def test_rounding_and_budgets(told):
    with told():
        post_training.adaround(
            transform(net(), Recipe([(named("kernel"), Prune(0.5))])), X, steps=1
        )
    small = quantized(X, weights=dlopt.FakeQuant(bits=4))
    post_training.adaround(small, X, steps=1)
    wide = keras.Sequential([Input((16,)), layers.Dense(16, name="w")], name="wide")

    def mixed(model, bits, budget):
        x = np.zeros((4, *model.input_shape[1:]), "float32")
        found = post_training.mixed_precision(model, x, bits=bits, budget=budget)
        return set(found.bits.values())

    with told():
        mixed(wide, (4, 8), 160)
    assert mixed(wide, (2, 4), 160) == {2}
    assert mixed(wide, (4, 8), 192) == {4}
    rank = Recipe([(named("kernel"), dlopt.LowRank(2))])
    assert mixed(dlopt.factorize(wide, rank), (4, 8), 160) <= {4, 8}


# -- report ----------------------------------------------------------------------------


def batches(x, y):
    return tf.data.Dataset.from_tensor_slices((x, y))


@advice("report/examples.py", "Give a part of it, with data.take(n).")
@advice("report/examples.py", "Call data.batch(n).")
@advice(
    "report/examples.py", "Compare models of one: keras.Model(model.inputs, model.ou"
)
@advice(
    "report/examples.py", "Give class_names=(...), a name per output in the order of"
)
def test_examples(told):
    with told():
        report.compare(net(), net(), batches(X, Y).batch(8).repeat())
    endless = batches(X, Y).batch(8).repeat().take(2)
    same = report.compare(net(), net(), endless)
    with told():
        predicted((net(),), batches(X, Y), batch_size=8)
    (rows,), labels = predicted((net(),), batches(X, Y).batch(8), batch_size=8)
    assert rows.shape == (16, 3)
    assert labels.tolist() == Y.tolist()
    x = Input((4,))
    two = keras.Model(x, [layers.Dense(3, name="a")(x), layers.Dense(2, name="b")(x)])
    with told():
        report.compare(two, two, (X, Y))
    one = keras.Model(two.inputs, two.outputs[0])
    assert report.compare(one, one, (X, Y))
    names = ("ant", "bee", "cat")
    words = np.array(names)[Y]
    with told():
        report.compare(net(), net(), (X, words))
    assert numbered(words, names).tolist() == Y.tolist()
    named_ = report.compare(net(), net(), (X, words), class_names=names)
    # Batches of 8 and of 16 are multiplied by other kernels, and round differently.
    for found in ("accuracy", "negative_log_likelihood"):
        one, two = (getattr(c.after.quality, found) for c in (named_, same))
        assert one == pytest.approx(two, abs=1e-6)


@advice(
    "report/regression.py", "Leave such targets out; if it is the outputs, the train"
)
@advice("report/training.py", "Draw a figure for each.")
def test_regressions_and_figures(told):
    outputs = np.arange(4.0)
    for wrong in ((outputs, [0, np.nan, 2, 3]), ([0, np.inf, 2, 3], outputs)):
        with told():
            errors(*map(np.asarray, wrong))
    keep = [0, 2, 3]
    assert errors(outputs[keep], outputs[keep]).largest_error == 0

    def training(steps):
        recorder, model = Recorder(), net(compiled=False)
        model.compile("sgd", LOSS, steps_per_execution=steps)
        model.fit(X, Y, batch_size=4, verbose=0, callbacks=[recorder])
        return recorder.recording(f"{steps} a call")

    traces = [training(steps) for steps in (1, 2)]
    with told():
        training_figure(traces)
    for one in traces:
        assert training_figure([one]).png.startswith(b"\x89PNG")


# -- measure ---------------------------------------------------------------------------


def profiled(model, x=X, y=Y, **options):
    given = {"batch_size": 8, "steps": 2, "rounds": 1, **options}
    return profile_fit(model, x, y, **given).batch_size


@advice("measure/profile.py", "with an optimizer. Call compile() first.")
@advice("measure/profile.py", "Give at least one batch.")
@advice("measure/profile.py", "Give more, or a smaller batch_size.")
def test_profiles(told):
    with told():
        profiled(net(compiled=False))
    with told():
        profiled(net(), X[:4], Y[:4])
    assert profiled(net()) == 8
    assert profiled(net(), X[:4], Y[:4], batch_size=4) == 4
    data = batches(X, Y).batch(8)
    with told():
        profiled(net(), data.take(0), None)
    assert profiled(net(), data, None) == 8


@advice(
    "measure/profile.py", "Give data with targets, or time fit as a whole with tf.p"
)
def test_steps_without_parts(told):
    class Own(keras.Model):
        """Its step does on the data what its parts do not."""

        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(3)

        def call(self, x):
            return self.dense(x)

        def train_step(self, data):
            x, y = data if isinstance(data, tuple) else (data, 0.0)
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean((self(x, training=True) - y) ** 2)
            weights = self.trainable_variables
            self.optimizer.apply(tape.gradient(loss, weights), weights)
            return {"loss": loss}

    def own():
        model = Own()
        model.compile("sgd", "mse")
        return model

    with told():
        profiled(own(), X, None)
    assert profiled(own(), X, X[:, :3]) == 8
    assert own().fit(X, verbose=0).history["loss"]


@advice(
    "report/health/numbers.py", "Load the last weights that were finite, and train o"
)
def test_health_of_weights_that_are_not_finite(told):
    model = net()
    before = model.get_weights()
    model.set_weights([np.full_like(w, np.nan) for w in before])
    with told():  # it is a finding, not an error
        raise dlopt.errors.DataError(" ".join(f.text for f in risky(model)))
    model.set_weights(before)
    guard = dlopt.callbacks.DivergenceGuard()
    model.fit(X, Y, verbose=0, callbacks=[guard])
    assert not [f for f in risky(model) if f.kind == "not finite"]


@advice(
    "report/measuring.py", "Give the .keras, .h5 or .dlopt file that it was made from"
)
def test_files_that_hold_no_model(told, tmp_path):
    path = tmp_path / "m.tflite"
    dlopt.export.litert(net(), path)
    with told():
        measuring.load(path)
    net().save(tmp_path / "m.keras")
    dlopt.save_compressed(net(), tmp_path / "m.dlopt")
    for name in ("m.keras", "m.dlopt"):
        assert measuring.load(tmp_path / name).count_params() == 15
