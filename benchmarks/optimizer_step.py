"""Times one optimizer update: ours against Keras', against XLA, against PyTorch.

Two settings: "large", 20 matrices of 25M parameters in all, and "small", 200 variables
of 64 to 1,000 parameters. All contenders run interleaved; ratios are taken within each
round, the median over rounds is reported. Updates run inside a compiled function that
repeats them, as in a train step, so that the cost of calling from Python, which is not
the optimizer's, is divided by the number of repeats; `--repeats 1` shows it.

    python benchmarks/optimizer_step.py [--rounds 15] [--repeats 10]

PyTorch joins when it is installed, here or for the interpreter in --torch.
"""

import argparse
import importlib.util
import json
import os
import pathlib
import platform
import subprocess
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

RESULTS = pathlib.Path(__file__).parent / "results" / "optimizer_step.json"
BYTES_PER_PARAMETER = 28  # read w, m, v, g; write w, m, v

TORCH_WORKER = """
import json, sys, time, torch
shapes = json.loads(sys.argv[1])
torch.set_num_threads(int(sys.argv[2]))
torch.manual_seed(0)
ps = [torch.nn.Parameter(torch.randn(s)) for s in shapes]
for p in ps:
    p.grad = torch.randn(p.shape)
opt = torch.optim.AdamW(ps, lr=1e-3, weight_decay=0.004, fused=True)
for line in sys.stdin:
    start = time.perf_counter()
    for _ in range(int(line)):
        opt.step()
    print(time.perf_counter() - start, flush=True)
"""


def shapes_of(setting):
    if setting == "large":
        return [(1250, 1000)] * 20
    rng = np.random.default_rng(0)
    sizes = np.exp(rng.uniform(np.log(64), np.log(1000), 200)).astype(int)
    return [(int(s),) if i % 2 else (int(s) // 8, 8) for i, s in enumerate(sizes)]


def step_function(make, shapes, *, jit, repeats):
    """Returns a function without arguments that does `repeats` updates."""
    import keras
    import tensorflow as tf

    rng = np.random.default_rng(1)
    weights = [
        keras.Variable(rng.normal(size=s).astype("float32"), name=f"w{i}")
        for i, s in enumerate(shapes)
    ]
    grads = [tf.constant(rng.normal(size=s).astype("float32")) for s in shapes]
    optimizer = make()
    optimizer.build(weights)

    @tf.function(jit_compile=jit)
    def run():
        for _ in tf.range(repeats):
            optimizer.apply(grads, weights)

    return run


def torch_function(python, shapes, threads, repeats):
    worker = subprocess.Popen(
        [python, "-c", TORCH_WORKER, json.dumps(shapes), str(threads)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def run():
        worker.stdin.write(f"{repeats}\n")
        worker.stdin.flush()
        return float(worker.stdout.readline())

    return run


def copy_bandwidth():
    """Bytes a second of a multi-threaded copy of 400 MB, read and write counted."""
    import tensorflow as tf

    source = tf.random.normal([50_000_000])

    @tf.function
    def copy():
        return tf.add(source, 1.0)

    copy()
    times = []
    for _ in range(7):
        start = time.perf_counter()
        copy()
        times.append(time.perf_counter() - start)
    return 2 * 4 * 50_000_000 / min(times)


def measure(contenders, rounds, repeats):
    times = {name: [] for name in contenders}
    for run in contenders.values():
        for _ in range(2):
            run()
    for _ in range(rounds):
        for name, run in contenders.items():
            start = time.perf_counter()
            own = run()  # PyTorch's worker reports its own time
            elapsed = own if isinstance(own, float) else time.perf_counter() - start
            times[name].append(elapsed / repeats)
    return {name: np.array(values) for name, values in times.items()}


def contenders_of(setting, repeats, torch_python, classes):
    import keras

    from keras_dlopt import optimizers

    shapes = shapes_of(setting)
    made = {}
    for cls in classes:
        options = {"momentum": 0.9} if cls in ("SGD", "RMSprop") else {}
        for owner, module in (("keras", keras.optimizers), ("ours", optimizers)):
            for jit in (False, True):
                if jit and cls not in ("Adam", "AdamW"):
                    continue
                made[f"{owner} {cls}{' xla' if jit else ''}"] = step_function(
                    lambda module=module, cls=cls, o=options: getattr(module, cls)(**o),
                    shapes,
                    jit=jit,
                    repeats=repeats,
                )
    if torch_python:
        made["torch AdamW fused"] = torch_function(
            torch_python, shapes, os.cpu_count(), repeats
        )
    return made, sum(int(np.prod(s)) for s in shapes)


def summary(times, parameters, bandwidth):
    """Milliseconds and the ratios that matter."""
    rows = {name: float(np.median(t) * 1e3) for name, t in times.items()}

    def ratio(above, below):
        r = times[above] / times[below]
        low, middle, high = np.percentile(r, [25, 50, 75])
        return {
            "median": round(middle, 3),
            "quartiles": [round(low, 3), round(high, 3)],
        }

    ratios = {}
    for name in times:
        if name.startswith("ours"):
            peer = name.replace("ours", "keras")
            ratios[f"{peer} / {name}"] = ratio(peer, name)
    if "torch AdamW fused" in times:
        ratios["ours AdamW / torch AdamW fused"] = ratio(
            "ours AdamW", "torch AdamW fused"
        )
    share = {
        name: round(
            BYTES_PER_PARAMETER
            * parameters
            / float(np.median(times[name]))
            / bandwidth,
            3,
        )
        for name in times
        if "Adam" in name
    }
    return {"milliseconds": rows, "ratios": ratios, "share_of_copy_bandwidth": share}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--settings", nargs="+", default=["large", "small"])
    parser.add_argument(
        "--classes",
        nargs="+",
        default=["Adam", "AdamW", "SGD", "RMSprop", "Adagrad"],
    )
    parser.add_argument("--torch", default=None, help="interpreter that has PyTorch")
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS)
    arguments = parser.parse_args()
    torch_python = arguments.torch
    if torch_python is None and importlib.util.find_spec("torch"):
        torch_python = sys.executable
    import keras
    import tensorflow as tf

    bandwidth = copy_bandwidth()
    report = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {
            "keras": keras.__version__,
            "tensorflow": tf.__version__,
            "numpy": np.__version__,
        },
        "load_average": os.getloadavg()[0],
        "rounds": arguments.rounds,
        "repeats": arguments.repeats,
        "copy_bandwidth_gb_per_s": round(bandwidth / 1e9, 1),
        "settings": {},
    }
    for setting in arguments.settings:
        repeats = arguments.repeats if setting == "small" else 1
        made, parameters = contenders_of(
            setting, repeats, torch_python, arguments.classes
        )
        times = measure(made, arguments.rounds, repeats)
        result = summary(times, parameters, bandwidth)
        report["settings"][setting] = {"parameters": parameters, **result}
        print(json.dumps(result, indent=1))
        arguments.out.parent.mkdir(exist_ok=True)
        arguments.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
