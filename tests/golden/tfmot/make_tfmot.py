"""Writes what TensorFlow Model Optimization 0.8.1 computes, for the tests to compare.

Run once, where tf_keras 2.21 and TFMOT 0.8.1 are installed:

    TF_USE_LEGACY_KERAS=1 python tests/golden/tfmot/make_tfmot.py
"""

import os
import pathlib
import shutil

os.environ["TF_USE_LEGACY_KERAS"] = "1"

import numpy as np
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras as keras
from tensorflow_model_optimization.python.core.clustering.keras.cluster import (
    _cluster_weights as cluster,  # with the options that only tests of TFMOT use
)

HERE = pathlib.Path(__file__).parent
layers = keras.layers


def network():
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            layers.Conv2D(6, 3, activation="relu", input_shape=(8, 8, 2), name="conv"),
            layers.Flatten(name="flat"),
            layers.Dense(5, name="dense"),
        ],
        name="net",
    )


def data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 8, 8, 2)).astype("float32")
    return x, rng.integers(0, 5, 64)


def fit(model, **kwargs):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.05), loss)
    x, y = data()
    model.fit(x, y, batch_size=4, shuffle=False, verbose=0, **kwargs)


def save(model, name):
    """As `.h5`, and what it predicts."""
    model.save(HERE / f"{name}.h5", include_optimizer=False)
    np.save(HERE / f"{name}_outputs.npy", model.predict(data()[0][:4], verbose=0))


def pruning():
    schedule = tfmot.sparsity.keras.PolynomialDecay(0.2, 0.83, 2, 13, frequency=3)
    model = tfmot.sparsity.keras.prune_low_magnitude(network(), schedule)
    wrapped = [la for la in model.layers if getattr(la, "pruning_vars", None)]
    found = {}

    class Record(keras.callbacks.Callback):
        """The weights that each step starts with, and its mask."""

        def on_train_batch_begin(self, batch, logs=None):
            for layer in wrapped if batch in (1, 4, 7, 10) else ():
                weight = layer.pruning_vars[0][0].numpy()
                found[f"{batch}_{layer.layer.name}_weight"] = weight

        def on_train_batch_end(self, batch, logs=None):
            for layer in wrapped:
                mask = layer.pruning_vars[0][1].numpy()
                found[f"{batch}_{layer.layer.name}_mask"] = mask.astype("uint8")

    fit(model, callbacks=[tfmot.sparsity.keras.UpdatePruningStep(), Record()])
    np.savez_compressed(HERE / "pruning.npz", **found)
    save(model, "pruned")


def clustering():
    init = tfmot.clustering.keras.CentroidInitialization
    rng = np.random.default_rng(5)
    conv = rng.normal(size=(3, 3, 2, 6)).astype("float32")
    sparse = conv * (rng.random(conv.shape) > 0.5)
    found = {"conv": conv, "sparse": sparse}
    for kind in (init.LINEAR, init.DENSITY_BASED, init.KMEANS_PLUS_PLUS):
        for per_channel in (False, True):
            for zeros in (False, True):
                layer = layers.Conv2D(6, 3, use_bias=True)
                layer.build((None, 8, 8, 2))
                layer.kernel.assign(sparse if zeros else conv)
                made = cluster(
                    layer,
                    number_of_clusters=4,
                    cluster_centroids_init=kind,
                    cluster_per_channel=per_channel,
                    preserve_sparsity=zeros,
                )
                made.build((None, 8, 8, 2))
                key = f"{kind.name}_{int(per_channel)}_{int(zeros)}"
                found[key] = made.cluster_centroids["kernel"].numpy()
    model = tfmot.clustering.keras.cluster_weights(
        network(), number_of_clusters=5, cluster_centroids_init=init.LINEAR
    )
    start = [w.numpy() for w in network().weights]
    for i, w in enumerate(start):
        found[f"start_{i}"] = w

    class Record(keras.callbacks.Callback):
        """The centroids after each step."""

        def on_train_batch_end(self, batch, logs=None):
            for layer in model.layers:
                for value in getattr(layer, "cluster_centroids", {}).values():
                    found[f"trained_{batch}_{layer.layer.name}"] = value.numpy()

    fit(model, callbacks=[Record()], steps_per_epoch=4)
    np.savez_compressed(HERE / "clustering.npz", **found)
    save(model, "clustered")


def quantization():
    model = tfmot.quantization.keras.quantize_model(network())
    start = [w.numpy() for w in network().weights]
    found = {f"start_{i}": w for i, w in enumerate(start)}
    fit(model, steps_per_epoch=5)
    for weight in model.weights:
        found["variable:" + weight.name] = weight.numpy()
    x = data()[0][:4]
    found["inputs"] = x
    for layer in model.layers:
        x = layer(x, training=False)
        found["output:" + layer.name] = np.asarray(x)
    conv, dense = model.layers[1].layer, model.layers[3].layer
    found["conv_quantized"] = np.asarray(conv.kernel)
    found["dense_quantized"] = np.asarray(dense.kernel)
    np.savez_compressed(HERE / "quantization.npz", **found)
    save(model, "quantized")
    folder = HERE / "quantized_saved_model"
    shutil.rmtree(folder, ignore_errors=True)
    model.save(folder, include_optimizer=False, save_traces=False)


if __name__ == "__main__":
    tf.get_logger().setLevel("ERROR")
    pruning()
    clustering()
    quantization()
