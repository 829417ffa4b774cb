"""Which networks build, train two steps and reload under which method.

    python benchmarks/coverage_families.py --out benchmarks/results/coverage.json

Each network of `keras.applications` (one per family, smallest input, random weights)
and a list of small models that other tools refuse is transformed, trained for two
steps, saved as `.keras`, loaded and compared: "ok" means that the loaded model predicts
the same to the last bit. Each network runs in a process of its own; a network that is
in the file already is skipped, so the run can be stopped and taken up again.
"""

import argparse
import json
import os
import pathlib
import platform
import subprocess
import sys
import tempfile
import time
import traceback
import warnings

import keras
import numpy as np
from coverage_names import APPLICATIONS, CLASSES, METHODS
from keras import layers


@keras.saving.register_keras_serializable("coverage")
class Nested(keras.Model):
    """A subclassed model that holds a Sequential and a subclassed model."""

    def __init__(self, depth=1, **kwargs):
        super().__init__(**kwargs)
        self.depth = depth
        self.stem = keras.Sequential(
            [layers.Conv2D(4, 3), layers.BatchNormalization(), layers.ReLU()]
        )
        self.inner = Nested(depth - 1) if depth else layers.Conv2D(4, 3)
        self.head = layers.Dense(CLASSES)

    def call(self, inputs, training=None):
        x = self.inner(self.stem(inputs, training=training))
        return self.head(x) if self.depth else x

    def get_config(self):
        return {"depth": self.depth}


@keras.saving.register_keras_serializable("coverage")
class Pooled(keras.Model):
    """A subclassed classifier around `Nested`."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.body = Nested()
        self.pool = layers.GlobalAveragePooling2D()

    def call(self, inputs, training=None):
        return self.pool(self.body(inputs, training=training))

    def get_config(self):
        return {}


def _subclassed():
    model = Pooled()
    model(np.zeros((1, 12, 12, 1), "float32"))
    return model, (12, 12, 1)


def _sequential(shape, *body):
    return keras.Sequential([keras.Input(shape), *body, layers.Dense(CLASSES)]), shape


def _embedding():
    ids = keras.Input((6,), dtype="int32")
    x = layers.GlobalAveragePooling1D()(layers.Embedding(20, 4)(ids))
    return keras.Model(ids, layers.Dense(CLASSES)(x)), (6,)


def _attention():
    inputs = keras.Input((6, 8))
    x = layers.MultiHeadAttention(2, 4)(inputs, inputs)
    x = layers.GlobalAveragePooling1D()(x)
    return keras.Model(inputs, layers.Dense(CLASSES)(x)), (6, 8)


def _multiply():
    inputs = keras.Input((8,))
    x = layers.Multiply()([layers.Dense(8)(inputs), layers.Dense(8)(inputs)])
    return keras.Model(inputs, layers.Dense(CLASSES)(x)), (8,)


def _keras_hub():
    import keras_hub

    backbone = keras_hub.models.ViTBackbone(
        image_shape=(16, 16, 3),
        patch_size=4,
        num_layers=2,
        num_heads=2,
        hidden_dim=16,
        mlp_dim=32,
    )
    inputs = keras.Input((16, 16, 3))
    x = layers.GlobalAveragePooling1D()(backbone(inputs))
    return keras.Model(inputs, layers.Dense(CLASSES)(x)), (16, 16, 3)


SMALL = {
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
    "KerasHub ViT backbone": _keras_hub,
}


def build(name: str, **options):
    """The network, and the shape of one input.

    Args:
        name: of the network.
        **options: of those of `keras.applications`.
    """
    if name in SMALL:
        return SMALL[name]()
    shape = (APPLICATIONS[name],) * 2 + (3,)
    network = getattr(keras.applications, name)
    made = network(weights=None, input_shape=shape, classes=CLASSES, **options)
    return made, shape


def prepare(method: str, model: keras.Model):
    """The model and recipe of a method, and how its activations are placed."""
    import keras_dlopt as dlopt

    kernels = dlopt.rank(2, 3, 4, 5)
    schedule = dlopt.schedules.PolynomialSparsity(0.5, end=2, frequency=1)
    if method == "prune":
        return model, dlopt.Recipe([(kernels, dlopt.Prune(schedule))]), ""
    if method == "cluster":
        return model, dlopt.Recipe([(kernels, dlopt.Cluster(16))]), ""
    weights = dlopt.FakeQuant(bits=8)
    if method == "prune_qat":
        weights = dlopt.Prune(schedule) >> weights
    for placement, change in (
        ("int8", lambda m: m),
        ("int8 after split_activations", dlopt.split_activations),
    ):
        try:
            changed = change(model)
            made = dlopt.int8_recipe(changed, weights=weights, strict=True)
            return changed, made, placement
        except (dlopt.errors.ConfigError, KeyError) as error:
            reason = " ".join(str(error).split())[:200]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the reason is in the table
        made = dlopt.int8_recipe(model, weights=weights)
    return model, made, f"simulated: {reason}"


def attempt(name: str, method: str, *, eager: bool) -> dict:
    """Transforms, trains, saves, loads, compares; never raises."""
    import keras_dlopt as dlopt

    keras.utils.clear_session()
    keras.utils.set_random_seed(0)
    start = time.perf_counter()
    row = {"network": name, "method": method, "placement": "", "eager": eager}
    try:
        model, shape = build(name)
        rng = np.random.default_rng(0)
        inputs = getattr(model, "inputs", None)
        if inputs and inputs[0].dtype == "int32":
            x = rng.integers(0, 20, (4, *shape)).astype("int32")
        else:
            x = rng.normal(size=(4, *shape)).astype("float32")
        y = rng.integers(0, CLASSES, 4)
        model, chosen, row["placement"] = prepare(method, model)
        began = time.perf_counter()
        small = dlopt.transform(model, chosen)
        row["transform_seconds"] = round(time.perf_counter() - began, 2)
        train_and_reload(small, x, y, eager=eager)
        row["result"] = "ok"
    except Exception as error:
        row["result"] = f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"
        row["trace"] = traceback.format_exc()[-1500:]
    row["seconds"] = round(time.perf_counter() - start, 1)
    return row


def train_and_reload(model, x, y, *, eager):
    """Trains two steps, saves and loads; raises unless the outputs are the same."""
    model.compile("sgd", "sparse_categorical_crossentropy", run_eagerly=eager)
    history = model.fit(x, y, batch_size=2, verbose=0)
    assert np.isfinite(history.history["loss"]).all(), "the loss is not finite"
    before = keras.ops.convert_to_numpy(model(x, training=False))
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model.keras"
        model.save(path)
        again = keras.saving.load_model(path, compile=False)
    after = keras.ops.convert_to_numpy(again(x, training=False))
    np.testing.assert_array_equal(before, after, "the loaded model differs")


def save(path: pathlib.Path, rows: list[dict]) -> None:
    """Writes all rows, whole or not at all."""
    result = {
        "machine": platform.machine(),
        "python": platform.python_version(),
        "keras": keras.__version__,
        "rows": rows,
    }
    part = path.with_suffix(".part")
    part.write_text(json.dumps(result, indent=1) + "\n")
    os.replace(part, path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    names = [*SMALL, *APPLICATIONS]
    parser.add_argument("--networks", nargs="*", default=names, choices=names)
    parser.add_argument("--methods", nargs="*", default=METHODS, choices=METHODS)
    parser.add_argument("--eager", action="store_true", help="train without a graph")
    parser.add_argument("--again", action="store_true", help="rerun what failed")
    parser.add_argument("--timeout", type=int, default=1800, help="per network")
    parser.add_argument("--python", default=sys.executable, help="runs KerasHub")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    args = parser.parse_args()
    for name in args.networks:
        rows = json.loads(args.out.read_text())["rows"] if args.out.exists() else []
        if args.again:
            rows = [r for r in rows if r["network"] != name or r["result"] == "ok"]
        done = {r["method"] for r in rows if r["network"] == name}
        todo = [m for m in args.methods if m not in done]
        if args.worker:
            for method in todo:
                rows.append(attempt(name, method, eager=args.eager))
                print(json.dumps(rows[-1]), flush=True)
                save(args.out, rows)
        elif todo:
            save(args.out, rows)
            _in_process(name, todo, args)


def _in_process(name, methods, args):
    python = args.python if name.startswith("KerasHub") else sys.executable
    command = [python, __file__, "--worker", "--networks", name]
    command += ["--methods", *methods, "--out", str(args.out)]
    command += ["--eager"] if args.eager else []
    try:
        subprocess.run(command, timeout=args.timeout, check=False)
    except subprocess.TimeoutExpired:
        print(f"{name}: stopped after {args.timeout} seconds", flush=True)


if __name__ == "__main__":
    main()
