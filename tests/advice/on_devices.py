"""Advice that needs several CPU devices, followed in one process.

Prints `RESULT [check, ""]`, or the traceback in place of the empty text.
"""

import json
import sys
import traceback

import numpy as np

from keras_dlopt.distribute.build import split_cpu

split_cpu(2)

import keras
import tensorflow as tf

from keras_dlopt import distribute
from keras_dlopt.model_parallel import Layout, SplitTrainer, automatic_layout
from support.advice import Told

X = np.random.default_rng(0).normal(size=(16, 8)).astype("float32")
Y = np.arange(16) % 4
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
TWO = distribute.strategy("cpu:2")
CHECKS = []


def advice(place, text):
    """Marks a check, as `pytest.mark.advice` marks a test."""
    del place  # read from the source by support.advice

    def mark(check):
        marks = getattr(check, "marks", [])
        check.marks = [*marks, text]
        if not marks:
            CHECKS.append(check)
        return check

    return mark


def net(*layers):
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((8,)), *layers, keras.layers.Dense(4)])


def inside(*layers, optimizer="sgd", loss=LOSS, synchronized=False, **options):
    """A data-parallel model, all of it made in the scope."""
    with TWO.scope():
        model = net(*(layer() for layer in layers))
        if synchronized:
            distribute.synchronize(model)
        distribute.data_parallel(model)
        made = optimizer() if callable(optimizer) else optimizer
        model.compile(made, loss() if isinstance(loss, type) else loss, **options)
    return model


def fit(model, x=X, y=Y, **options):
    options = {"batch_size": 8, "verbose": 0, **options}
    assert np.isfinite(model.fit(x, y, **options).history["loss"]).all()


@advice("distribute/build.py", "before any other use of TensorFlow or Keras.")
@advice("distribute/build.py", "Give them to keras_dlopt.distribute.plan.")
def strategies(told):
    with told():
        distribute.strategy("cpu:8")
    # As this script did: TWO was made before anything else used TensorFlow.
    assert TWO.num_replicas_in_sync == 2
    plan = distribute.plan("cpu:2", batch_size=8)
    with told():
        distribute.strategy(plan, batch_size=16)
    plan = distribute.plan("cpu:2", batch_size=16)
    assert distribute.strategy(plan) is TWO


@advice("distribute/inference.py", "Build or load it inside `with strategy.scope():`.")
@advice("distribute/inference.py", "Make it with keras_dlopt.distribute.strategy(...)")
@advice(
    "distribute/inference.py", "Convert lists with numpy.asarray and generators with"
)
@advice("distribute/inference.py", "Leave repeat() out, or use dataset.take(...).")
def predicting(told):
    with told():
        distribute.predict(net(), X, TWO, batch_size=8)
    with TWO.scope():
        model = net()
    wanted = np.asarray(net()(X))
    data = tf.data.Dataset.from_tensor_slices(X).batch(8)

    def check(given, strategy=TWO):
        got = distribute.predict(model, given, strategy, batch_size=8)
        np.testing.assert_allclose(got, wanted, atol=1e-6)

    check(X)
    with told():
        check(X, "cpu:2")
    check(X, distribute.strategy("cpu:2"))

    def generator():
        yield from (X[:8], X[8:])

    with told():
        check(generator())
    spec = tf.TensorSpec((None, 8), tf.float32)
    check(tf.data.Dataset.from_generator(generator, output_signature=spec))
    check(np.asarray(X.tolist(), "float32"))
    with told():
        check(data.repeat())
    check(data)
    check(data.repeat().take(2))


@advice(
    "distribute/parallel.py", "Build and compile it inside `with strategy.scope():`."
)
@advice(
    "distribute/parallel.py", "Create it, and compile the model, inside `with strate"
)
@advice(
    "distribute/parallel.py", "Call compile() inside `with strategy.scope():` before"
)
@advice("distribute/parallel.py", "Call data_parallel once per model.")
def scopes(told):
    with TWO.scope():
        pass
    outside = net()
    with TWO.scope(), told():
        distribute.data_parallel(outside)
    with TWO.scope():
        model = distribute.data_parallel(net())
    with told():
        fit(model)
    optimizer = keras.optimizers.SGD(0.1)
    with TWO.scope():
        model.compile(optimizer, LOSS)
    with told():
        fit(model)
    with TWO.scope(), told():
        distribute.data_parallel(model)
    fit(inside())


@advice(
    "distribute/parallel.py", "Train it on one device, or add the distillation term"
)
def distilling(told):
    def distiller():
        logits = keras.distillation.LogitsDistillation()
        return keras.distillation.Distiller(net(), net(), logits)

    with TWO.scope(), told():
        distribute.data_parallel(distiller())
    alone = distiller()
    alone.compile("sgd", LOSS)
    fit(alone)
    teacher = np.asarray(net()(X))

    class Distilled(keras.losses.Loss):
        def call(self, y, predicted):
            wanted = keras.ops.softmax(y)
            return keras.losses.categorical_crossentropy(
                wanted, predicted, from_logits=True
            )

    fit(inside(loss=Distilled), y=teacher)


@advice("distribute/shares.py", "Return one value per example: leave the last mean out")
def losses_of_one_number(told):
    def mean(y, predicted):
        return keras.ops.mean(keras.ops.square(predicted - y))

    def each(y, predicted):
        return keras.ops.mean(keras.ops.square(predicted - y), axis=-1)

    class Whole(keras.losses.Loss):
        def __init__(self, reduction="sum_over_batch_size"):
            super().__init__(reduction=reduction)

        def call(self, y, predicted):
            return each(y, predicted)

    class CallsOne(keras.losses.Loss):
        def call(self, y, predicted):
            return Whole(reduction=None)(y, predicted)

    class CallsMean(keras.losses.Loss):
        def call(self, y, predicted):
            return Whole()(y, predicted)

    targets = np.zeros((16, 4), "float32")
    for wrong in (mean, CallsMean):
        with told():
            fit(inside(loss=wrong), y=targets)
    for right in (each, CallsOne):
        fit(inside(loss=right), y=targets)


@advice(
    "distribute/parallel.py", "Use the dtype policy 'mixed_bfloat16', which needs no"
)
def loss_scaling(told):
    def clipped():
        return keras.optimizers.SGD(0.1, clipnorm=1.0)

    def scaled():
        return keras.optimizers.LossScaleOptimizer(clipped())

    with told():
        fit(inside(optimizer=scaled))
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        fit(inside(optimizer=clipped))
    finally:
        keras.config.set_dtype_policy("float32")


@advice(
    "distribute/parallel.py", "Leave examples out, choose another batch_size, or use"
)
def uneven_batches(told):
    model = inside()
    with told():
        fit(model, X[:9], Y[:9])
    fit(model, X[:8], Y[:8])
    fit(model, X[:9], Y[:9], batch_size=3)
    plan = distribute.plan("cpu:2", batch_size=8, drop_remainder=True)
    data = tf.data.Dataset.from_tensor_slices((X[:9], Y[:9]))
    fit(model, distribute.prepare(data, plan), None, batch_size=None, shuffle=False)


@advice("distribute/parallel.py", "Compile with jit_compile=False.")
@advice(
    "distribute/normalization.py", "Call synchronize before fit(), or compile the mo"
)
def normalizing(told):
    layer = keras.layers.BatchNormalization
    with told():
        fit(inside(layer, synchronized=True, jit_compile=True))
    model = inside(layer, synchronized=True, jit_compile=False)
    fit(model)
    alone = net(layer())
    alone.compile("sgd", LOSS)
    fit(alone)
    with told():
        distribute.synchronize(alone)
    alone.compile("sgd", LOSS)
    assert distribute.synchronize(alone).layers[0].synchronized


@advice("distribute/shares.py", "takes all replicas. Compile with jit_compile=False.")
def weighing_in_xla(told):
    def trained(**options):
        loss = keras.losses.SparseCategoricalCrossentropy(
            from_logits=True, reduction="mean_with_sample_weight"
        )
        with TWO.scope():
            model = distribute.data_parallel(net())
            model.compile("sgd", loss, **options)
        fit(model, sample_weight=np.arange(16.0))

    with told():
        trained(jit_compile=True)
    trained(jit_compile=False)


@advice("model_parallel/dtensor.py", "Use a multiple, with drop_remainder=True.")
def split_batches(told):
    model = net(keras.layers.Dense(8))
    model.compile(keras.optimizers.SGD(0.1), LOSS)
    trainer = SplitTrainer(model, Layout({"batch": 2}))
    with told():
        trainer.train_on_batch(X[:5], Y[:5])
    data = tf.data.Dataset.from_tensor_slices((X[:13], Y[:13]))
    for x, y in data.batch(4, drop_remainder=True):
        assert np.isfinite(trainer.train_on_batch(x.numpy(), y.numpy()))
    assert automatic_layout(model, devices=2, least=4).rules


def main():
    failed = False
    for check in CHECKS:
        told, text = Told(check.marks), ""
        try:
            with np.errstate(all="ignore"):
                check(told)
            told.check()
        except BaseException:
            text, failed = traceback.format_exc(), True
        print("RESULT", json.dumps([check.__name__, text]), flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    import warnings

    # As under pytest: what warns without being told of fails.
    warnings.simplefilter("error", UserWarning)
    main()
