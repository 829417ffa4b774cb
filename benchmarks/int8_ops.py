"""Which layers LiteRT runs in int8: one small network each, written, read and run.

python benchmarks/int8_ops.py [--only PATTERN ...] [--out .../int8_ops.json]
python benchmarks/int8_ops.py --table docs/int8_ops.md

Each network goes through `post_training.quantize` and `export.litert`, and what the
file does is compared with what the quantized model does, in levels of the output.
"""

import argparse
import fnmatch
import json
import os
import pathlib
import tempfile
import warnings

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from keras import layers as L

import keras_dlopt as dlopt
from keras_dlopt.export.contents import read

HERE = pathlib.Path(__file__).parent
IMAGE, ROWS, VECTOR = (8, 8, 4), (8, 4), (8,)
LINKS = ("QUANTIZE", "DEQUANTIZE")


def activations():
    """Activations, on images."""
    names = "relu relu6 sigmoid tanh softmax silu gelu hard_sigmoid hard_silu elu selu"
    names += " softplus softsign leaky_relu mish exponential"
    for name in names.split():
        yield name, IMAGE, lambda x, name=name: L.Activation(name)(x)
    yield "ReLU(max_value=1)", IMAGE, L.ReLU(max_value=1.0)
    yield "PReLU", IMAGE, L.PReLU(keras.initializers.Constant(0.2), shared_axes=[1, 2])
    yield "LeakyReLU", IMAGE, L.LeakyReLU(0.1)
    yield "ELU", IMAGE, L.ELU()
    yield "Softmax", IMAGE, L.Softmax()
    yield "LayerScale", ROWS, dlopt.layers.LayerScale(0.5)


def weighted():
    """Layers with kernels."""
    yield "Conv1D", ROWS, L.Conv1D(4, 3)
    yield "Conv2D", IMAGE, L.Conv2D(4, 3)
    yield "Conv2D(groups=2)", IMAGE, L.Conv2D(4, 3, groups=2)
    yield "Conv2D(dilation_rate=2)", IMAGE, L.Conv2D(4, 3, dilation_rate=2)
    yield "Conv3D", (4, 8, 8, 2), L.Conv3D(4, 3)
    yield "Conv1DTranspose", ROWS, L.Conv1DTranspose(4, 3, strides=2)
    yield "Conv2DTranspose", IMAGE, L.Conv2DTranspose(4, 3, strides=2)
    yield "DepthwiseConv1D", ROWS, L.DepthwiseConv1D(3)
    yield "DepthwiseConv2D", IMAGE, L.DepthwiseConv2D(3)
    yield "SeparableConv1D", ROWS, L.SeparableConv1D(4, 3)
    yield "SeparableConv2D", IMAGE, L.SeparableConv2D(4, 3)
    yield "Dense", VECTOR, L.Dense(4)
    yield "Dense(softmax)", VECTOR, L.Dense(4, activation="softmax")
    yield "EinsumDense", ROWS, L.EinsumDense("abc,cd->abd", (None, 5))
    yield "Embedding", (6,), L.Embedding(11, 4)


def sequences():
    """Attention, recurrence and normalization."""
    yield "MultiHeadAttention", ROWS, lambda x: L.MultiHeadAttention(2, 2)(x, x)
    for kind in (L.LSTM, L.GRU, L.SimpleRNN):
        yield kind.__name__, ROWS, kind(4)
    yield "BatchNormalization", IMAGE, L.BatchNormalization()
    yield "BatchNormalization (vector)", VECTOR, L.BatchNormalization()
    yield "LayerNormalization", ROWS, L.LayerNormalization()
    yield "RMSNormalization", ROWS, L.RMSNormalization()
    yield "GroupNormalization", IMAGE, L.GroupNormalization(2)
    yield "UnitNormalization", ROWS, L.UnitNormalization()
    yield "Rescaling", IMAGE, L.Rescaling(1 / 127.5, offset=-1.0)
    yield "Normalization", IMAGE, L.Normalization(mean=[1, 2, 3, 4], variance=[4] * 4)


def merges():
    """Layers that join two branches."""
    for kind in (L.Add, L.Subtract, L.Multiply, L.Average, L.Maximum, L.Minimum):
        yield kind.__name__, IMAGE, lambda x, kind=kind: kind()(branches(x))
    yield "Concatenate", IMAGE, lambda x: L.Concatenate()(branches(x))
    yield "Dot", ROWS, lambda x: L.Dot(axes=2)(branches(x))
    yield "SqueezeExcitation", IMAGE, dlopt.layers.SqueezeExcitation(ratio=0.5)


def branches(x):
    """Two tensors of one shape."""
    return [L.Dense(4)(x), L.Dense(4, activation="relu")(x)]


def shapes():
    """Pooling, shapes and sampling."""
    yield "MaxPooling1D", ROWS, L.MaxPooling1D(2)
    yield "MaxPooling2D", IMAGE, L.MaxPooling2D(2)
    yield "AveragePooling1D", ROWS, L.AveragePooling1D(2)
    yield "AveragePooling2D", IMAGE, L.AveragePooling2D(2)
    yield "AveragePooling2D(same)", IMAGE, L.AveragePooling2D(3, 2, padding="same")
    yield "GlobalAveragePooling1D", ROWS, L.GlobalAveragePooling1D()
    yield "GlobalAveragePooling2D", IMAGE, L.GlobalAveragePooling2D()
    yield "GlobalMaxPooling1D", ROWS, L.GlobalMaxPooling1D()
    yield "GlobalMaxPooling2D", IMAGE, L.GlobalMaxPooling2D()
    yield "UpSampling1D", ROWS, L.UpSampling1D()
    yield "UpSampling2D(nearest)", IMAGE, L.UpSampling2D()
    yield "UpSampling2D(bilinear)", IMAGE, L.UpSampling2D(interpolation="bilinear")
    yield "Resizing", IMAGE, L.Resizing(12, 12)
    yield "ZeroPadding1D", ROWS, L.ZeroPadding1D()
    yield "ZeroPadding2D", IMAGE, L.ZeroPadding2D()
    yield "Cropping1D", ROWS, L.Cropping1D()
    yield "Cropping2D", IMAGE, L.Cropping2D()
    yield "Flatten", IMAGE, L.Flatten()
    yield "Reshape", IMAGE, L.Reshape((64, 4))
    yield "Permute", IMAGE, L.Permute((2, 3, 1))
    yield "RepeatVector", VECTOR, L.RepeatVector(3)


def between():
    """Operations between layers."""
    ops = keras.ops
    yield "x + y", IMAGE, lambda x: sum_of(branches(x))
    yield "x * y", IMAGE, lambda x: branches(x)[0] * branches(x)[1]
    yield "x - y", IMAGE, lambda x: ops.subtract(*branches(x))
    yield "x / 127.5 - 1", IMAGE, lambda x: x / 127.5 - 1.0
    yield "keras.ops.relu", IMAGE, lambda x: ops.relu(L.Dense(4)(x))
    yield "keras.ops.mean", IMAGE, lambda x: ops.mean(x, axis=(1, 2))
    yield "keras.ops.max", IMAGE, lambda x: ops.max(x, axis=(1, 2))
    yield "keras.ops.concatenate", IMAGE, lambda x: ops.concatenate(branches(x), -1)
    yield "keras.ops.transpose", ROWS, lambda x: ops.transpose(x, (0, 2, 1))
    yield "keras.ops.square", IMAGE, ops.square
    yield "keras.ops.split", IMAGE, lambda x: ops.split(x, 2, axis=-1)[1]
    yield "x[:, 1:3]", IMAGE, lambda x: x[:, 1:3]
    yield "x[..., ::-1]", IMAGE, lambda x: x[..., ::-1]


def sum_of(pair):
    """Their sum, by the operator."""
    return pair[0] + pair[1]


GROUPS = (activations, weighted, sequences, merges, shapes, between)


def network(name, shape, body):
    """A dense layer, what is measured, and another dense layer; and its inputs."""
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    if name == "Embedding":
        inputs, x = keras.Input(shape, dtype="int32"), rng.integers(0, 11, (64, *shape))
        given = inputs
    else:
        inputs, x = keras.Input(shape), rng.normal(size=(64, *shape)).astype("float32")
        given = L.Dense(shape[-1], name="first")(inputs)
    model = keras.Model(inputs, L.Dense(3, name="last")(body(given)))
    for weight in model.weights:
        if weight.name.startswith(("moving_", "gamma", "beta")):
            shift = 1.0 if weight.name in ("moving_variance", "gamma") else 0.0
            weight.assign(shift + rng.uniform(0.1, 0.5, weight.shape))
    return model, x


def measured(name, shape, body):
    """What became of one network, as plain data."""
    model, x = network(name, shape, body)
    found = {"name": name}
    with (
        tempfile.TemporaryDirectory() as folder,
        warnings.catch_warnings(record=True) as said,
    ):
        warnings.simplefilter("always")
        path = os.path.join(folder, "op.tflite")
        try:
            small = dlopt.post_training.quantize(model, x)
            report = dlopt.export.litert(small, path, data=x)
        except Exception as error:
            found["error"] = f"{type(error).__name__}: {' '.join(str(error).split())}"
        else:
            found |= operators(read(path))
            found["levels"] = round(report.agreement.largest_lsb, 2)
            loss = np.abs(small.predict(x, verbose=0) - model.predict(x, verbose=0))
            found["loss"] = float(loss.max() / np.ptp(model.predict(x, verbose=0)))
    found["warned"] = [str(w.message) for w in said if "int8" in str(w.message)]
    return found


def operators(contents):
    """The operators of a file, by the type they compute in."""
    found = {"int8": [], "float": []}
    for op in contents.operators:
        ends = [contents.tensors[i].dtype for i in (*op.inputs, *op.outputs) if i >= 0]
        if op.name not in LINKS:
            found["float" if "FLOAT32" in ends else "int8"].append(op.name)
    return found


def table(rows):
    """The measurements in Markdown."""
    lines = ["| layer | LiteRT operators in int8 | in float | levels |"]
    lines.append("|---|---|---|---|")
    for row in rows:
        name = f"`{row['name']}`"
        if "error" in row:
            lines.append(f"| {name} | none: not written | | |")
            continue
        ints, floats = (
            ", ".join(dict.fromkeys(row[kind])) or "none" for kind in ("int8", "float")
        )
        lines.append(f"| {name} | {ints} | {floats} | {row['levels']:g} |")
    return "\n".join(lines)


def main():
    """Measures, or writes the table of what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=["*"], help="patterns of names")
    parser.add_argument("--out", default=HERE / "results" / "int8_ops.json")
    parser.add_argument("--table", type=pathlib.Path)
    options = parser.parse_args()
    out = pathlib.Path(options.out)
    if options.table:
        text = options.table.read_text()
        head, _, rest = text.partition("<!-- measured -->\n")
        _, _, tail = rest.partition("<!-- end -->")
        rows = json.loads(out.read_text())["rows"]
        options.table.write_text(
            f"{head}<!-- measured -->\n{table(rows)}\n<!-- end -->{tail}"
        )
        return
    known = json.loads(out.read_text())["rows"] if out.exists() else []
    found = {row["name"]: row for row in known}
    networks = [one for group in GROUPS for one in group()]
    for name, shape, body in networks:
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in options.only):
            found[name] = measured(name, shape, body)
            print(json.dumps(found[name])[:300], flush=True)
            rows = [found[one] for one, _, _ in networks if one in found]
            out.write_text(json.dumps({"rows": rows}, indent=1))


if __name__ == "__main__":
    main()
