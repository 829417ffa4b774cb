"""Mutated files with checksums made good: one kind of error, little memory and time."""

import time

import keras
import numpy as np
import pytest
from keras import layers

from keras_dlopt.codecs import Tensor
from keras_dlopt.codecs.container import INDEXED, limit_of, read_container
from keras_dlopt.errors import FormatError
from keras_dlopt.storage import contents, load_compressed, save_compressed
from keras_dlopt.storage.contents import read_contents
from support.altered import broken

MOST_MEMORY, MOST_SECONDS = 300, 2.0  # MB above the start, and for one file
REBUILT = 20  # one of so many files is also made a model: that takes 10 ms


@pytest.fixture(autouse=True)
def _fresh_keras_state():
    """Names are all explicit here, so the slow reset between tests is not needed."""


def seeds(folder):
    """Files of both versions, with every coding of values."""
    rng = np.random.default_rng(0)
    dense = keras.Sequential(
        [
            keras.Input((20,), name="x"),
            layers.Dense(30, name="grid", use_bias=False),
            layers.Dense(20, name="book", activation="relu"),
            layers.Dense(20, name="sparse"),
            layers.Dense(40, name="context"),
            layers.Dropout(0.5, name="drop"),
            layers.BatchNormalization(name="norm"),
        ],
        name="m",
    )
    codes, book = rng.integers(-127, 128, (20, 30)), rng.normal(size=5)
    kernels = [v for v in dense.weights if v.name == "kernel"]
    kernels[0].assign(codes * 0.013)
    kernels[1].assign(book[rng.integers(0, 5, (30, 20))])
    kernels[2].assign(rng.normal(size=(20, 20)) * (rng.random((20, 20)) < 0.1))
    kernels[3].assign(rng.binomial(3, 0.02, (20, 40)) * 0.25)
    text = layers.TextVectorization(name="text")
    text.adapt(["one two", "three"])
    lookup = keras.Sequential([keras.Input((1,), dtype="string"), text], name="t")
    files = []
    for i, (model, index_from) in enumerate(
        [(dense, 0), (lookup, 2**16), (dense, 2**16)]
    ):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(contents, "INDEX_FROM", index_from)
            save_compressed(model, folder / f"{i}.dlopt")
        files.append((folder / f"{i}.dlopt").read_bytes())
    assert [INDEXED in read_container(data) for data in files] == [True, False, False]
    return files


def peak():
    with open("/proc/self/status") as file:
        return next(int(x.split()[1]) for x in file if x.startswith("VmHWM")) / 1024


def resident():
    with open("/proc/self/status") as file:
        return next(int(x.split()[1]) for x in file if x.startswith("VmRSS")) / 1024


def fuzz(count, folder, *, seed):
    rng, files = np.random.default_rng(seed), seeds(folder)
    pruned = rng.binomial(3, 0.01, (700, 100))
    path, slowest, accepted = folder / "bad.dlopt", 0.0, 0
    for array in (pruned, pruned.astype("float32")):  # what is compiled, is by now
        Tensor().decode(Tensor().encode(array))
    for data in files:
        load_compressed(folder / f"{files.index(data)}.dlopt")
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak starts anew
    before = resident()
    for i in range(count):
        data = broken(files[i % len(files)], rng)
        start = time.process_time()
        try:
            if i % REBUILT:
                read_contents(data, max_bytes=limit_of(len(data)))
            else:
                path.write_bytes(data)
                load_compressed(path)
            accepted += 1
        except FormatError:
            pass
        except Exception as error:
            (folder / "raised.dlopt").write_bytes(data)
            raise AssertionError(f"file {i} of seed {seed}") from error
        seconds = time.process_time() - start
        slowest = max(slowest, seconds)
        assert seconds < MOST_SECONDS, (i, seed)
    assert peak() - before < MOST_MEMORY
    return slowest, peak() - before, accepted


def test_two_thousand_mutations(tmp_path):
    slowest, _, accepted = fuzz(2_000, tmp_path, seed=0)
    assert slowest > 0
    assert accepted < 1_000


@pytest.mark.slow
def test_a_hundred_thousand_mutations(tmp_path):
    for seed in range(1, 11):
        fuzz(10_000, tmp_path, seed=seed)
