"""Checks that need several CPU devices, in one process.

Prints `RESULT [check, ""]`, or the traceback in place of the empty text.
"""

import json
import sys
import tempfile
import traceback
import warnings

import numpy as np

from keras_dlopt.distribute.build import split_cpu

split_cpu(4)

import keras
import pytest
import tensorflow as tf

import keras_dlopt as dlopt
from keras_dlopt import distribute
from keras_dlopt.errors import ConfigError, DataError, ModelError

RNG = np.random.default_rng(0)
X = RNG.normal(size=(26, 8)).astype("float32")
Y = RNG.integers(0, 4, 26).astype("int32")
TWO = distribute.strategy("cpu:2")


def net(*layers):
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [keras.Input((8,)), keras.layers.Dense(16), *layers, keras.layers.Dense(4)]
    )


def loss():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def parallel(*layers, optimizer=keras.optimizers.SGD, compression=None):
    with TWO.scope():
        model = net(*(layer() for layer in layers))
        distribute.data_parallel(model, compression=compression)
        model.compile(optimizer(0.1), loss())
    return model


def sgd(rate):
    return dlopt.optimizers.SGD(rate, momentum=0.9)


def examples():
    return tf.data.Dataset.from_tensor_slices((X, Y))


def quiet(dataset):
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)


def raises(kind, text, call):
    with pytest.raises(kind, match=text):
        call()


def check_one_strategy_per_process():
    assert distribute.strategy("cpu:2") is TWO
    assert TWO.num_replicas_in_sync == 2
    raises(
        ConfigError,
        "8 CPU devices are needed, and TensorFlow has started with 4",
        lambda: distribute.strategy("cpu:8"),
    )
    plan = distribute.plan("cpu:2", batch_size=4)
    raises(
        ConfigError,
        "Options are part of the plan",
        lambda: distribute.strategy(plan, batch_size=4),
    )


def check_predict_keeps_order_and_tail():
    with TWO.scope():
        model = net()
    wanted = model.predict_on_batch(X[:2]).shape[1]
    expected = keras.ops.convert_to_numpy(
        keras.ops.concatenate([net()(X[:13]), net()(X[13:])])
    )
    for batch in (4, 8, 26, 40):
        got = distribute.predict(model, X, TWO, batch_size=batch)
        assert got.shape == (26, wanted)
        np.testing.assert_allclose(got, expected, atol=1e-6)
    batches = quiet(examples().batch(7))
    np.testing.assert_allclose(
        distribute.predict(model, batches, TWO), expected, atol=1e-6
    )
    raises(
        ConfigError,
        "batch_size must be a multiple of the 2 replicas. Received: 5",
        lambda: distribute.predict(model, X, TWO, batch_size=5),
    )
    raises(
        ModelError,
        "was not built in the scope of the strategy",
        lambda: distribute.predict(net(), X, TWO),
    )
    for data, kind, text in (
        ((X[:4] for _ in range(2)), DataError, "Received: generator. Convert lists"),
        (quiet(examples().batch(7).repeat()), DataError, "repeats without end"),
        ([X, X[:9]], DataError, "must have the same number of examples"),
    ):
        raises(kind, text, lambda data=data: distribute.predict(model, data, TWO))
    raises(
        ConfigError,
        "must be a tf.distribute.Strategy. Received: 'cpu:2'",
        lambda: distribute.predict(model, X, "cpu:2"),
    )
    raises(
        DataError,
        "There is nothing to predict",
        lambda: distribute.predict(model, quiet(examples().batch(7).take(0)), TWO),
    )


def check_batch_size_search():
    model = net()
    ticks = iter(np.arange(0.0, 1000.0, 1.0))
    found = distribute.search_batch_size(
        model, X[0], limit=8, calls=1, clock=lambda: next(ticks)
    )
    # Every call takes one tick, so a larger batch always pays, up to the limit.
    assert [f.batch_size for f in found] == [1, 2, 4, 8]
    assert [f.per_second for f in found] == [1.0, 2.0, 4.0, 8.0]
    raises(
        ConfigError,
        "and calls 1 or more. Received: start=None, limit=4096, calls=0",
        lambda: distribute.search_batch_size(model, X[0], calls=0),
    )
    raises(
        ConfigError,
        "limit not below it.*start=16, limit=8",
        lambda: distribute.search_batch_size(model, X[0], start=16, limit=8),
    )


def check_arguments_by_position_and_by_name():
    model = parallel()
    history = model.fit(X[:24], Y[:24], 8, 2, 0)
    assert len(history.history["loss"]) == 2
    model.evaluate(X[:24], Y[:24], 8, 0)
    assert model.evaluate(quiet(examples().batch(8).repeat()), steps=2, verbose=0) > 0


def check_predict_on_batch_gives_each_row_once():
    assert parallel().predict_on_batch(X[:6]).shape == (6, 4)


def check_replicas_draw_other_masks():
    model = parallel(lambda: keras.layers.Dropout(0.5, seed=4))
    seen = []
    for replica_seeds in (True, False):
        if replica_seeds:
            from keras_dlopt.distribute.seeds import spread_seeds

            spread_seeds(model)
        else:
            model.layers[1].seed_generator.state.assign(np.array([4, 0], "uint32"))
        run = tf.function(
            lambda: TWO.run(lambda: model.layers[1](tf.ones((1, 64)), training=True))
        )
        first, second = (v.numpy() for v in TWO.experimental_local_results(run()))
        seen.append(bool(np.array_equal(first, second)))
    assert seen == [False, True]


def check_uneven_shares_equal_one_device():
    shares = distribute.uneven_shares(8, [3.0, 1.0])
    assert shares == [6, 2]
    model = parallel(optimizer=sgd)
    model.fit(distribute.uneven_batches(examples(), TWO, shares), epochs=3, verbose=0)
    alone = net()
    alone.compile(sgd(0.1), loss())
    alone.fit(quiet(examples().batch(8, drop_remainder=True)), epochs=3, verbose=0)
    for a, b in zip(alone.weights, model.weights, strict=True):
        np.testing.assert_allclose(a.numpy(), b.value.numpy(), atol=1e-6)
    raises(
        DataError,
        "26 examples do not fill one batch of 104, the sum of the shares",
        lambda: distribute.uneven_batches(examples(), TWO, [100, 4]),
    )
    raises(
        ConfigError,
        "One share of 1 or more per replica is needed, for 2 replicas",
        lambda: distribute.uneven_batches(examples(), TWO, [8]),
    )


def check_arrays_whose_last_batch_only_some_replicas_share_in_full():
    # 8, 8 and 7 examples: the last are 4 and 3, which are drawn outside the graph.
    for optimizer in (sgd, keras.optimizers.SGD):
        model, alone = parallel(optimizer=optimizer), net()
        alone.compile(optimizer(0.1), loss())
        for one in (model, alone):
            one.fit(X[:23], Y[:23], batch_size=8, shuffle=False, verbose=0)
        for a, b in zip(alone.weights, model.weights, strict=True):
            np.testing.assert_allclose(a.numpy(), b.value.numpy(), atol=1e-6)


def check_compressed_gradients_in_fit():
    data = quiet(examples().take(24).batch(8))
    plain = parallel(optimizer=sgd)
    plain.fit(data, epochs=3, verbose=0)
    for rule, optimizer, tolerance in (
        (distribute.TopK(1.0), sgd, 1e-6),  # everything is sent
        (distribute.TopK(1.0), lambda rate: keras.optimizers.SGD(rate, 0.9), 1e-6),
        (distribute.BFloat16(), sgd, 5e-3),
        (distribute.PowerSGD(2), sgd, 0.5),
    ):
        model = parallel(optimizer=optimizer, compression=rule)
        model.fit(data, epochs=3, verbose=0)
        for a, b in zip(plain.weights, model.weights, strict=True):
            np.testing.assert_allclose(
                a.value.numpy(), b.value.numpy(), atol=tolerance, err_msg=repr(rule)
            )
            local = TWO.experimental_local_results(b.value)
            np.testing.assert_array_equal(local[0].numpy(), local[1].numpy())


def check_compressed_gradients_of_narrow_weights():
    keras.config.set_dtype_policy("bfloat16")
    try:
        for rule in (distribute.TopK(0.2), distribute.BFloat16()):
            model = parallel(optimizer=sgd, compression=rule)
            history = model.fit(quiet(examples().take(24).batch(8)), verbose=0)
            assert np.isfinite(history.history["loss"][0]), rule
    finally:
        keras.config.set_dtype_policy("float32")


def check_a_pipeline_places_nested_models():
    from keras_dlopt.model_parallel import Pipeline

    outer = keras.Sequential([keras.Input((8,)), keras.layers.Dense(8), net()])
    piped = Pipeline(outer, devices=["CPU:0", "CPU:1"], micro_batches=2)
    nested = {v.path for v in piped.model.layers[1].weights}
    where = piped.placement()
    assert {where[path] for path in nested} == {"CPU:1"}
    assert {where[path] for path in set(where) - nested} == {"CPU:0"}


def check_batch_normalization_is_named_and_converted():
    with TWO.scope():
        model = net(keras.layers.BatchNormalization())
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            distribute.data_parallel(model)
        texts = [str(w.message) for w in caught]
        assert any("1 BatchNormalization layer(s) normalize each" in t for t in texts)
        assert distribute.unsynchronized(model)
        distribute.synchronize(model)
        assert not distribute.unsynchronized(model)
        model.compile("sgd", loss(), jit_compile=True)
    raises(
        ConfigError,
        "synchronized BatchNormalization makes the replicas meet",
        lambda: model.fit(quiet(examples().batch(13)), verbose=0),
    )
    model.train_function = lambda: None
    raises(ModelError, "has trained already", lambda: distribute.synchronize(model))


def check_what_is_outside_of_the_scope():
    model = net()
    with TWO.scope():
        raises(
            ModelError,
            "was built outside of the strategy's scope",
            lambda: distribute.data_parallel(model),
        )
        inside = distribute.data_parallel(net())
        distiller = keras.distillation.Distiller(
            net(), net(), keras.distillation.LogitsDistillation()
        )
        raises(
            ModelError,
            "does not divide its student's loss by the 2 replicas",
            lambda: distribute.data_parallel(distiller),
        )
        raises(
            ModelError,
            "is data-parallel already",
            lambda: distribute.data_parallel(inside),
        )
    raises(ModelError, "is not compiled. Call compile", lambda: inside.fit(X, Y))
    optimizer = dlopt.optimizers.Adam()
    with TWO.scope():
        inside.compile(optimizer, loss())
    raises(
        ModelError,
        "was created outside of the strategy's scope",
        lambda: inside.fit(X, Y),
    )
    assert distribute.data_parallel(model) is model  # one device: nothing to do
    assert "fit" not in vars(model)


def check_a_last_batch_without_examples_for_all():
    model = parallel()
    raises(
        DataError,
        "The last batch has 1 of 25 examples, fewer than the 2 replicas",
        lambda: model.fit(X[:25], Y[:25], batch_size=8, verbose=0),
    )


def check_a_loss_of_one_number_is_refused():
    def mean(y, predicted):
        return keras.ops.mean(keras.ops.square(predicted - y))

    class Mean(keras.losses.Loss):
        def call(self, y, predicted):
            return mean(y, predicted)

    y = np.zeros((24, 4), "float32")
    for wrong in (mean, Mean()):
        with TWO.scope():
            model = distribute.data_parallel(net())
            model.compile("sgd", wrong)
        text = "gives one number for a batch.*by the 2 replicas.*leave the last mean"
        for run in (model.fit, model.evaluate):
            raises(ModelError, text, lambda run=run: run(X[:24], y, verbose=0))
    alone = net()
    alone.compile("sgd", wrong)  # the same object, on one device
    alone.fit(X[:24], y, verbose=0)


def check_float16_refuses_what_it_cannot_do():
    with TWO.scope():
        model = distribute.data_parallel(net())
        inner = keras.optimizers.SGD(0.1, clipnorm=1.0)
        model.compile(keras.optimizers.LossScaleOptimizer(inner), loss())
    raises(
        ConfigError,
        "float16 with loss scaling cannot do clipnorm",
        lambda: model.fit(quiet(examples().batch(13)), verbose=0),
    )


def check_masks_do_not_go_with_a_compiled_step():
    with TWO.scope():
        embed = keras.layers.Embedding(9, 4, mask_zero=True)
        layers = [keras.Input((5,)), embed, keras.layers.Dense(4)]
        model = distribute.data_parallel(keras.Sequential(layers))
        model.compile(sgd(0.1), loss(), jit_compile=True)
    x = RNG.integers(0, 9, (24, 5))
    raises(
        ConfigError,
        "divides by a mask or by weights.*Compile with jit_compile=False",
        lambda: model.fit(x, x % 4, verbose=0),
    )
    with TWO.scope():
        model.compile(sgd(0.1), loss(), jit_compile=False)
    model.fit(x, x % 4, verbose=0)


def check_saved_models_load_without_any_of_this():
    model = parallel(optimizer=dlopt.optimizers.Adam)
    model.fit(quiet(examples().batch(13)), verbose=0)
    with tempfile.TemporaryDirectory() as folder:
        model.save(f"{folder}/model.keras")
        loaded = keras.saving.load_model(f"{folder}/model.keras")
    for a, b in zip(model.weights, loaded.weights, strict=True):
        np.testing.assert_array_equal(a.value.numpy(), b.numpy())


for name, check in list(globals().items()):
    if not name.startswith("check_") or (len(sys.argv) > 1 and name not in sys.argv):
        continue
    text = ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            check()
    except Exception:
        text = traceback.format_exc()[-2500:]
    print("RESULT " + json.dumps([name, text]), flush=True)
