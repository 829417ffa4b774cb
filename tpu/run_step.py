"""Runs a saved train step with JAX alone: no Keras, no TensorFlow on the machine.

    python run_step.py step.zip --data train.npz --steps 1000 --state state.npz

`step.zip` is what `keras_dlopt.tpu.save_step` wrote; `train.npz` holds `x`
and `y`. The batch is split over all devices, the state is on each. State and step
number are saved in `--state` every `--save-every` steps and on SIGTERM; the same
command goes on from there, with the same batches as if nothing had happened.
"""

import argparse
import io
import json
import os
import pathlib
import signal
import sys
import time
import zipfile
import zlib

import numpy as np

# What reading a file that is damaged, or another one, raises.
BROKEN = (
    zipfile.BadZipFile,
    zlib.error,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    OSError,
    EOFError,
    RuntimeError,
    MemoryError,
)


def arguments():
    """The command line, checked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("step", type=pathlib.Path)
    parser.add_argument("--data", type=pathlib.Path, help=".npz with x and y")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--state", type=pathlib.Path, default=pathlib.Path("state.npz"))
    parser.add_argument("--save-every", type=int, default=100, help="steps")
    parser.add_argument("--strategy", default="tpu", help="tpu, or cpu:N to try it")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="20 steps, random data")
    parser.add_argument(
        "--dry-run", action="store_true", help="say what is in the file"
    )
    args = parser.parse_args()
    if not args.step.is_file():
        parser.error(f"no file {args.step}; write it with tpu.save_step()")
    kind, _, count = args.strategy.partition(":")
    cpus = kind == "cpu" and count.isdigit() and int(count) > 0
    if args.strategy != "tpu" and not cpus:
        parser.error(f"--strategy must be tpu or cpu:N, not {args.strategy!r}")
    if min(args.steps, args.save_every) < 1:
        parser.error("--steps and --save-every must be 1 or more")
    if args.data is None and not (args.smoke or args.dry_run):
        parser.error("--data is needed: an .npz file with x and y")
    if args.data is not None and not args.data.is_file():
        parser.error(f"no file {args.data}; --data is an .npz file with x and y")
    if args.smoke:
        args.steps = min(args.steps, 20)
    return args


def read(path):
    """The program, the state it was saved with, and what they are."""
    try:
        with zipfile.ZipFile(path) as file:
            about = json.loads(file.read("step.json"))
            state = np.load(io.BytesIO(file.read("state.npz")), allow_pickle=False)
            values = [state[str(i)] for i in range(sum(about["counts"]))]
            return file.read("step.bin"), values, about
    except BROKEN as error:
        sys.exit(f"{path} is damaged, or not what tpu.save_step() wrote: {error}")


def resumed(path, values):
    """The step number and state in a file; 0 and the given state without one."""
    if not path.exists():
        return 0, values
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            start, found = int(file["step"]), [file[str(i)] for i in range(len(values))]
    except BROKEN as error:
        sys.exit(f"{path} is damaged, or of another step: {error}. Move it away.")
    if [v.shape for v in found] != [v.shape for v in values]:
        sys.exit(f"{path} is the state of another step. Give another --state.")
    return start, found


def batches(args, about, start):
    """Batches in a shuffled order that depends on the seed and the epoch alone."""
    (x_shape, x_type), (y_shape, y_type) = about["inputs"]
    size = about["batch"]
    if args.data is not None:
        try:
            with np.load(io.BytesIO(args.data.read_bytes())) as file:
                x, y = file["x"].astype(x_type), file["y"].astype(y_type)
        except BROKEN as error:
            sys.exit(f"{args.data} must be an .npz file with x and y: {error}")
    else:
        rng = np.random.default_rng(args.seed)
        x = rng.normal(size=(4 * size, *x_shape[1:])).astype(x_type)
        y = rng.integers(0, 2, (4 * size, *y_shape[1:])).astype(y_type)
    wrong = [x.shape[1:], y.shape[1:]] != [tuple(x_shape[1:]), tuple(y_shape[1:])]
    if wrong or len(x) < size or len(y) != len(x):
        sys.exit(
            f"x and y have the shapes {x.shape} and {y.shape}; the step takes batches "
            f"of {tuple(x_shape)} and {tuple(y_shape)}."
        )
    each = len(x) // size
    for step in range(start, args.steps):
        epoch, place = divmod(step, each)
        order = np.random.default_rng([args.seed, epoch]).permutation(len(x))
        chosen = order[place * size : (place + 1) * size]
        yield step, x[chosen], y[chosen]


def save(path, values, step):
    """Writes all at once: a file that is there is whole."""
    arrays = {str(i): np.asarray(v) for i, v in enumerate(values)}
    part = path.with_suffix(".part.npz")
    np.savez(part, step=step, **arrays)
    os.replace(part, path)


def main():
    """Runs the steps that are still to do."""
    args = arguments()
    program, values, about = read(args.step)
    told = {k: about[k] for k in ("batch", "inputs", "counts")}
    print(json.dumps({"step": str(args.step), **told}), flush=True)
    if args.dry_run:
        return
    kind, _, count = args.strategy.partition(":")
    if kind == "cpu":
        os.environ["JAX_PLATFORMS"] = "cpu"
        flag = f"--xla_force_host_platform_device_count={count}"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
    import jax
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    jax.config.update("jax_enable_x64", about["x64"])
    devices = jax.devices()
    if kind == "tpu" and devices[0].platform != "tpu":
        sys.exit("No TPU here. To try the script: --strategy cpu:2.")
    if about["batch"] % len(devices):
        sys.exit(f"The batch of {about['batch']} cannot be split over {len(devices)}.")
    mesh = Mesh(np.array(devices), ("batch",))
    whole = NamedSharding(mesh, PartitionSpec())
    split = NamedSharding(mesh, PartitionSpec("batch"))
    start, values = resumed(args.state, values)
    first, second, _ = about["counts"]
    exported = jax.export.deserialize(bytearray(program))

    def step(values, x, y):
        groups = (
            values[:first],
            values[first : first + second],
            values[first + second :],
        )
        loss, *after = exported.call(*groups, x, y)
        return loss, [v for group in after for v in group]

    compiled = jax.jit(step, donate_argnums=(0,))
    values = [jax.device_put(v, whole) for v in values]
    told = []
    signal.signal(signal.SIGTERM, lambda *_: told.append(True))
    begin, done, loss = time.perf_counter(), start, None
    for number, x, y in batches(args, about, start):
        x, y = jax.device_put(x, split), jax.device_put(y, split)
        loss, values = compiled(values, x, y)
        done = number + 1
        if done % args.save_every == 0 or told:
            save(args.state, values, done)
            print(json.dumps({"step": done, "loss": float(loss)}), flush=True)
        if told:
            sys.exit(143)
    save(args.state, values, done)
    result = {"step": done, "devices": len(devices)}
    if loss is not None:
        result |= {"loss": float(loss), "seconds": time.perf_counter() - begin}
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
