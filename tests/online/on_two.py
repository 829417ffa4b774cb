"""Weights after a stream on one device and on two logical ones."""

import json
import os

os.environ["TF_NUM_INTRAOP_THREADS"] = os.environ["TF_NUM_INTEROP_THREADS"] = "1"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import keras
import numpy as np
import tensorflow as tf

from keras_dlopt import Prune, Recipe, named, online, transform

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0],
    [tf.config.LogicalDeviceConfiguration()] * 2,
)
L = keras.layers
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
RNG = np.random.default_rng(0)
X = RNG.normal(size=(120, 6)).astype("float32")
Y = X[:, :3].argmax(1)


TERMS = (
    online.DarkExperience(0.3),
    online.EWC(0.5, examples=8),
    online.SnapshotDistillation(0.5),
)


def pruned():
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((6,)), L.Dense(8, activation="relu"), L.Dense(3)]
    )
    return transform(model, Recipe([(named("kernel"), Prune(0.5))]))


def weights(strategy):
    with strategy.scope():
        model = pruned()
        model.compile(keras.optimizers.Adam(0.01), LOSS, metrics=["accuracy"])
        learner = online.OnlineLearner(
            model,
            batch_size=12,
            memory=online.ClassBalanced(30),
            replay=online.Replay(8, steps=2, weight=0.5),
            terms=TERMS,
            drift=online.ADWIN(),
        )
    learner.learn(X[:60], Y[:60])
    learner.anchor()
    errors = learner.learn(X[60:], Y[60:]).errors
    learner.rehearse(1)
    found = [np.array(keras.ops.convert_to_numpy(v.value)) for v in model.variables]
    return [*found, errors, learner.predict(X[:7])]


if __name__ == "__main__":
    two = tf.distribute.MirroredStrategy(
        ["CPU:0", "CPU:1"],
        cross_device_ops=tf.distribute.HierarchicalCopyAllReduce(),
    )
    pair = (weights(strategy) for strategy in (tf.distribute.get_strategy(), two))
    far = [float(np.abs(a - b).max()) for a, b in zip(*pair, strict=True)]
    print(json.dumps(far))
