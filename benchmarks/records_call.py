"""One call, `deep_compression`, on the LeNets: bytes, error and seconds.

    KERAS_DLOPT_DATA=... nice -n 19 python benchmarks/records_call.py

A network is trained in float on the training images but for the last 5,000 of MNIST
(10,000 of Fashion-MNIST), and given to the call with nothing but a ratio; the file is
read back and judged. `--validate` judges on those, as options of the call were chosen,
with `--set epochs=20` of others than its own; without it the test images are used, once
a network and seed. A finished row is written at once and not run again.
"""

import functools
import os
import pathlib
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")

import fashion_resnet20
import keras
from records import LOSS, NETWORKS, add, asked, error, kept
from records_cut import Cutting

import keras_dlopt as dlopt

RESULTS = pathlib.Path(__file__).parent / "results" / "records_call.json"
BATCH = 128
RESIDUAL = "fashion_resnet20"
# Per network: epochs in float, and dropout meanwhile; what the call is given; bytes of
# the file, as a ratio, and error in percent that are asked for, None for 0.3 points
# over the float network's. Files come out smaller than the goal, since the coder looks
# at neighbours.
ROWS = {
    "lenet_300_100": (25, 0.3, {"ratio": 52}, (60, 1.58)),
    "lenet5": (8, 0.3, {"ratio": 110}, (110, 0.74)),
    "lenet5_2800": (8, 0.3, {"ratio": 620, "epochs": 28}, (616, 0.85)),
    "fashion_lenet_300_100": (20, 0.0, {"ratio": 62}, (71, None)),
    "fashion_lenet5": (8, 0.3, {"ratio": 270}, (288, None)),
    RESIDUAL: (6, 0.0, {"ratio": 29, "epochs": 6}, (30, None)),
}


def trained(name, data, seed):
    """The network in float: small weights fade, as in `deep_compression_lenet`."""
    keras.backend.clear_session()
    keras.utils.set_random_seed(seed)
    epochs, dropout, _, _ = ROWS[name]
    if name == RESIDUAL:
        net, train = fashion_resnet20.compiled(seed, data, epochs)
        net.fit(train, epochs=epochs, shuffle=False, verbose=2)
        return net
    network = _given(name).removeprefix("fashion_")
    net = keras.Sequential([keras.Input(data.input_shape), *NETWORKS[network]()])
    steps = epochs * (-(-len(data.x_train) // BATCH))
    falling = keras.optimizers.schedules.CosineDecay(2e-3, steps)
    optimizer = dlopt.optimizers.AdamW(falling, weight_decay=0.05)
    whole = Cutting(net, dropout)
    training = whole.build()
    training.compile(optimizer, LOSS, steps_per_execution=10)
    training.fit(*data.train, batch_size=BATCH, epochs=epochs, verbose=0)
    whole.fill(training)
    return net


def made(net, train, val, seed, options, place):
    """Calls."""
    start, cpu = time.perf_counter(), time.process_time()
    small = dlopt.deep_compression(
        net, train, val, path=place / "model.dlopt", seed=seed, **options
    )
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    return {
        "ratio": round(small.ratio, 1),
        "seconds of the call": round(seconds, 1),
        "of one core": round(cpu, 1),
        "reasons": small.reasons,
    }


def run(name, seed, judged, options, folder):
    """Trains, calls and judges one network."""
    data = dlopt.data.load("fashion_mnist" if "fashion" in name else "mnist")

    def parent(place):
        trained(name, data, seed).save(place / "float.keras")

    what = {"parent": _given(name), "seed": seed, **given(name)}
    place, _ = kept(parent, folder, what)
    net = keras.models.load_model(place / "float.keras", compile=False)
    net.compile(loss=LOSS)
    what = identity(_given(name), seed, "any", options)
    # Compressed on images that are moved as those it was trained on.
    moved = name == RESIDUAL
    train = fashion_resnet20.batches(seed, data) if moved else data.train

    def call(to):
        return made(net, train, data.val, seed, options, to)

    place, facts = kept(call, folder, what)
    examples = data.val if judged == "validation" else data.test
    path = place / "model.dlopt"
    return {
        **identity(name, seed, judged, options),
        "bytes": path.stat().st_size,
        "error": round(error(dlopt.load_compressed(path), *examples), 2),
        "error_float": round(error(net, *examples), 2),
        "bar": ROWS[name][3],
        **facts,
    }


def _given(name):
    """The row whose network this one is made of."""
    return name.removesuffix("_2800")


def identity(name, seed, judged, options):
    """What tells a finished row from others."""
    told = {"network": name, "seed": seed, "options": options, "judged on": judged}
    return {**told, **given(name)}


def given(name):
    """How the network that is given to the call was trained."""
    return {"epochs": ROWS[name][0], "dropout": ROWS[name][1]}


def main():
    args, changed, judged = asked(__doc__, ROWS, 3, RESULTS)
    for name in args.rows:
        options = {**ROWS[name][2], **changed}
        for seed in range(args.seeds):
            make = functools.partial(run, name, seed, judged, options, args.keep)
            add(args.out, identity(name, seed, judged, options), make)


if __name__ == "__main__":
    main()
