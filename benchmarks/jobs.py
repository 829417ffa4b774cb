"""Random jobs for `compress`: a network, its data and a budget, drawn by seed.

    KERAS_DLOPT_DATA=... python benchmarks/jobs.py --jobs 20 --seconds 2400
    KERAS_DLOPT_DATA=... python benchmarks/jobs.py --fixed --seconds 2400
    KERAS_DLOPT_DATA=... python benchmarks/jobs.py --forty

A job is a network (LeNet-300-100, LeNet-5, ResNet-20 of width 8, a small MobileNetV2 or
vision transformer), its data (MNIST, Fashion-MNIST: 3,000 images to train and 1,000 to
validate on; digits: all), and a budget: a drop of the accuracy, a share of the bytes,
both, or an int8 file with a drop. Numbers from 20 on have what the first twenty lack:
MLPerf's wake word, latencies, and MobileNetV2. The network is trained, then compressed
in one call. The budget is kept if the file is within its bytes (the model within its
latency), and if the accuracy on test examples, which are looked at once, falls by no
more than was allowed and two standard errors of the difference; a refusal in one
sentence is no miss, but is counted. The wake word has 45 labelled maps: 15 to train on,
10 to validate and 20 to test, each in 40 copies moved in time and strength; its errors
are those of 20 maps, not of 800.

With `--fixed` the same networks are trained under each of `FIXED`, for as many epochs
and with the same teacher, and judged alike. A recipe whose file, written before any
training, is over twice the bytes is not trained. `--only` runs jobs again.

With `--forty` LeNet-5 is trained for five epochs on all of MNIST and Fashion-MNIST, and
`compress(model, train, val, size=1 / 40)` is called with nothing else: bytes, accuracy,
churn and calibration error on the 10,000 test images, seconds by the clock and of the
processor.

A finished job is written to `benchmarks/results/jobs.json` at once; a second call goes
on with those that are missing, the cheapest first. Times are of a machine with other
work on it.
"""

import argparse
import json
import math
import os
import pathlib
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")

import keras
import numpy as np

import keras_dlopt as dlopt
from keras_dlopt import measure, models
from keras_dlopt.auto.goals import coded, plain_bytes
from keras_dlopt.errors import DloptError

RESULTS = pathlib.Path(__file__).parent / "results" / "jobs.json"
MLPERF = pathlib.Path(os.environ.get("KERAS_DLOPT_DATA", "data")) / "mlperf_tiny"
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
DROPS, SIZES, SHARES = (0.005, 0.01, 0.02), (0.2, 0.1, 0.05, 0.03), (0.7, 0.5)
EPOCHS, TRAIN, VAL, TEST = 12, 3000, 1000, 4000
FIRST, WAKE, COPIES = 20, "wake_word", 40
FIXED = ("int8", "pruned-80-int8", "pruned-80-clustered-16-int8", "deep-compression")


def drawn(number):
    """The job of a number: network, data, budget."""
    rng = np.random.default_rng(number)
    more = number >= FIRST
    networks = [*NETWORKS, WAKE] if more else list(NETWORKS)
    kinds = ["drop", "size", "both", "int8", *(["latency"] if more else [])]
    while True:
        network, data = rng.choice(networks), rng.choice(DATA)
        # LeNet-5 and the blocks of MobileNetV2 leave nothing of 8x8 pixels.
        if data == "digits" and network in ("lenet5", "mobilenet"):
            continue
        if not more:
            kind = rng.choice(kinds)
            break
        kind = rng.choice(kinds)
        if network in (WAKE, "mobilenet") or kind == "latency":
            break
    budget = {}
    if kind != "size":
        budget["max_accuracy_drop"] = float(rng.choice(DROPS))
    if kind in ("size", "both"):
        budget["size"] = float(rng.choice(SIZES))
    if kind == "int8":
        budget["int8"] = True
    if kind == "latency":
        budget["max_latency_share"] = float(rng.choice(SHARES))
    data = WAKE if network == WAKE else data
    return {"network": str(network), "data": str(data), "budget": budget}


def parts(name):
    """Arrays to train, validate and test on."""
    if name == WAKE:
        return maps()
    data = dlopt.data.load(name)
    most = (TRAIN, VAL, TEST)
    splits = zip((data.train, data.val, data.test), most, strict=True)
    return [(x[:n], y[:n]) for (x, y), n in splits]


def maps():
    """The wake word's maps, each in copies moved in time and strength."""
    found = np.load(MLPERF / "wakeword_samples.npz")
    x, y = found["specs"].astype("float32"), found["labels"].astype("int64")
    rng = np.random.default_rng(0)
    order = rng.permutation(len(x))
    made = []
    for which in np.split(order, [15, 25]):
        moved = [
            np.roll(one, rng.integers(-2, 3), axis=0) * rng.uniform(0.9, 1.1)
            + rng.normal(0, 0.01, one.shape)
            for one in np.repeat(x[which], COPIES, axis=0)
        ]
        made.append((np.stack(moved).astype("float32"), np.repeat(y[which], COPIES)))
    return made


def logits(path, x):
    """What a written file gives."""
    if path.suffix == ".tflite":
        return dlopt.export.Predictor(path)(x)
    return dlopt.load_compressed(path).predict(x, verbose=0)


def trained(number, kept):
    """The job, its parts, its network and what training that took of the processor."""
    job = drawn(number)
    data = parts(job["data"])
    file = None if kept is None else kept / f"{number}.keras"
    if job["network"] == WAKE:
        model = dlopt.interop.load(MLPERF / "wakeword_dscnn1d.h5")
        model = flat(model)
        return job, data, model, 0
    if file is not None and file.exists():
        return job, data, keras.models.load_model(file), None
    (x, y) = data[0]
    keras.utils.set_random_seed(number)
    model = NETWORKS[job["network"]](x.shape[1:])
    steps = EPOCHS * -(-len(y) // 64)
    rate = keras.optimizers.schedules.CosineDecay(2e-3, steps)
    model.compile(keras.optimizers.Adam(rate), LOSS)
    start = time.process_time()
    model.fit(x, y, batch_size=64, epochs=EPOCHS, verbose=0)
    took = round(time.process_time() - start)
    if file is not None:
        model.save(file)
    return job, data, model, took


def flat(model):
    """The network with a row of outputs an example."""
    if len(model.output_shape) == 2:
        return model
    return keras.Model(model.inputs, keras.layers.Flatten()(model.outputs[0]))


def suffix(budget):
    return "a.tflite" if "int8" in budget else "a.dlopt"


def run(number, folder, kept=None):
    """The row of one job."""
    job, (train, val, test), model, took = trained(number, kept)
    row = {"number": number, **job, "parent_cpu_s": took}
    budget = job["budget"]
    path = folder / suffix(budget)
    start = time.process_time()
    try:
        made = dlopt.compress(
            model, train, val, path=path, seed=number, epochs=EPOCHS, **budget
        )
    except DloptError as error:
        row |= {"refused": str(error), "kept": None}
    else:
        row |= {"way": made.trials[0].method, "tried": len(made.trials)}
        row |= judged(model, path, test, job)
    return row | {"cpu_s": round(time.process_time() - start)}


def judged(model, path, test, job):
    """Whether the file keeps the budget on the test examples."""
    (x, y), budget = test, job["budget"]
    before, after = (
        (rows.argmax(-1) == y).astype(float)
        for rows in (model.predict(x, verbose=0), logits(path, x))
    )
    lost = before - after
    if job["data"] == WAKE:  # copies of a map are no examples of their own
        lost = lost.reshape(-1, COPIES).mean(1)
    error = float(lost.std() / np.sqrt(len(lost)))
    drop = budget.get("max_accuracy_drop")
    plain = plain_bytes(model)
    size = path.stat().st_size
    held = drop is None or lost.mean() <= drop + 2 * error
    small = "size" not in budget or size <= budget["size"] * plain
    row = {
        "bytes": size,
        "plain_bytes": plain,
        "test_before": float(before.mean()),
        "test_after": float(after.mean()),
        "lost": float(lost.mean()),
        "standard_error": error,
    }
    if "max_latency_share" in budget:
        row["latency_share"] = share(model, path, x[:1], path.parent)
        # Two measurements of one file differ by some hundredths.
        small = row["latency_share"] <= 1.1 * budget["max_latency_share"]
    return row | {"kept": bool(held and small)}


def share(model, path, one, folder):
    """Latency of the file's model in LiteRT over the given one's, in turns."""
    files = {"given": folder / "given.tflite", "made": folder / "made.tflite"}
    small = dlopt.load_compressed(path)
    for name, which in (("given", model), ("made", small)):
        dlopt.export.litert(which, files[name], verify=False)
    pair = {name: dlopt.export.Predictor(file) for name, file in files.items()}
    found = measure.latency(pair, one)
    return found["made"].median / found["given"].median


def fixed(number, folder, kept=None):
    """The row of one job under each fixed recipe."""
    job, (train, val, test), model, _ = trained(number, kept)
    budget, row = job["budget"], {"number": number}
    most = budget.get("size", math.inf) * plain_bytes(model)
    for name in FIXED:
        path = folder / suffix(budget)
        if "int8" in budget and not name.endswith("int8"):
            row[name] = {"kept": False, "why": "no int8 file"}
            continue
        at_once = dlopt.transform(model, dlopt.recipe(name, model))
        size = coded(at_once).file_bytes
        at_once.release()
        if size > 2 * most:
            row[name] = {"kept": False, "why": f"{size} bytes before training"}
            continue
        start = time.process_time()
        try:
            dlopt.auto.train(
                model, train, val, recipe=name, epochs=EPOCHS, seed=number, path=path
            )
            row[name] = judged(model, path, test, job)
        except DloptError as error:
            row[name] = {"kept": False, "why": str(error)}
        row[name]["cpu_s"] = round(time.process_time() - start)
    return row


def forty(name, _folder, _kept):
    """LeNet-5 in a fortieth of its bytes: what comes out otherwise than before."""
    data = dlopt.data.load(name)
    keras.utils.set_random_seed(0)
    model = models.lenet5()
    rate = keras.optimizers.schedules.CosineDecay(1e-3, 5 * -(-len(data.y_train) // 64))
    model.compile(keras.optimizers.Adam(rate), LOSS)
    model.fit(*data.train, batch_size=64, epochs=5, verbose=0)
    start = time.process_time()
    made = dlopt.compress(model, data.train, data.val, size=1 / 40)
    spent = round(time.process_time() - start)
    found = dlopt.report.compare(model, made.model, data.test, from_logits=True)
    row = {
        "number": name,
        "way": made.trials[0].method,
        "bytes": made.bytes,
        "ratio": made.ratio,
        "churn": found.changes.churn,
        "seconds": round(made.seconds),
        "cpu_s": spent,
    }
    for side in ("before", "after"):
        quality = getattr(found, side).quality
        row[side] = {
            "test_accuracy": quality.accuracy,
            "calibration_error": quality.calibration_error,
        }
    return row


def summary(rows, fixed_rows):
    """What was kept, and how much smaller than the best fixed recipe."""
    found = {
        "kept": sum(row["kept"] is True for row in rows),
        "missed": sum(row["kept"] is False for row in rows),
        "refused": sum(row["kept"] is None for row in rows),
    }
    ours = {row["number"]: row for row in rows}
    of_fixed = {}
    for name in FIXED:
        held = [row for row in fixed_rows if row[name]["kept"]]
        both = [
            figure(row[name]) / figure(ours[row["number"]])
            for row in held
            if ours.get(row["number"], {}).get("kept")
        ]
        of_fixed[name] = {
            "jobs": len(fixed_rows),
            "kept": len(held),
            "mean_bytes": mean([row[name]["bytes"] for row in held]),
            "both_kept": len(both),
            "ratio": mean(both),
        }
    if fixed_rows:
        found["best_fixed"] = max(
            FIXED,
            key=lambda name: (
                of_fixed[name]["kept"],
                -(of_fixed[name]["mean_bytes"] or math.inf),
            ),
        )
        found["by_fixed_recipe"] = of_fixed
    return found


def figure(row):
    """What is to be small: the time where a latency was asked, else the bytes."""
    return row.get("latency_share", row["bytes"])


def mean(values):
    """The geometric mean; None of nothing."""
    return math.exp(sum(map(math.log, values)) / len(values)) if values else None


def main():
    """Runs the jobs that are missing."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--jobs", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=2400, help="of the processor")
    parser.add_argument("--fixed", action="store_true", help="the fixed recipes")
    parser.add_argument("--forty", action="store_true", help="LeNet-5, 40 times")
    parser.add_argument("--only", type=int, nargs="+", help="run these, again or not")
    parser.add_argument("--parents", type=pathlib.Path, help="folder of the networks")
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS)
    asked = parser.parse_args()
    which, work = ("fixed", fixed) if asked.fixed else ("jobs", run)
    if asked.forty:
        which, work = "forty", forty
    old = rows_of(asked.results)
    done = {row["number"] for row in old[which]}
    took = {row["number"]: row["cpu_s"] for row in old["jobs"]}
    missing = [n for n in range(asked.jobs) if n not in done]
    missing.sort(key=lambda n: (took.get(n, math.inf), n))
    if asked.forty:
        missing = [name for name in ("mnist", "fashion_mnist") if name not in done]
    for number in asked.only or missing:
        if time.process_time() > asked.seconds:
            break
        with tempfile.TemporaryDirectory() as folder:
            row = work(number, pathlib.Path(folder), asked.parents)
        rows = rows_of(asked.results)  # another process may have written
        kept = [one for one in rows[which] if one["number"] != number]
        rows[which] = sorted([*kept, row], key=lambda one: one["number"])
        found = summary(rows["jobs"], rows["fixed"]) | rows
        asked.results.write_text(json.dumps(found, indent=1) + "\n")


def rows_of(path):
    """The rows of both kinds that were written."""
    found = json.loads(path.read_text()) if path.exists() else {}
    return {kind: found.get(kind, []) for kind in ("jobs", "fixed", "forty")}


if __name__ == "__main__":
    main()
