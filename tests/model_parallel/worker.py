"""Trains split and unsplit in a process with four devices; prints JSON.

python worker.py CASE
"""

import json
import os
import sys

CASE = sys.argv[1]
BACKEND = "jax" if CASE.startswith("jax") else "tensorflow"
os.environ["KERAS_BACKEND"] = BACKEND
if BACKEND == "jax":
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"

import keras
import numpy as np

import keras_dlopt as dlopt
from keras_dlopt import model_parallel as parallel
from keras_dlopt.select import matching, rank

if BACKEND == "tensorflow":
    import tensorflow as tf

    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0],
        [tf.config.LogicalDeviceConfiguration()] * 4,
    )

BATCH, STEPS = 16, 8


def data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(BATCH * STEPS, 8, 8, 4)).astype("float32")
    y = rng.integers(0, 8, BATCH * STEPS).astype("int32")
    return x, y


def model(optimizer=None):
    keras.utils.set_random_seed(1)
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(1)
    inputs = keras.Input((8, 8, 4))
    x = keras.layers.Conv2D(16, 3, use_bias=False, name="conv")(inputs)
    x = keras.layers.BatchNormalization(name="bn")(x)
    x = keras.layers.Flatten(name="flat")(keras.layers.ReLU(name="relu")(x))
    x = keras.layers.Dense(64, "gelu", name="up")(x)
    x = keras.layers.Dense(32, "gelu", name="down")(x)
    net = keras.Model(inputs, keras.layers.Dense(8, name="head")(x), name="net")
    net.compile(
        optimizer or dlopt.optimizers.AdamW(1e-3, global_clipnorm=0.5),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return net


def layout(mesh):
    return parallel.Layout(
        mesh,
        [
            (matching("conv/kernel"), (None, None, None, "model")),
            (matching("(up|head)/kernel"), (None, "model")),
            (matching("down/kernel") & rank(2), ("model", None)),
        ],
    )


def fit(net):
    x, y = data()
    net.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0)


def difference(left, right):
    """Largest difference between the weights of two models."""
    return max(
        float(np.abs(np.asarray(a) - np.asarray(b)).max())
        for a, b in zip(left, right, strict=True)
    )


def weights(net):
    return [np.asarray(keras.ops.convert_to_numpy(v)) for v in net.variables]


def jax_split(mesh):
    plain = model()
    start = weights(plain)
    fit(plain)
    other = model()
    for v, value in zip(other.variables, start, strict=True):
        v.assign(value)
    split = parallel.split_model(other, layout(mesh))
    before = weights(split)
    assert difference(before, start) == 0.0
    fit(split)
    kernel = split.get_layer("up").kernel.value
    slots = [v for v in split.optimizer.variables if v.path.endswith("momentum")]
    slot = next(v for v in slots if "up_kernel" in v.path).value
    held = {}
    for v in [*split.variables, *split.optimizer.variables]:
        for shard in v.value.addressable_shards:
            held[shard.device.id] = held.get(shard.device.id, 0) + shard.data.nbytes
    return {
        "difference": difference(weights(plain), weights(split)),
        "moved": difference(start, weights(split)),
        "kernel_shard": list(kernel.addressable_shards[0].data.shape),
        "slot_shard": list(slot.addressable_shards[0].data.shape),
        "held": list(held.values()),
    }


def tf_split(mesh):
    plain, other = model(), model()
    start = weights(plain)
    assert difference(start, weights(other)) == 0.0
    x, y = data()
    trainer = parallel.SplitTrainer(other, layout(mesh))
    for i in range(0, len(x), BATCH):
        plain.train_on_batch(x[i : i + BATCH], y[i : i + BATCH])
        trainer.train_on_batch(x[i : i + BATCH], y[i : i + BATCH])
    held = trainer.bytes_by_device()
    done = trainer.finish()
    total = sum(w.nbytes for w in weights(plain))
    slots = sum(np.asarray(v).nbytes for v in plain.optimizer.variables)
    return {
        "difference": difference(weights(plain), weights(done)),
        "optimizer": difference(
            [np.asarray(v) for v in plain.optimizer.variables],
            [np.asarray(v) for v in done.optimizer.variables],
        ),
        "moved": difference(start, weights(done)),
        "held": held,
        "whole": total + slots,
    }


def dense_net(optimizer):
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(1)
    net = keras.Sequential(
        [
            keras.Input((8, 8, 4)),
            keras.layers.Flatten(),
            *(keras.layers.Dense(64, "gelu", name=f"d{i}") for i in range(4)),
            keras.layers.Dense(8, name="head"),
        ]
    )
    net.compile(
        optimizer,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return net


def tf_pipeline(make):
    plain = dense_net(make())
    start = weights(plain)
    source = dense_net(make())
    piped = parallel.Pipeline(
        source, devices=[f"CPU:{i}" for i in range(4)], micro_batches=4
    )
    piped.compile(make(), loss=plain.loss, metrics=["accuracy"])
    x, y = data()
    kwargs = {"batch_size": BATCH, "shuffle": False, "verbose": 0}
    left = plain.fit(x, y, **kwargs).history
    right = piped.fit(x, y, **kwargs).history
    place = piped.placement()
    slots = {
        path: device
        for path, device in place.items()
        if path.rsplit("_", 1)[-1] in ("momentum", "velocity")
    }
    return {
        "difference": difference(weights(plain), weights(piped)),
        "moved": difference(start, weights(piped)),
        "losses": abs(left["loss"][0] - right["loss"][0]),
        "accuracy": abs(left["accuracy"][0] - right["accuracy"][0]),
        "stages": sorted({d for p, d in place.items() if p.endswith("kernel")}),
        "slots": slots,
        "weights": {p: d for p, d in place.items() if p.endswith(("kernel", "bias"))},
    }


def tf_tiny():
    """Two dense layers: the least that shows a split."""
    nets = []
    for _ in range(2):
        keras.utils.clear_session(free_memory=False)
        keras.utils.set_random_seed(1)
        layers = [keras.layers.Dense(8, "relu", name="up"), keras.layers.Dense(4)]
        nets.append(keras.Sequential([keras.Input((6,)), *layers]))
        nets[-1].compile(keras.optimizers.Adam(0.01), "mse")
    plain, other = nets
    start = weights(plain)
    rules = [(matching("up/kernel"), (None, "model"))]
    trainer = parallel.SplitTrainer(other, parallel.Layout({"model": 4}, rules))
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, 8, 6)).astype("float32")
    y = rng.normal(size=(4, 8, 4)).astype("float32")
    for one_x, one_y in zip(x, y, strict=True):
        plain.train_on_batch(one_x, one_y)
    trainer.fit(list(zip(x, y, strict=True)))
    after = weights(trainer.finish())
    return {
        "difference": difference(weights(plain), after),
        "moved": difference(start, after),
    }


CASES = {
    "tf_tiny": tf_tiny,
    "jax_model4": lambda: jax_split({"model": 4}),
    "jax_batch2_model2": lambda: jax_split({"batch": 2, "model": 2}),
    "tf_model4": lambda: tf_split({"model": 4}),
    "tf_batch2_model2": lambda: tf_split({"batch": 2, "model": 2}),
    "tf_pipeline": lambda: tf_pipeline(lambda: keras.optimizers.AdamW(1e-3)),
    "tf_pipeline_own": lambda: tf_pipeline(
        lambda: dlopt.optimizers.AdamW(1e-3, global_clipnorm=0.5)
    ),
}

if __name__ == "__main__":
    print("RESULT " + json.dumps(CASES[CASE]()), flush=True)
