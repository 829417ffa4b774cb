"""Random codes beside coded integers: bytes and error of small networks of the digits.

    python benchmarks/random_code.py [--seeds 3]

A network of 96 hidden units is trained in float, then towards a number of bytes for 60
epochs; the file is read back and judged on the test images. Nothing was chosen by
these. With `--smoke` one seed and 4 epochs, written nowhere.
"""

import argparse
import json
import os
import pathlib
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras

import keras_dlopt as dlopt

RESULTS = pathlib.Path(__file__).parent / "results" / "random_code.json"
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
BATCH, BITS = 32, 10
# Goal in bytes, and whether the network is hashed to a quarter first.
WAYS = [
    ("MinimalRandomCode", 400, False),
    ("MinimalRandomCode", 400, True),
    ("MinimalRandomCode", 1_000, False),
    ("RateAware", 400, False),
    ("RateAware", 1_000, False),
]


def trained(digits, seed, epochs):
    keras.utils.set_random_seed(seed)
    net = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten()])
    net.add(keras.layers.Dense(96, "relu"))
    net.add(keras.layers.Dense(10))
    fit(net, digits, 3e-3, epochs)
    return net


def fit(model, digits, rate, epochs):
    model.compile(keras.optimizers.Adam(rate), LOSS, steps_per_execution=5)
    model.fit(*digits.train, batch_size=BATCH, epochs=epochs, verbose=0)


def error(model, digits):
    found = model.predict(digits.test[0], verbose=0).argmax(-1)
    return round(100 * float((found != digits.test[1]).mean()), 2)


def run(way, goal, hashed, seed, digits, epochs):
    net = trained(digits, seed, epochs // 3)
    row = {"way": way, "goal": goal, "hashed": hashed, "seed": seed}
    row["error_float"] = error(net, digits)
    if hashed:
        wide = dlopt.transform(net, dlopt.hashed_recipe(net, ratio=0.25))
        fit(wide, digits, 3e-3, epochs // 6 + 1)
        net = dlopt.hashed_layers(wide)
    end = epochs * -(-len(digits.x_train) // BATCH)
    bits = {"bits": BITS} if way == "MinimalRandomCode" else {}
    transform = getattr(dlopt, way)(goal, end=end, **bits)
    small = dlopt.transform(net, dlopt.Recipe([(dlopt.rank(1, 2), transform)]))
    fit(small, digits, 2e-3, epochs + 1)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "small.dlopt"
        dlopt.save_compressed(dlopt.finalize(small), path)
        row["bytes"] = path.stat().st_size
        row["error"] = error(dlopt.load_compressed(path), digits)
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--smoke", action="store_true")
    args = parser.parse_args()
    digits, rows = dlopt.data.load("digits"), []
    for way, goal, hashed in WAYS:
        for seed in range(1 if args.smoke else args.seeds):
            epochs = 4 if args.smoke else 60
            rows.append(run(way, goal, hashed, seed, digits, epochs))
            print(json.dumps(rows[-1]), flush=True)
    if not args.smoke:
        RESULTS.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
