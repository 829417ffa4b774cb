"""Wrote the golden files of package version 0.1. Kept to show what is in them.

They are never written again by later versions: what 0.1 saved must load for ever. Run
with that version's source and tests on the path, it fills `v0_1/` anew.
"""

import json
import pathlib
import warnings
import zipfile

import keras
import numpy as np
from keras import layers

FOLDER = pathlib.Path(__file__).parent / "v0_1"
IMAGE = (6, 6, 2)
STEPS, BATCH = 8, 4


@keras.saving.register_keras_serializable("golden")
class Net(keras.Model):
    """Subclassed, with a nested Sequential, BatchNorm and Dropout."""

    def __init__(self, units=5, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.stem = layers.Dense(units, name="stem")
        self.body = keras.Sequential(
            [layers.Dense(units, name="inner"), layers.ReLU(name="relu")], name="body"
        )
        self.norm = layers.BatchNormalization(name="norm")
        self.drop = layers.Dropout(0.5, seed=3, name="drop")
        self.head = layers.Dense(3, name="head")

    def build(self, input_shape):
        self.stem.build(input_shape)
        self.body.build((None, self.units))
        self.norm.build((None, self.units))
        self.head.build((None, self.units))

    def call(self, x, training=False):
        x = self.norm(self.body(self.stem(x)), training=training)
        return self.head(self.drop(x, training=training))

    def get_config(self):
        return {"units": self.units, "name": self.name}


def data(model):
    """Inputs for a model, and targets of its output's shape, from frozen streams."""
    rng = np.random.RandomState(5)
    inner = getattr(model, "model", model)
    shape = getattr(inner, "input_shape", None) or (None, 8)
    x = rng.standard_normal((BATCH * STEPS, *shape[1:])).astype("float32")
    out = model(x[:BATCH]).shape[1:]
    y = np.random.RandomState(6).standard_normal((len(x), *out)).astype("float32")
    return x, y


def digest(model):
    """Name, shape and contents of every variable, optimizer's included."""
    import hashlib

    found = list(model.variables)
    optimizer = getattr(model, "optimizer", None)
    found += optimizer.variables if optimizer is not None else []
    skip = {id(v) for v in model.metrics_variables}
    rows = []
    for v in found:
        if id(v) not in skip:
            value = np.ascontiguousarray(keras.ops.convert_to_numpy(v.value))
            code = hashlib.blake2b(value.tobytes(), digest_size=6).hexdigest()
            rows.append([v.name, str(value.dtype), list(value.shape), code])
    return rows


def predict(model):
    """Predictions for the first batch."""
    x, _ = data(model)
    return np.asarray(keras.ops.convert_to_numpy(model(x[:BATCH], training=False)))


def step(model):
    """One more training step, from whatever state the optimizer is in."""
    x, y = data(model)
    model.train_on_batch(x[:BATCH], y[:BATCH])
    return predict(model)


def transforms():
    """Every weight and activation transform, with every part it can be built of."""
    import keras_dlopt as dlopt
    from catalogue import all_cases
    from keras_dlopt import prune
    from keras_dlopt import transforms as t
    from keras_dlopt.interop.tfmot import clustering

    found = {c.name: c.make() for c in all_cases() if c.kind == "transform"}
    del found["SoftWeightSharing"]  # 0.1 could not train it beside gradient scores
    found |= {
        "snip": dlopt.Prune(0.5, score=prune.SNIP()),
        "rows": dlopt.Prune(0.5, pattern=prune.Rows()),
        "linear": dlopt.Cluster(3, initial="linear", split_signs=True),
        "random": dlopt.Cluster(3, initial="random", seed=2, iterations=5),
        "tfkmeans": dlopt.Cluster(3, initial=clustering.TensorFlowKMeansPlusPlus()),
        "gridded": dlopt.Cluster(3, initial=clustering.GridDensity()),
        "share": t.Share(scale=True),
    }
    return found


def selectors():
    """Every selector once."""
    import keras_dlopt as dlopt

    return [
        (dlopt.named("kernel") & dlopt.inside(layers.Conv2D)) | dlopt.at("a/kernel"),
        ~dlopt.rank(2, 4) & dlopt.matching(".*/depthwise_kernel"),
        dlopt.everything(),
    ]


def branches(named):
    """One branch for every transform, side by side, and the recipe for them all."""
    import keras_dlopt as dlopt

    inputs, outputs, entries = keras.Input(IMAGE), [], []
    for i, transform in enumerate(named.values()):
        x = layers.Conv2D(4, 3, name=f"b{i}_conv")(inputs)
        x = layers.ReLU(name=f"b{i}_relu")(x)
        x = layers.GlobalAveragePooling2D(name=f"b{i}_mean")(x)
        outputs.append(layers.Dense(3, name=f"b{i}_dense")(x))
        place = f"b{i}_relu/output"
        if transform.kind == "weight":
            both = transform.__class__.__name__ not in ("LowRank", "Share")
            place = f"b{i}_{'.*' if both else 'conv'}/kernel"
        entries.append((dlopt.matching(place), transform))
    outputs = layers.Concatenate(name="all")(outputs)
    return keras.Model(inputs, outputs, name="branches"), dlopt.Recipe(entries)


def save(model, name, expected):
    """The model as a `.keras` file, deflated, with what it must predict."""
    path = FOLDER / f"{name}.keras"
    model.save(path)
    with zipfile.ZipFile(path) as file:
        parts = {part: file.read(part) for part in file.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as file:
        for part, content in parts.items():
            file.writestr(part, content)
    loaded = keras.saving.load_model(path)
    expected[name] = predict(model)
    np.testing.assert_array_equal(predict(loaded), expected[name])
    if loaded.optimizer is not None:
        expected[f"{name}/variables"] = np.frombuffer(
            json.dumps(digest(loaded)).encode(), np.uint8
        )
        expected[f"{name}/next"] = step(loaded)
    return path


def compress(path):
    """The transformed model of a `.keras` file as a `.dlopt` file."""
    import keras_dlopt as dlopt

    plain = dlopt.finalize(keras.saving.load_model(path))
    dlopt.save_compressed(plain, path.with_suffix(".dlopt"))


def fit(model, optimizer):
    """Trains for `STEPS` steps."""
    model.compile(optimizer, "mse")
    x, y = data(model)
    model.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0)


def configs():
    """The config of every public object, and what every schedule says."""
    from catalogue import all_cases
    from keras_dlopt.serialize import encode
    from keras_dlopt.transforms import KL

    found = {"KL": {"kind": "transform", "config": encode(KL())}}
    values = {}
    for case in all_cases():
        if case.kind == "model":
            continue
        made = case.make()
        plain = case.kind in ("schedule", "transform")
        found[case.name] = {
            "kind": case.kind,
            "config": encode(made)
            if plain
            else keras.saving.serialize_keras_object(made),
        }
        if case.kind == "schedule":
            values[case.name] = [float(made(s)) for s in range(12)]
    return found, values


def write_transforms(expected):
    """Models with every transform, and what they compress to."""
    import keras_dlopt as dlopt

    keras.utils.set_random_seed(11)
    net, recipe = branches(transforms())
    model = dlopt.transform(net, recipe)
    fit(model, keras.optimizers.SGD(0.05))
    compress(save(model, "transformed", expected))

    net = Net(name="net")
    net(np.zeros((1, 8), "float32"))
    entries = [
        (dlopt.at("stem/kernel"), dlopt.Prune(0.5) >> dlopt.FakeQuant(bits=4)),
        (dlopt.at("head/kernel"), dlopt.SoftWeightSharing(4, strength=1e-3)),
        (dlopt.named("kernel"), dlopt.Cluster(4)),
        (dlopt.inside(layers.ReLU), dlopt.FakeQuantActivation()),
    ]
    nested = dlopt.transform(net, dlopt.Recipe(entries))
    fit(nested, dlopt.optimizers.Adam(0.01))
    compress(save(nested, "subclassed", expected))


def write_optimizers(expected):
    """A small network with every optimizer, after a few steps."""
    import keras_dlopt as dlopt
    from catalogue import all_cases

    keras.utils.set_random_seed(12)
    for case in all_cases():
        if case.kind == "optimizer":
            net = keras.Sequential(
                [keras.Input((8,)), layers.Dense(6, "tanh"), layers.Dense(3)]
            )
            fit(net, case.make())
            save(net, f"optimizer_{case.name}", expected)
    net = keras.Sequential([keras.Input((8,)), layers.Dense(3)])
    rate = dlopt.schedules.OneCycle(0.1, steps=40)
    fit(net, dlopt.optimizers.AdamW(rate, weight_decay=0.1))
    save(net, "optimizer_scheduled", expected)
    for kind in ("SAM", "ASAM"):
        net = keras.Sequential([keras.Input((8,)), layers.Dense(4), layers.Dense(3)])
        sam = getattr(dlopt.optimizers, kind)(net)
        fit(sam, "sgd")
        save(sam, f"optimizer_{kind}", expected)


def write_layers(expected):
    """Every layer, side by side with others of the same input shape."""
    import keras_dlopt as dlopt
    from catalogue import all_cases

    keras.utils.set_random_seed(13)
    cases = [case for case in all_cases() if case.kind == "layer"]
    for shape in sorted({case.input_shape for case in cases}, key=len):
        inputs = keras.Input(shape)
        made = [case.make()(inputs) for case in cases if case.input_shape == shape]
        if len(shape) == 1:
            recipe = dlopt.Recipe([(dlopt.named("kernel"), dlopt.FakeQuant(bits=3))])
            made.append(dlopt.TransformedLayer(layers.Dense(4), recipe)(inputs))
        outputs = layers.Concatenate()([layers.Flatten()(x) for x in made])
        net = keras.Model(inputs, outputs)
        fit(net, keras.optimizers.SGD(0.01))
        save(net, f"layers_{len(shape)}", expected)


def main() -> None:
    """Writes everything."""
    import keras_dlopt as dlopt

    warnings.simplefilter("ignore")
    FOLDER.mkdir(exist_ok=True)
    found, values = configs()
    _, recipe = branches(transforms())
    varied = dlopt.Recipe((s, dlopt.Prune(0.5)) for s in selectors())
    names = keras.saving.get_custom_objects()
    text = {
        "configs": found,
        "schedules": values,
        "recipes": [recipe.to_dict(), varied.to_dict()],
        "registered": sorted(n for n in names if n.startswith("keras_dlopt>")),
    }
    (FOLDER / "configs.json").write_text(json.dumps(text, indent=0) + "\n")
    expected: dict[str, np.ndarray] = {}
    write_layers(expected)
    write_optimizers(expected)
    write_transforms(expected)
    np.savez_compressed(FOLDER / "expected.npz", **expected)


if __name__ == "__main__":
    main()
