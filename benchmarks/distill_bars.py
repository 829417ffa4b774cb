"""What a teacher is worth: students with one, and without.

    python benchmarks/distill_bars.py hinton [--seeds 5]
    python benchmarks/distill_bars.py fashion [--seeds 5]
    python benchmarks/distill_bars.py cached [--rounds 7]

- `hinton`: the networks of Hinton 2015 on MNIST, 784-1200-1200-10 and 784-800-800-10
  with ReLU. The teacher trains with dropout on moved images. Students: on the images as
  they are, `alone` and `distilled`; on moved images, `alone_moved`, `distilled_moved`;
  and `narrowed`, which starts as the 800 strongest units in each layer of the teacher
  after `--more-epochs`, its teacher then, and sees moved images.
- `fashion`: ResNet-20 on Fashion-MNIST teaches `dlopt.models.lenet5()`; `alone` and
  `distilled` see the same moved images in the same epochs, `alone_plain` and
  `distilled_plain` the images as they are. `--size` makes the images smaller.
- `cached`: seconds of an epoch of LeNet-5 alone, with the outputs of a teacher in the
  data, and with the teacher in the step, in turns.

Moved images are a fixed number of copies of the training set, each image with a shift,
turn and scale of its own (MNIST) or a flip and a shift (Fashion-MNIST), so that the
teacher runs once; students go through the copies in turn. Trains on the first 55,000
or 50,000 training images; the others validate. The test set is used once a
network. Each finished network is written at once; a run can be stopped and continued,
and networks that are in the file with the same settings are skipped. Teachers are kept
in --cache. `--smoke` runs on a few hundred images and writes nothing.
"""

import argparse
import json
import os
import pathlib
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import stored
from distill_networks import LOSS, Fashion, Hinton

import keras_dlopt as dlopt
from keras_dlopt import distill

RESULTS = pathlib.Path(__file__).parent / "results" / "distill_bars.json"
BEST = {  # first choices; no search
    "hinton": {
        "batch_size": 512,
        "rate": 2e-3,
        "teacher_epochs": 40,
        "more_epochs": 20,
        "dropout": 0.25,
        "copies": 16,
        "epochs": 20,
        "alone_epochs": 10,
        "narrowed_epochs": 10,
        "temperature": 4.0,
    },
    "fashion": {
        "batch_size": 128,
        "rate": 1e-3,
        "teacher_epochs": 5,
        "copies": 3,
        "epochs": 9,
        "size": 28,
        "temperature": 4.0,
    },
}
KINDS = {
    "hinton": ("distilled_moved", "alone", "narrowed", "distilled", "alone_moved"),
    "fashion": ("alone", "distilled", "alone_plain", "distilled_plain"),
}
PARTS = {
    "hinton": (Hinton, "mnist"),
    "fashion": (Fashion, "fashion_mnist"),
}


def cached(data, args):
    """Medians of seconds of an epoch, and their ratio to the student alone."""
    x, y = data.train
    teacher, kinds = dlopt.models.resnet20(input_shape=x.shape[1:], classes=10), {}
    outputs = distill.teacher_outputs(teacher, x)
    for kind in ("alone", "cached", "in_step"):
        model = dlopt.models.lenet5()
        if kind != "alone":
            model = distill.distill(model, teacher)
        model.compile("adam", LOSS)
        kinds[kind] = model, distill.taught(y, outputs) if kind == "cached" else y
    seconds = {kind: [] for kind in kinds}
    for round_ in range(args.rounds + 1):
        for kind, (model, target) in kinds.items():
            start = time.process_time()
            model.fit(x, target, batch_size=128, verbose=0)
            if round_:  # the first traces
                seconds[kind].append(round(time.process_time() - start, 2))
    ratios = {
        kind: round(float(np.median(np.divide(values, seconds["alone"]))), 3)
        for kind, values in seconds.items()
    }
    return {"images": len(x), "cpu_seconds": seconds, "ratio": ratios}


def summary(runs):
    """Mean, spread and worst of each kind."""
    made = {}
    for kind in dict.fromkeys(run["kind"] for run in runs):
        values = [run["test_error"] for run in runs if run["kind"] == kind]
        made[kind] = {
            "seeds": len(values),
            "mean": round(float(np.mean(values)), 3),
            "spread": round(float(np.std(values)), 3),
            "worst": max(values),
        }
    return made


def written(part, found, args):
    if args.smoke:
        return
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    known = {**known, "machine": stored.machine(), part: found}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(known, indent=1) + "\n")


def measured(part, args):
    """Runs the networks of a part that are not in the file."""
    make, name = PARTS[part]
    data = dlopt.data.load(name)
    if args.smoke:
        data = data.take(640, test=100)
    known = {}
    if RESULTS.exists() and not args.smoke:
        known = json.loads(RESULTS.read_text()).get(part, {})
    settings = {name: getattr(args, name) for name in BEST[part]}
    same = settings | known.get("settings", {}) == settings
    runs = known["runs"] if same and known else []
    networks = make(data, args)
    for seed in range(args.seeds):
        for kind in args.kinds:
            if (kind, seed) in {(run["kind"], run["seed"]) for run in runs}:
                continue
            start = time.process_time()
            made = networks.run(kind, seed)
            seconds = round(time.process_time() - start)
            runs.append({"kind": kind, "seed": seed, **made, "cpu_seconds": seconds})
            print(json.dumps(runs[-1]), flush=True)
            found = {"settings": settings, **networks.about}
            found |= {"test_error_percent": summary(runs), "runs": runs}
            written(part, found, args)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="part", required=True)
    for part, best in BEST.items():
        command = commands.add_parser(part)
        command.add_argument("--seeds", type=int, default=5)
        command.add_argument("--kinds", nargs="+", default=KINDS[part])
        command.add_argument("--cache", type=pathlib.Path, default=None)
        for name, value in best.items():
            flag = "--" + name.replace("_", "-")
            command.add_argument(flag, type=type(value), default=value)
    command = commands.add_parser("cached")
    command.add_argument("--rounds", type=int, default=7)
    command.add_argument("--images", type=int, default=6_400)
    for command in commands.choices.values():
        command.add_argument("--smoke", action="store_true")
    args = parser.parse_args()
    if args.part == "cached":
        data = dlopt.data.load("mnist").take(640 if args.smoke else args.images)
        args.rounds = 1 if args.smoke else args.rounds
        found = cached(data, args)
        print(json.dumps(found))
        return written("cached", found, args)
    if args.smoke:
        args.seeds, args.copies = 1, 2
        for name in BEST[args.part]:
            if name.endswith("epochs"):
                setattr(args, name, 1)
        args.cache = None
    args.cache = args.cache or pathlib.Path(tempfile.mkdtemp())
    args.cache.mkdir(parents=True, exist_ok=True)
    return measured(args.part, args)


if __name__ == "__main__":
    main()
