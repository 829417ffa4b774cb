"""Where zeros in weights bring speed, and where only removal does.

    KERAS_DLOPT_DATA=... python benchmarks/zeros.py

times a convolution network in LiteRT in turns, one thread, batch 1: dense; with four
fifths of its 1x1 kernels zero; the same in a sparse file; in int8 both ways; and with
half the channels gone. With `ethos-u-vela` installed, Arm's estimate for the MLPerf
autoencoder and for a dense network trained on Fashion-MNIST: int8, and int8 with four
fifths zeros and 16 values. Prints, and writes `benchmarks/results/zeros.json`.
"""

import argparse
import importlib.util
import json
import os
import pathlib
import tempfile
import warnings
from typing import Any

os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")

import keras
import numpy as np
import tensorflow as tf
from keras import layers

import keras_dlopt as dlopt
from keras_dlopt.measure import npu_estimate
from keras_dlopt.report.measuring import times
from keras_dlopt.report.variants import versions

ZEROS, VALUES = 0.8, 16
RESULTS = pathlib.Path(__file__).parent / "results" / "zeros.json"
DATA = pathlib.Path(os.environ.get("KERAS_DLOPT_DATA", "nowhere"))


def network(share: float = 1.0) -> keras.Model:
    """Depthwise and 1x1 convolutions, as XNNPACK's sparse kernels want them."""
    x = given = keras.Input((112, 112, 3))
    wide = int(32 * share)
    x = layers.ZeroPadding2D(1)(x)
    x = layers.Conv2D(wide, 3, strides=2, activation="relu")(x)
    for channels, stride in ((64, 1), (128, 2), (128, 1), (256, 2), *[(256, 1)] * 3):
        x = layers.ZeroPadding2D(1)(x)
        x = layers.DepthwiseConv2D(3, strides=stride, activation="relu")(x)
        x = layers.Conv2D(int(channels * share), 1, activation="relu")(x)
    x = layers.Flatten()(layers.GlobalAveragePooling2D(keepdims=True)(x))
    return keras.Model(given, layers.Dense(10)(x))


def with_zeros(model: keras.Model) -> keras.Model:
    """A copy with the smallest weights of each 1x1 kernel set to zero."""
    twin = keras.models.clone_model(model)
    twin.set_weights(model.get_weights())
    for layer in twin.layers:
        if isinstance(layer, layers.Conv2D) and layer.kernel_size == (1, 1):
            kernel = layer.kernel.numpy().copy()
            kernel[np.abs(kernel) < np.quantile(np.abs(kernel), ZEROS)] = 0
            layer.kernel.assign(kernel)
    return twin


def sparse_file(model: keras.Model, path: pathlib.Path) -> None:
    """The float file with zeros left out, as TensorFlow's converter writes it."""
    spec = tf.TensorSpec((1, *model.input_shape[1:]))
    function = tf.function(lambda x: model(x, training=False))
    concrete = [function.get_concrete_function(spec)]
    converter = tf.lite.TFLiteConverter.from_concrete_functions(concrete, None)
    converter.optimizations = [tf.lite.Optimize.EXPERIMENTAL_SPARSITY]
    path.write_bytes(converter.convert())


def on_the_cpu(folder: pathlib.Path, calls: int) -> dict[str, Any]:
    """Times of the files in LiteRT, by the dense one of the same type."""
    keras.utils.set_random_seed(0)
    dense, half = network(), network(0.5)
    pruned = with_zeros(dense)
    x = np.random.default_rng(0).normal(size=(32, 112, 112, 3)).astype("float32")
    files = {}
    for name, model in {"dense": dense, "zeros": pruned, "half": half}.items():
        files[name] = folder / f"{name}.tflite"
        dlopt.export.litert(model, files[name], verify=False)
        small = dlopt.post_training.quantize(model, x, observer="min_max")
        files[f"{name} int8"] = folder / f"{name}_int8.tflite"
        dlopt.export.litert(small, files[f"{name} int8"], io="int8", verify=False)
    files["zeros sparse"] = folder / "sparse.tflite"
    sparse_file(pruned, files["zeros sparse"])
    found = times(files, calls=calls)
    result = {}
    for name, path in files.items():
        base = found["dense int8" if "int8" in name else "dense"]["litert"].median
        median = found[name]["litert"].median
        ratio, size = median / base, path.stat().st_size
        result[name] = {"ms": 1e3 * median, "ratio": ratio, "bytes": size}
    return result


def estimates(model: keras.Model, x: Any, folder: pathlib.Path) -> dict[str, Any]:
    """Vela's figures for int8, and for int8 of few values."""
    few = dlopt.Prune(ZEROS) >> dlopt.Cluster(VALUES) >> dlopt.FakeQuant(bits=8)
    result: dict[str, Any] = {}
    for name, weights in {"int8": None, "few": few}.items():
        small = dlopt.post_training.quantize(
            model, x, weights=weights, observer="min_max"
        )
        result[name] = _estimate(small, folder / f"{name}.tflite")
    return _compared(result)


def of_mlperf(name: str, folder: pathlib.Path) -> dict[str, Any]:
    """The estimates of one of MLPerf Tiny's networks; without its data, untrained."""
    path = DATA / "mlperf_tiny" / f"{name}.h5"
    if not path.exists():
        return {}
    loaded = keras.models.load_model(path, compile=False)
    plain = keras.Model(loaded.inputs[0], loaded.outputs[0])
    shape = (128, *plain.input_shape[1:])
    x = np.random.default_rng(0).normal(0, 5, shape).astype("float32")
    return estimates(dlopt.split_activations(plain), x, folder)


def trained(folder: pathlib.Path, epochs: int) -> dict[str, Any]:
    """The same of a dense network on Fashion-MNIST, trained with what it gets."""
    data = dlopt.data.load("fashion_mnist")
    keras.utils.set_random_seed(0)
    stack = [layers.Dense(256), layers.ReLU(), layers.Dense(128), layers.ReLU()]
    model = keras.Sequential(
        [keras.Input(data.input_shape), layers.Flatten(), *stack, layers.Dense(10)]
    )
    result: dict[str, Any] = {"float": {"accuracy": _fit(model, data, epochs * 5 // 8)}}
    steps = len(data.x_train) // 256 * epochs
    grow = dlopt.schedules.PolynomialSparsity(ZEROS, end=steps * 3 // 10)
    few = dlopt.Prune(grow) >> dlopt.Cluster(VALUES, begin=steps * 6 // 10)
    recipes = {"int8": None, "few": few >> dlopt.FakeQuant(bits=8)}
    for name, weights in recipes.items():
        small = dlopt.transform(model, dlopt.int8_recipe(model, weights=weights))
        accuracy = _fit(small, data, epochs)
        result[name] = _estimate(small, folder / f"{name}.tflite")
        result[name]["accuracy"] = accuracy
    return _compared(result)


def _fit(model: keras.Model, data: Any, epochs: int) -> float:
    steps = len(data.x_train) // 256 * epochs
    decay = keras.optimizers.schedules.CosineDecay(2e-3, steps)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.AdamW(decay), loss, metrics=["accuracy"])
    model.fit(*data.train, batch_size=256, epochs=epochs, verbose=0)
    return float(model.evaluate(*data.test, batch_size=500, verbose=0)[1])


def _estimate(small: Any, path: pathlib.Path) -> dict[str, Any]:
    report = dlopt.export.litert(small, path, io="int8")
    found = npu_estimate(path)
    return {"seconds": found.seconds, "flash": found.flash, "bytes": report.size}


def _compared(result: dict[str, Any]) -> dict[str, Any]:
    for figure in ("seconds", "flash"):
        result[f"{figure} ratio"] = result["int8"][figure] / result["few"][figure]
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=100)
    parser.add_argument("--epochs", type=int, default=16)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    result: dict[str, Any] = {"versions": versions()}
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        result["litert"] = on_the_cpu(folder, options.calls)
        if importlib.util.find_spec("ethosu") is not None:
            for name in ("anomaly_autoencoder", "resnet8_cifar10"):
                result[f"{name}, estimate"] = of_mlperf(name, folder)
            result["fashion, estimate"] = trained(folder, options.epochs)
    print(json.dumps(result, indent=2))
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
