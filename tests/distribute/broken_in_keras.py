"""What Keras gets wrong under MirroredStrategy, without `data_parallel`.

Prints `RESULT [name, what happened]`. `test_broken_in_keras` says what each must be; a
difference means that Keras was mended and a repair of ours may go.
"""

import json
import warnings

import numpy as np

from keras_dlopt.distribute.build import split_cpu

split_cpu(2)

import keras
import tensorflow as tf

X = np.random.default_rng(0).normal(size=(20, 8)).astype("float32")
Y = np.arange(20) % 4


def data(count=16, batch=8):
    made = tf.data.Dataset.from_tensor_slices((X[:count], Y[:count])).batch(batch)
    options = tf.data.Options()
    options.autotune.enabled = False
    return made.with_options(options)


def net():
    return keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])


def distiller():
    return keras.distillation.Distiller(
        net(), net(), keras.distillation.LogitsDistillation()
    )


class Penalty(keras.layers.Layer):
    """Adds the mean square of what passes."""

    def call(self, x):
        self.add_loss(keras.ops.mean(keras.ops.square(x)))
        return x


def penalized():
    return keras.Sequential(
        [
            keras.Input((8,)),
            keras.layers.Dense(6),
            Penalty(),
            keras.layers.BatchNormalization(synchronized=True),
            keras.layers.Dense(4),
        ]
    )


def train(optimizer, replicas=2, dataset=None, build=net, **compile_options):
    reduce = tf.distribute.HierarchicalCopyAllReduce()
    reduce = compile_options.pop("reduce", reduce)
    strategy = tf.distribute.MirroredStrategy(
        [f"CPU:{i}" for i in range(replicas)], cross_device_ops=reduce
    )
    with strategy.scope():
        keras.utils.set_random_seed(0)
        model = build()
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(optimizer(), loss, **compile_options)
    model.fit(data() if dataset is None else dataset, verbose=0)
    return model


def differs(*arguments, **options):
    """Whether two replicas end with other weights than one."""
    pair = [train(*arguments, replicas=r, **options) for r in (1, 2)]
    left, right = (m.get_weights() for m in pair)
    return any(
        bool(np.any(np.abs(a - b) > 1e-4)) for a, b in zip(left, right, strict=True)
    )


def steps(dataset):
    return int(
        train(keras.optimizers.SGD, dataset=dataset).optimizer.variables[0].numpy()
    )


def rows():
    model = train(keras.optimizers.SGD)
    return len(model.predict_on_batch(X))


k = keras.optimizers
CASES = {
    "clipnorm": lambda: differs(lambda: k.SGD(1.0, clipnorm=0.01)),
    "uneven": lambda: differs(lambda: k.SGD(1.0), dataset=data(13)),
    "distiller": lambda: differs(lambda: k.SGD(1.0), build=distiller),
    "add_loss": lambda: differs(lambda: k.SGD(0.5), build=penalized),
    "accumulation": lambda: train(lambda: k.SGD(gradient_accumulation_steps=2)),
    "ema_overwrite": lambda: train(
        lambda: k.SGD(use_ema=True, ema_overwrite_frequency=2)
    ),
    "jit": lambda: train(k.SGD, jit_compile=True),
    "uneven_first": lambda: train(k.SGD, dataset=data(7, 7)),
    "predict_on_batch": rows,
    "phantom": lambda: steps(data().filter(lambda *_: True)),
    # Last: it leaves TensorFlow's collectives of this process unusable.
    "steps_per_execution": lambda: train(k.SGD, steps_per_execution=2, reduce=None),
}

for name, case in CASES.items():
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = case()
        found = found if isinstance(found, bool | int) else "worked"
    except Exception as error:
        found = f"{type(error).__name__}: {error}"[:3000]
    print("RESULT " + json.dumps([name, found]), flush=True)
