"""Bytes of weights beside general compressors, for the section `others` of `codec.py`.

The weights of MLPerf Tiny's networks, of 8 bits as the `.tflite` files hold them and
floats as the `.h5` files do, and of a LeNet-300-100 that is pruned and clustered in two
epochs of training. Ours are the records of all arrays, shapes and dtypes included; the
others get the bytes of all arrays one after another, without these, at their greatest
effort.
"""

import lzma
import os
import pathlib

import numpy as np
import zstandard

from keras_dlopt.codecs.tensor import encode_tensor

SPARSITY, CLUSTERS, STEPS = 0.9, 16, 400


def sizes(name, arrays):
    import brotli

    plain = b"".join(array.tobytes() for array in arrays)
    return {
        "weights": name,
        "elements": int(sum(array.size for array in arrays)),
        "plain": len(plain),
        "ours": sum(len(encode_tensor(array)) for array in arrays),
        "zstd_19": len(zstandard.compress(plain, 19)),
        "brotli_11": len(brotli.compress(plain, quality=11, lgwin=24)),
        "xz_9e": len(lzma.compress(plain, preset=9 | lzma.PRESET_EXTREME)),
    }


def int8_weights(path):
    from keras_dlopt.export.contents import read

    tensors = read(path).tensors
    found = [np.asarray(t.data) for t in tensors if t.data is not None]
    return [array for array in found if array.dtype == np.int8]


def float_weights(path):
    import h5py

    found = []

    def see(name, item):
        array = isinstance(item, h5py.Dataset) and item.ndim
        if array and item.dtype == np.float32 and "optimizer" not in name:
            found.append(item[()])

    with h5py.File(path) as file:
        file.visititems(see)
    return found


def lenet():
    """A dense epoch, then one that prunes and clusters; the test set is not used."""
    import keras

    import keras_dlopt as dlopt

    keras.utils.set_random_seed(0)
    data = dlopt.data.load("mnist")
    model = keras.Sequential([keras.Input(data.x_train.shape[1:])])
    model.add(keras.layers.Flatten())
    for units, activation in ((300, "relu"), (100, "relu"), (10, None)):
        model.add(keras.layers.Dense(units, activation))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-3), loss)
    model.fit(data.x_train, data.y_train, batch_size=128, verbose=0)
    falling = dlopt.schedules.PolynomialSparsity(SPARSITY, end=STEPS // 2)
    chain = dlopt.Prune(sparsity=falling) >> dlopt.Cluster(CLUSTERS, begin=STEPS // 2)
    small = dlopt.transform(model, dlopt.Recipe([(dlopt.named("kernel"), chain)]))
    small.compile(keras.optimizers.Adam(1e-3), loss)
    small.fit(data.x_train, data.y_train, batch_size=128, verbose=0)
    return [np.asarray(w.value) for w in dlopt.finalize(small).weights]


def rows(data):
    folder = pathlib.Path(data, "mlperf_tiny")
    for path in sorted(folder.glob("*_int8.tflite")):
        yield sizes(f"{path.stem.removesuffix('_int8')}, int8", int8_weights(path))
    for path in sorted(folder.glob("*.h5")):
        yield sizes(f"{path.stem}, float32", float_weights(path))
    os.environ.setdefault("KERAS_DLOPT_DATA", str(data))
    yield sizes(f"LeNet-300-100, {SPARSITY:.0%} pruned, {CLUSTERS} clusters", lenet())
