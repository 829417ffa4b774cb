"""Compiles the train step of everything in tests/catalogue for v5e, v5p and v6e.

    python benchmarks/tpu_compile_all.py [--module optimizers] [--backend tensorflow]

Each object sits in the small model that its contracts use. Nothing runs on a TPU. One
process a module and topology; results are written as they come, and a second call goes
on with what is missing or failed.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve()
RESULT = HERE.parent / "results" / "tpu_compile_all.json"
TOPOLOGIES = ("v5e:2x2", "v5p:2x2x1", "v6e:2x2")
LEFT_OUT_MODULES = ("callbacks",)  # run on the host
MODULES = tuple(
    path.stem
    for path in sorted((HERE.parents[1] / "tests" / "catalogue").glob("*.py"))
    if path.stem not in ("__init__", *LEFT_OUT_MODULES)
)
BATCH = 16
# Train with a loop of their own, which is no pure step; each refuses other backends.
LEFT_OUT = {"SAM": "two gradients a step, in fit", "ASAM": "two gradients a step"}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", default="jax", choices=("jax", "tensorflow"))
    parser.add_argument("--module", choices=MODULES)
    parser.add_argument("--topology", choices=TOPOLOGIES)
    parser.add_argument("--minutes", type=float, default=90.0, help="for each process")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(*args.worker)
        return
    for topology in [args.topology] if args.topology else TOPOLOGIES:
        for module in [args.module] if args.module else MODULES:
            run(module, topology, args.backend, args.minutes)
    cases = read()
    good = sum(case["compiles"] for case in cases)
    print(f"{good} of {len(cases)} compile")


def run(module, topology, backend, minutes):
    """Starts the process for one module and topology; keeps what it says."""
    from keras_dlopt.tpu.environment import environment

    settings = environment(backend)
    tests = str(HERE.parents[1] / "tests")
    settings["PYTHONPATH"] = os.pathsep.join([tests, settings["PYTHONPATH"]])
    keys = ("name", "topology", "backend")
    done = [
        c["name"]
        for c in read()
        if c["compiles"] and (c["topology"], c["backend"]) == (topology, backend)
    ]
    process = subprocess.Popen(
        [sys.executable, str(HERE), "--worker", module, topology],
        env=settings | {"DONE": json.dumps(done)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    end = time.monotonic() + 60 * minutes
    for line in process.stdout:
        if line.startswith("RESULT "):
            case = {**json.loads(line[7:]), "topology": topology, "backend": backend}
            same = [all(c[k] == case[k] for k in keys) for c in read()]
            rest = [c for c, out in zip(read(), same, strict=True) if not out]
            write([*rest, case])
            print(case["topology"], case["name"], case["compiles"], flush=True)
        if time.monotonic() > end:
            process.kill()
    process.wait()
    if process.returncode:
        print(f"{module} on {topology} ended with code {process.returncode}")


def work(module, topology):
    """Compiles a module's cases; prints a line of JSON each."""
    import keras

    from catalogue import cases_of
    from contracts.building import trial
    from keras_dlopt import tpu
    from keras_dlopt.tpu.compiling import Compiler
    from keras_dlopt.tpu.programs import programs
    from keras_dlopt.tpu.watching import Watched

    if keras.backend.backend() == "tensorflow":
        import jax

        jax.config.update("jax_enable_x64", True)
    done = json.loads(os.environ["DONE"])
    for case in cases_of(module):
        if case.name in done or case.name in LEFT_OUT:
            continue
        keras.utils.clear_session(free_memory=False)
        try:
            model = trial(case, jit=True).model
            (program,) = programs(model, BATCH, ("train",))
            compiler = Compiler(tpu.topology(topology), Watched(model))
            found = compiler.compile(program)
        except Exception as error:
            found = {"compiles": False, "message": f"{type(error).__name__}: {error}"}
        kept = ("compiles", "seconds", "operation", "layer", "message")
        told = {key: found[key] for key in kept if key in found}
        print("RESULT " + json.dumps({"name": case.name, "module": module, **told}))
        sys.stdout.flush()


def read():
    """The cases so far."""
    return json.loads(RESULT.read_text())["cases"] if RESULT.exists() else []


def write(cases):
    """Writes all cases, sorted."""
    import importlib.metadata

    names = ("jax", "libtpu", "keras")
    cases = sorted(cases, key=lambda c: (c["module"], c["name"], c["topology"]))
    data = {
        "about": f"train steps, batch {BATCH}, compiled for TPUs, not run",
        "versions": {name: importlib.metadata.version(name) for name in names},
        "left_out": LEFT_OUT,
        "compiles": sum(c["compiles"] for c in cases),
        "of": len(cases),
        "cases": cases,
    }
    RESULT.write_text(json.dumps(data, indent=1))


if __name__ == "__main__":
    main()
