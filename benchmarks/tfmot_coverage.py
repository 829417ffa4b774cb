"""What TFMOT on tf_keras makes of the networks in `coverage_families.py`.

    TF_USE_LEGACY_KERAS=1 python benchmarks/tfmot_coverage.py --out results.json

The same list, the same four methods, the same question: does it build, train two steps,
and predict the same after saving and loading? A row that is in the file is skipped.
"""

import argparse
import json
import os
import pathlib
import tempfile
import time

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")

import numpy as np
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras as keras
from coverage_names import APPLICATIONS, CLASSES, METHODS, SMALL

layers = keras.layers


def _sequential(shape, *body):
    return keras.Sequential([keras.Input(shape), *body, layers.Dense(CLASSES)]), shape


def _subclassed():
    class Inner(keras.Model):
        def __init__(self):
            super().__init__()
            self.conv = layers.Conv2D(4, 3)

        def call(self, x):
            return self.conv(x)

    class Outer(keras.Model):
        def __init__(self):
            super().__init__()
            self.inner = Inner()
            self.top = layers.Dense(CLASSES)

        def call(self, x):
            return self.top(tf.reduce_mean(self.inner(x), (1, 2)))

    model = Outer()
    model(np.zeros((1, 12, 12, 1), "float32"))
    return model, (12, 12, 1)


def _embedding():
    ids = keras.Input((6,), dtype="int32")
    x = layers.GlobalAveragePooling1D()(layers.Embedding(20, 4)(ids))
    return keras.Model(ids, layers.Dense(CLASSES)(x)), (6,)


def _attention():
    inputs = keras.Input((6, 8))
    x = layers.GlobalAveragePooling1D()(layers.MultiHeadAttention(2, 4)(inputs, inputs))
    return keras.Model(inputs, layers.Dense(CLASSES)(x)), (6, 8)


def _multiply():
    inputs = keras.Input((8,))
    x = layers.Multiply()([layers.Dense(8)(inputs), layers.Dense(8)(inputs)])
    return keras.Model(inputs, layers.Dense(CLASSES)(x)), (8,)


BUILDS = {
    "subclassed, nested": _subclassed,
    "LSTM": lambda: _sequential((5, 4), layers.LSTM(6)),
    "Bidirectional GRU": lambda: _sequential(
        (5, 4), layers.Bidirectional(layers.GRU(6))
    ),
    "Conv1D": lambda: _sequential(
        (12, 3), layers.Conv1D(4, 3, activation="relu"), layers.Flatten()
    ),
    "Conv3D": lambda: _sequential(
        (6, 6, 6, 2), layers.Conv3D(4, 3, activation="relu"), layers.Flatten()
    ),
    "Embedding": _embedding,
    "MultiHeadAttention": _attention,
    "LayerNormalization": lambda: _sequential(
        (8,), layers.Dense(8), layers.LayerNormalization()
    ),
    "PReLU": lambda: _sequential((8,), layers.Dense(8), layers.PReLU()),
    "Multiply": _multiply,
}


def build(name):
    if name in BUILDS:
        return BUILDS[name]()
    if name in SMALL:
        raise ValueError("KerasHub has no tf_keras form")
    shape = (APPLICATIONS[name],) * 2 + (3,)
    network = getattr(keras.applications, name, None)
    if network is None:
        network = getattr(keras.applications.convnext, name)
    return network(weights=None, input_shape=shape, classes=CLASSES), shape


def wrap(method, model):
    sparsity, quantization = tfmot.sparsity.keras, tfmot.quantization.keras
    schedule = sparsity.PolynomialDecay(0.0, 0.5, 0, 2, frequency=1)
    if method == "prune":
        return sparsity.prune_low_magnitude(model, schedule)
    if method == "cluster":
        init = tfmot.clustering.keras.CentroidInitialization.LINEAR
        return tfmot.clustering.keras.cluster_weights(model, 16, init)
    if method == "qat":
        return quantization.quantize_model(model)
    # PQAT: prune, strip, then quantize so that the zeros stay.
    pruned = sparsity.strip_pruning(sparsity.prune_low_magnitude(model, schedule))
    scheme = tfmot.experimental.combine.Default8BitPrunePreserveQuantizeScheme()
    annotated = quantization.quantize_annotate_model(pruned)
    return quantization.quantize_apply(annotated, scheme)


def reloaded(model):
    """Through a file of either kind; the error of the last if none works."""
    with tempfile.TemporaryDirectory() as folder:
        for kind in (".keras", ".h5"):
            path = str(pathlib.Path(folder) / f"model{kind}")
            try:
                model.save(path)
                with (
                    tfmot.sparsity.keras.prune_scope(),
                    tfmot.clustering.keras.cluster_scope(),
                    tfmot.quantization.keras.quantize_scope(),
                ):
                    return keras.models.load_model(path, compile=False)
            except Exception as error:
                problem = error
    raise problem


def attempt(name, method, *, eager):
    keras.backend.clear_session()
    keras.utils.set_random_seed(0)
    start = time.perf_counter()
    row = {"network": name, "method": method, "eager": eager}
    try:
        model, shape = build(name)
        rng = np.random.default_rng(0)
        x = rng.normal(size=(4, *shape)).astype("float32")
        if name == "Embedding":
            x = rng.integers(0, 20, (4, *shape)).astype("int32")
        y = rng.integers(0, CLASSES, 4)
        small = wrap(method, model)
        small.compile("sgd", "sparse_categorical_crossentropy", run_eagerly=eager)
        calls = [tfmot.sparsity.keras.UpdatePruningStep()] if method == "prune" else []
        small.fit(x, y, batch_size=2, verbose=0, callbacks=calls)
        before = small.predict_on_batch(x)
        again = reloaded(small)
        np.testing.assert_allclose(before, again.predict_on_batch(x), atol=1e-5)
        row["result"] = "ok"
    except Exception as error:
        row["result"] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    row["seconds"] = round(time.perf_counter() - start, 1)
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    names = [*SMALL, *APPLICATIONS]
    parser.add_argument("--networks", nargs="*", default=names, choices=names)
    parser.add_argument("--methods", nargs="*", default=METHODS, choices=METHODS)
    parser.add_argument("--eager", action="store_true", help="train without a graph")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    args = parser.parse_args()
    rows = json.loads(args.out.read_text())["rows"] if args.out.exists() else []
    done = {(row["network"], row["method"]) for row in rows}
    for name in args.networks:
        for method in args.methods:
            if (name, method) in done:
                continue
            rows.append(attempt(name, method, eager=args.eager))
            print(json.dumps(rows[-1]), flush=True)
            result = {"tfmot": tfmot.__version__, "rows": rows}
            part = args.out.with_suffix(".part")
            part.write_text(json.dumps(result, indent=1) + "\n")
            os.replace(part, args.out)


if __name__ == "__main__":
    main()
