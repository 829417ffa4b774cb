"""Random jobs for `compress`: a network, its data and a budget, drawn by seed.

    KERAS_DLOPT_DATA=... python benchmarks/jobs.py --jobs 20 --seconds 2400

A job is a network (LeNet-300-100, LeNet-5, ResNet-20 of width 8, a small MobileNetV2 or
vision transformer), its data (MNIST, Fashion-MNIST: 3,000 images to train and 1,000 to
validate on; digits: all), and a budget: a drop of the accuracy, a share of the bytes,
both, or an int8 file with a drop. The network is trained, then compressed in one call.
The budget is kept if the file is within its bytes, and if the accuracy on test images,
which are looked at once, falls by no more than was allowed and two standard errors of
the difference; a refusal in one sentence is no miss, but is counted. MLPerf's wake word
is left out: its 45 labelled maps are too few to judge on.

A finished job is written to `benchmarks/results/jobs.json` at once; a second call goes
on with those that are missing. Times are of a machine with other work on it.
"""

import argparse
import json
import os
import pathlib
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import keras
import numpy as np

import keras_dlopt as dlopt
from keras_dlopt import models
from keras_dlopt.errors import DloptError

RESULTS = pathlib.Path(__file__).parent / "results" / "jobs.json"
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
NETWORKS = {
    "lenet_300_100": lambda shape: models.lenet_300_100(input_shape=shape),
    "lenet5": lambda shape: models.lenet5(input_shape=shape),
    "resnet20": lambda shape: models.resnet20(input_shape=shape, width=8),
    "mobilenet": lambda shape: models.mobilenet_small(input_shape=shape, width=8),
    "transformer": lambda shape: models.vit_small(
        input_shape=shape, patch=shape[0] // 4, units=32, depth=2, heads=2
    ),
}
DATA = ("mnist", "fashion_mnist", "digits")
DROPS, SIZES = (0.005, 0.01, 0.02), (0.2, 0.1, 0.05, 0.03)
EPOCHS, TRAIN, VAL, TEST = 12, 3000, 1000, 4000


def drawn(number):
    """The job of a number: network, data, budget."""
    rng = np.random.default_rng(number)
    while True:
        network, data = rng.choice(list(NETWORKS)), rng.choice(DATA)
        # LeNet-5 and the blocks of MobileNetV2 leave nothing of 8x8 pixels.
        if data != "digits" or network in ("lenet_300_100", "resnet20", "transformer"):
            break
    kind = rng.choice(["drop", "size", "both", "int8"])
    budget = {}
    if kind != "size":
        budget["max_accuracy_drop"] = float(rng.choice(DROPS))
    if kind in ("size", "both"):
        budget["size"] = float(rng.choice(SIZES))
    if kind == "int8":
        budget["int8"] = True
    return {"network": str(network), "data": str(data), "budget": budget}


def parts(name):
    """Arrays to train, validate and test on."""
    data = dlopt.data.load(name)
    most = (TRAIN, VAL, TEST)
    splits = zip((data.train, data.val, data.test), most, strict=True)
    return [(x[:n], y[:n]) for (x, y), n in splits]


def logits(path, x):
    """What a written file gives."""
    if path.suffix == ".tflite":
        return dlopt.export.Predictor(path)(x)
    return dlopt.load_compressed(path).predict(x, verbose=0)


def run(number, folder):
    """The row of one job."""
    job = drawn(number)
    train, val, test = parts(job["data"])
    keras.utils.set_random_seed(number)
    model = NETWORKS[job["network"]](train[0].shape[1:])
    steps = EPOCHS * -(-len(train[1]) // 64)
    rate = keras.optimizers.schedules.CosineDecay(2e-3, steps)
    model.compile(keras.optimizers.Adam(rate), LOSS)
    start = time.process_time()
    model.fit(*train, batch_size=64, epochs=EPOCHS, verbose=0)
    row = {"number": number, **job, "parent_cpu_s": round(time.process_time() - start)}
    path = folder / ("a.tflite" if "int8" in job["budget"] else "a.dlopt")
    start = time.process_time()
    options = {"epochs": EPOCHS} if "epochs" not in job["budget"] else {}
    try:
        made = dlopt.compress(
            model, train, val, path=path, seed=number, **options, **job["budget"]
        )
    except DloptError as error:
        row |= {"refused": str(error), "kept": None}
    else:
        row |= judged(model, made, path, test, job["budget"])
    return row | {"cpu_s": round(time.process_time() - start)}


def judged(model, made, path, test, budget):
    """Whether the file keeps the budget on the test images."""
    x, y = test
    before, after = (
        (rows.argmax(-1) == y)
        for rows in (model.predict(x, verbose=0), logits(path, x))
    )
    lost = float(before.mean() - after.mean())
    error = float((before.astype(int) - after).std() / np.sqrt(len(y)))
    drop = budget.get("max_accuracy_drop")
    size = path.stat().st_size
    held = drop is None or lost <= drop + 2 * error
    small = "size" not in budget or size <= budget["size"] * made.plain_bytes
    return {
        "way": made.trials[0].method,
        "tried": len(made.trials),
        "bytes": size,
        "plain_bytes": made.plain_bytes,
        "test_before": float(before.mean()),
        "test_after": float(after.mean()),
        "lost": lost,
        "standard_error": error,
        "kept": bool(held and small),
    }


def main():
    """Runs the jobs that are missing."""
    import tempfile

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--jobs", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=2400, help="of the processor")
    asked = parser.parse_args()
    rows = json.loads(RESULTS.read_text())["jobs"] if RESULTS.exists() else []
    done = {row["number"] for row in rows}
    for number in range(asked.jobs):
        if number in done or time.process_time() > asked.seconds:
            continue
        with tempfile.TemporaryDirectory() as folder:
            rows.append(run(number, pathlib.Path(folder)))
        found = {
            "kept": sum(row["kept"] is True for row in rows),
            "missed": sum(row["kept"] is False for row in rows),
            "refused": sum(row["kept"] is None for row in rows),
            "jobs": rows,
        }
        RESULTS.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
