"""One process of the section `resnet50` of `codec.py`: prints a line of JSON.

    python benchmarks/codec_resnet50.py seconds|save|load FOLDER [--pruned]

`seconds` saves and loads in turns with Keras' own file and prints the least seconds and
CPU seconds of each; `save` and `load` print the most memory that one call took beyond
what was held before (for `load` the model that it returns counts once, as held).
"""

import argparse
import json
import os
import pathlib
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

import keras_dlopt as dlopt

RUNS = 3
SPARSITY = 0.8


def network(pruned):
    """ResNet50 with random weights, of each kernel the smallest 80 % zero or not."""
    keras.utils.set_random_seed(0)
    model = keras.applications.ResNet50(weights=None)
    for weight in model.weights if pruned else ():
        if weight.path.endswith("kernel"):
            value = np.asarray(weight.value)
            least = np.quantile(np.abs(value), SPARSITY)
            weight.assign(np.where(np.abs(value) > least, value, 0))
    return model


def seconds(pruned, folder):
    model = network(pruned)
    ours, theirs = folder / "model.dlopt", folder / "model.keras"
    actions = {
        "save": lambda: dlopt.save_compressed(model, ours),
        "keras save": lambda: model.save(theirs),
        "load": lambda: dlopt.load_compressed(ours),
        "keras load": lambda: keras.models.load_model(theirs),
    }
    wall, cpu = ({name: float("inf") for name in actions} for _ in range(2))
    for _ in range(RUNS + 1):  # the first one also compiles
        for name, action in actions.items():
            begin = time.perf_counter(), time.process_time()
            action()
            wall[name] = min(wall[name], time.perf_counter() - begin[0])
            cpu[name] = min(cpu[name], time.process_time() - begin[1])
    return {
        "seconds": {k: round(v, 3) for k, v in wall.items()},
        "cpu_seconds": {k: round(v, 3) for k, v in cpu.items()},
        "bytes": ours.stat().st_size,
        "keras_bytes": theirs.stat().st_size,
        "model_bytes": sum(np.asarray(w.value).nbytes for w in model.weights),
    }


def resident(key):
    """Bytes of memory that this process has, or had at most: VmRSS, VmHWM."""
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"the system does not tell {key}")


def most_memory(action):
    """Bytes at most beyond those before; the peak so far is set back."""
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    kept = action()
    found = resident("VmHWM") - before
    del kept
    return found


def memory(what, pruned, folder):
    path = folder / "model.dlopt"
    model = network(pruned)
    size = sum(np.asarray(w.value).nbytes for w in model.weights)
    # Imports, and loops that are compiled, are no part of it.
    first = keras.Sequential([keras.Input((100,)), keras.layers.Dense(100)])
    dlopt.save_compressed(first, folder / "first.dlopt")
    dlopt.load_compressed(folder / "first.dlopt")
    if what == "save":
        found = most_memory(lambda: dlopt.save_compressed(model, path))
    else:
        found = most_memory(lambda: dlopt.load_compressed(path)) - size
    return {"most_bytes": found, "over_model_bytes": round(found / size, 3)}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["seconds", "save", "load"])
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--pruned", action="store_true")
    args = parser.parse_args()
    if args.what == "seconds":
        found = seconds(args.pruned, args.folder)
    else:
        found = memory(args.what, args.pruned, args.folder)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
