"""A learner that is killed: one life of it in this process.

    python killed.py FOLDER {batch N | write N | none}

It goes on from the state in FOLDER, or starts, and follows one stream. `batch N` ends
the process in the N-th batch of this life, before anything of it is stored; `write N`
in the N-th snapshot, when half of the file is on the disk; `none` lets it end, which
leaves `end.npz`. A process that forks one life after the other is in `killing`.
"""

import os
import pathlib
import sys

os.environ["TF_NUM_INTRAOP_THREADS"] = os.environ["TF_NUM_INTEROP_THREADS"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import keras
import numpy as np

from keras_dlopt import files, online
from keras_dlopt.online.steps import Steps

KILLED = 9
L = keras.layers


def started(folder):
    keras.utils.set_random_seed(0)
    net = keras.Sequential(
        [
            keras.Input((6,)),
            L.Dense(16, activation="relu"),
            L.BatchNormalization(),
            L.Dropout(0.2, seed=4),
            L.Dense(3),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    net.compile(keras.optimizers.Adam(0.01), loss)
    learner = online.OnlineLearner(
        net,
        batch_size=10,
        memory=online.ClassBalanced(30),
        replay=online.Replay(10, augment=L.GaussianNoise(0.1, seed=5)),
        terms=[online.DarkExperience(0.2), online.EWC(0.5, examples=10)],
        drift=online.ADWIN(delta=0.05),
        on_drift=online.OnDrift(2.0, half_life=40, forget=True, recent=10),
        path=folder / "state.npz",
        every=50,
    )
    if (folder / "state.npz").exists():
        learner.restore(folder / "state.npz")
    return learner


def stream():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(600, 6)).astype("float32")
    y = np.r_[x[:300, :3].argmax(1), x[300:, 3:].argmax(1)]
    for i in range(0, 600, 37):
        yield x[i : i + 37], y[i : i + 37]


def die_in_batch(number):
    plain, count = Steps.learn, iter(range(number))

    def learn(self, x, batches):
        made = plain(self, x, batches)
        if next(count, None) is None:
            os._exit(KILLED)
        return made

    Steps.learn = learn


def die_in_write(number):
    plain, count = files.write_atomic, iter(range(number))

    def write(path, data):
        if next(count, None) is not None:
            return plain(path, data)

        class File:
            def __init__(self, file):
                self.file = file

            def __getattr__(self, name):
                return getattr(self.file, name)

            def __enter__(self):
                return self

            def __exit__(self, *_):
                self.file.close()

            def write(self, data):
                self.file.write(data[: len(data) // 2])
                self.file.flush()
                os.fsync(self.file.fileno())
                os._exit(KILLED)

        def other(folder):  # where a file system knows no file without a name
            return (folder / ".half.tmp").open("wb")

        nameless = files._nameless
        files._nameless = lambda folder: File(nameless(folder) or other(folder))
        return plain(path, data)

    files.write_atomic = write


def live(folder, how="none", number=0):
    """One life; does not return if it is killed."""
    {"batch": die_in_batch, "write": die_in_write, "none": lambda _: None}[how](number)
    learner = started(folder)
    learner.follow(stream())
    learner.flush()
    learner.save(folder / "end.npz")


def killing(folder, seed, deaths):
    """Lives until `deaths` of them were killed and one was not; how each ended."""
    rng, ends = np.random.default_rng(seed), []
    while True:
        how = ("batch", "write")[int(rng.integers(2))]
        how = how if len(ends) < deaths else "none"
        number = int(rng.integers(1, 7 if how == "batch" else 2))
        child = os.fork()  # TensorFlow is imported, and has not started anything
        if not child:
            live(folder, how, number)
            os._exit(0)
        ends.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        if how == "none":
            return ends


if __name__ == "__main__":
    folder = pathlib.Path(sys.argv[1])
    if sys.argv[2] == "killing":
        print(killing(folder, int(sys.argv[3]), int(sys.argv[4])))
    else:
        live(folder, sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 0)
