"""What quantization-aware training gives back over quantization after training.

    KERAS_DLOPT_DATA=... python benchmarks/qat_pays.py [--networks ...] [--seeds 3]

Per network and seed: trained in float; quantized after training on 512 training
images; trained on from there with the quantizers. Both are written as `.tflite` files,
verified, and judged by the file on all test images, beside the float model trained on
for as long. The networks: inverted residuals with squeeze-and-excitation and hard swish
(as in MobileNetV3) or swish (as in EfficientNet) on Fashion-MNIST, a transformer and an
LSTM on the rows of its images. Settings were set once, none was tuned. A finished row
is written at once and not run again.
"""

import argparse
import json
import os
import pathlib
import tempfile
import time
import warnings

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")

import keras
import numpy as np

import keras_dlopt as dlopt

RESULTS = pathlib.Path(__file__).parent / "results" / "qat_pays.json"
L = keras.layers
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def block(x, expand, filters, strides, act, gate):
    """An inverted residual with squeeze-and-excitation."""
    inner = expand * x.shape[-1]
    y = act()(L.BatchNormalization()(L.Conv2D(inner, 1, use_bias=False)(x)))
    y = L.DepthwiseConv2D(3, strides, padding="same", use_bias=False)(y)
    y = act()(L.BatchNormalization()(y))
    squeezed = L.GlobalAveragePooling2D(keepdims=True)(y)
    squeezed = act()(L.Conv2D(max(inner // 4, 8), 1)(squeezed))
    y = L.Multiply()([y, L.Activation(gate)(L.Conv2D(inner, 1)(squeezed))])
    y = L.BatchNormalization()(L.Conv2D(filters, 1, use_bias=False)(y))
    return L.Add()([x, y]) if y.shape == x.shape else y


def mobile(act, gate, shape):
    """Five inverted residuals on 14x14 and 7x7."""
    inputs = keras.Input(shape)
    x = L.Conv2D(16, 3, strides=2, padding="same", use_bias=False)(inputs)
    x = act()(L.BatchNormalization()(x))
    for expand, filters, strides in (
        (2, 16, 1),
        (3, 24, 2),
        (3, 24, 1),
        (3, 40, 1),
        (3, 40, 1),
    ):
        x = block(x, expand, filters, strides, act, gate)
    x = act()(L.BatchNormalization()(L.Conv2D(96, 1, use_bias=False)(x)))
    return keras.Model(inputs, L.Dense(10)(L.GlobalAveragePooling2D()(x)))


def transformer(shape, width=32, depth=2):
    """Rows as tokens."""
    inputs = keras.Input(shape)
    x = L.Dense(width)(L.Reshape(shape[:2])(inputs))
    place = keras.ops.arange(shape[0], dtype="int32")[None]
    x = L.Add()([x, L.Embedding(shape[0], width)(place)])
    for _ in range(depth):
        y = L.LayerNormalization()(x)
        x = L.Add()([x, L.MultiHeadAttention(4, width // 4)(y, y)])
        y = L.Dense(2 * width, activation="gelu")(L.LayerNormalization()(x))
        x = L.Add()([x, L.Dense(width)(y)])
    x = L.GlobalAveragePooling1D()(L.LayerNormalization()(x))
    return keras.Model(inputs, L.Dense(10)(x))


def recurrent(shape):
    """Rows in their order."""
    inputs = keras.Input(shape)
    x = L.LSTM(48)(L.Reshape(shape[:2])(inputs))
    return keras.Model(inputs, L.Dense(10)(L.Dense(32, activation="relu")(x)))


NETWORKS = {
    "MobileNetV3-like": lambda s: mobile(
        lambda: L.Activation("hard_swish"), "hard_sigmoid", s
    ),
    "EfficientNet-like": lambda s: mobile(lambda: L.Activation("swish"), "sigmoid", s),
    "transformer": transformer,
    "LSTM": recurrent,
}


def trained(model, data, epochs, rate, args):
    """Adam with a rate that falls to 0."""
    x, y = data.x_train[: args.images], data.y_train[: args.images]
    steps = epochs * (len(x) // args.batch_size)
    schedule = keras.optimizers.schedules.CosineDecay(rate, steps)
    model.compile(dlopt.optimizers.AdamW(schedule, weight_decay=1e-4), LOSS)
    model.fit(x, y, args.batch_size, epochs, verbose=0)
    return model


def accuracy(predict, data):
    """Percent of the test images."""
    logits = np.concatenate(
        [predict(data.x_test[i : i + 500]) for i in range(0, len(data.x_test), 500)]
    )
    return 100.0 * float((logits.argmax(-1) == data.y_test).mean())


def of_file(model, data):
    """Accuracy, bytes and islands of the int8 file of a model."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model.tflite"
        report = dlopt.export.litert(model, path, data=data.x_train[:64])
        score = accuracy(dlopt.export.Predictor(path), data)
    islands = [str(one) for one in report.islands]
    return {"accuracy": score, "bytes": report.size, "float operations": islands}


def row(name, seed, data, args):
    """All figures of one network and seed."""
    start = time.perf_counter()
    keras.utils.set_random_seed(seed)
    model = trained(NETWORKS[name](data.input_shape), data, args.epochs, 3e-3, args)
    found = {"network": name, "seed": seed, "parameters": model.count_params()}
    quantized = dlopt.post_training.quantize(model, data.x_train[:512])
    found["after training"] = of_file(quantized, data)
    trained(quantized, data, args.more, 3e-4, args)
    found["with training"] = of_file(quantized, data)
    predict = lambda m: lambda x: m.predict(x, verbose=0)  # noqa: E731
    found["float"] = accuracy(predict(model), data)
    trained(model, data, args.more, 3e-4, args)
    found["float, trained on"] = accuracy(predict(model), data)
    found["seconds"] = round(time.perf_counter() - start, 1)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=[*NETWORKS], choices=NETWORKS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--more", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--data", default="fashion_mnist")
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    data = dlopt.data.load(args.data)
    settings = {k: getattr(args, k) for k in ("images", "epochs", "more", "batch_size")}
    known = json.loads(args.out.read_text()) if args.out.exists() else {"rows": []}
    known["settings"] = {"data": args.data, **settings}
    for seed in range(args.seeds):
        for name in args.networks:
            if any((r["network"], r["seed"]) == (name, seed) for r in known["rows"]):
                continue
            known["rows"].append(row(name, seed, data, args))
            print(json.dumps(known["rows"][-1]), flush=True)
            args.out.write_text(json.dumps(known, indent=1) + "\n")


if __name__ == "__main__":
    main()
