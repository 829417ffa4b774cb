"""What the logs tell of compression, against loops and against files."""

import csv
import json
import math
import subprocess
import sys

import keras
import numpy as np
import pytest

import catalogue
import keras_dlopt as dlopt
from keras_dlopt.callbacks import CompressionLogger
from keras_dlopt.callbacks.compression import compression, estimated_bits
from keras_dlopt.errors import ConfigError

L = keras.layers
RNG = np.random.default_rng(0)
X = RNG.normal(size=(48, 6)).astype("float32")
Y = X[:, :2]


def network(width=32):
    keras.utils.set_random_seed(0)
    layers = [L.Dense(width, "relu", name="a"), L.Dense(2, name="b")]
    return keras.Sequential([keras.Input((6,)), *layers])


def trained(recipe, epochs=3, **options):
    small = dlopt.transform(network(), dlopt.Recipe(recipe))
    small.compile(keras.optimizers.Adam(0.01), "mse", **options)
    return small, lambda *callbacks: small.fit(
        X, Y, batch_size=8, epochs=epochs, verbose=0, callbacks=list(callbacks)
    )


def twin(values):
    """Bits by counting one value after the other, from the docstring's formula."""
    flat = values.ravel().tolist()
    width, n = 8 * values.itemsize, len(flat)
    zeros = sum(v == 0 for v in flat)
    others = [v for v in flat if v != 0]

    def entropy(items):
        shares = [items.count(one) / len(items) for one in set(items)]
        return -sum(p * math.log2(p) for p in shares)

    positions = n * entropy([v == 0 for v in flat]) if n else 0
    coded = (n - zeros) * (entropy(others) if others else 0) + width * len(set(others))
    return min(positions + min(coded, width * (n - zeros)), width * n)


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
@pytest.mark.parametrize("levels", [1, 2, 5, 1000])
@pytest.mark.parametrize("zeros", [0.0, 0.5, 0.9, 1.0])
def test_bits_are_those_of_the_formula(dtype, levels, zeros):
    values = RNG.integers(1, levels + 1, size=(12, 30)).astype(dtype)
    values[RNG.random(values.shape) < zeros] = 0
    assert estimated_bits(values) == pytest.approx(twin(values), rel=1e-9, abs=1e-6)


def test_logs_follow_the_schedule_and_agree_with_the_file(tmp_path):
    sparsity = dlopt.schedules.PolynomialSparsity(0.8, end=12, frequency=3)
    small, fit = trained(
        [(dlopt.named("kernel"), dlopt.Prune(sparsity) >> dlopt.Cluster(4, begin=13))]
    )
    file = tmp_path / "log.csv"
    seen = fit(CompressionLogger(), keras.callbacks.CSVLogger(file)).history
    # Six steps an epoch; the update before step 6 comes after the sixth.
    zeros = [float(sparsity(s)) for s in (6, 12, 12)]
    counted = [round(z * n) for z in zeros for n in (6 * 32, 32 * 2)]
    wanted = [(a + b) / 256 for a, b in zip(counted[::2], counted[1::2], strict=True)]
    assert seen["sparsity"] == pytest.approx(wanted, abs=0.01)
    assert seen["sparsity"][-1] == pytest.approx(dlopt.report.sparsity(small))
    assert seen["learning_rate"] == pytest.approx([0.01] * 3)
    assert seen["bits_per_weight"][0] > 8 > 4 > seen["bits_per_weight"][2]
    rows = list(csv.DictReader(file.read_text().splitlines()))
    assert [float(r["sparsity"]) for r in rows] == seen["sparsity"]
    assert [float(r["compressed_bytes"]) for r in rows] == seen["compressed_bytes"]


@pytest.mark.parametrize(
    "recipe",
    [
        lambda: dlopt.Prune(0.9) >> dlopt.Cluster(16),
        lambda: dlopt.FakeQuant(bits=4),
        lambda: dlopt.FakeQuant(bits=8),
        lambda: dlopt.Prune(0.8) >> dlopt.FakeQuant(bits=4),
    ],
)
def test_bytes_are_near_those_of_the_file(recipe, tmp_path):
    keras.utils.set_random_seed(0)
    layers = [keras.Input((64,)), L.Dense(200), L.Dense(100), L.Dense(10)]
    model = keras.Sequential(layers)
    small = dlopt.transform(model, dlopt.Recipe([(dlopt.named("kernel"), recipe())]))
    ledger = dlopt.save_compressed(dlopt.finalize(small), tmp_path / "a.dlopt")
    kept = sum(row.bits for row in ledger.rows if len(row.shape) == 2) / 8
    told = compression(small)
    kernels = told["compressed_bytes"] - 4 * 310
    # The file's coders have headers, and tables of frequencies.
    assert kernels == pytest.approx(kept, rel=0.1)


def _compression_by_file(small):
    """Zeros of the kernels that are there in the end, counted from their values."""
    final = [value for _, value, _ in small.final_values() if value.ndim >= 2]
    return sum((v == 0).sum() for v in final) / sum(v.size for v in final)


CASES = [c for c in catalogue.all_cases() if c.kind == "transform"]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_every_transform_can_be_logged(case):
    made = case.make()
    if made.kind == "weight":
        entries = [(dlopt.rank(2), made)]
    else:
        entries = [(dlopt.at("dense/output"), made)]
    keras.utils.set_random_seed(0)
    layers = [keras.Input((16,)), L.Dense(16, name="dense"), L.Dense(8, name="last")]
    small = dlopt.transform(keras.Sequential(layers), dlopt.Recipe(entries))
    told = compression(small, details=True)
    assert all(isinstance(v, float) and math.isfinite(v) for v in told.values())
    assert 0 <= told["sparsity"] <= 1
    assert 0 <= told["bits_per_weight"] <= 32
    if made.kind == "weight":
        plain = _compression_by_file(small)
        assert told["sparsity"] == pytest.approx(plain)


def test_details_have_paths_and_ranges_and_go_where_they_are_sent():
    got = []
    _, fit = trained([(dlopt.named("kernel"), dlopt.FakeQuant(bits=4))], epochs=2)
    logger = CompressionLogger(
        details=True, send=lambda logs, epoch: got.append((epoch, logs))
    )
    seen = fit(logger).history
    assert [epoch for epoch, _ in got] == [0, 1]
    for number, logs in got:
        assert logs == {name: values[number] for name, values in seen.items()}
        assert all(type(value) is float for value in logs.values())
    assert sum(name.startswith("bits/") for name in seen) == 2
    for shape, name in (((6, 32), "a"), ((32, 2), "b")):
        most = 4 + 32 * shape[1] / np.prod(shape)  # codes, and a scale a channel
        assert 2 < got[-1][1][f"bits/{name}/kernel"] <= most


def test_ranges_of_activations_are_told():
    digits = dlopt.data.load("digits").take(64)
    keras.utils.set_random_seed(0)
    layers = [L.Flatten(name="flat"), L.Dense(10, name="logits")]
    model = keras.Sequential([keras.Input((8, 8, 1)), *layers])
    small = dlopt.transform(model, dlopt.int8_recipe(model))
    small.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    logger = CompressionLogger(details=True)
    seen = small.fit(*digits.train, epochs=1, verbose=0, callbacks=[logger]).history
    assert seen["logits/output/low"][0] < 0 < seen["logits/output/high"][0]
    assert seen["flat/input/high"][0] == pytest.approx(1, abs=0.05)


def test_a_plain_model():
    model = network()
    model.compile(keras.optimizers.SGD(0.1), "mse")
    options = {"callbacks": [CompressionLogger()], "verbose": 0}
    seen = model.fit(X, Y, epochs=2, **options).history
    assert seen["bits_per_weight"] == [32.0, 32.0]
    assert seen["compressed_bytes"] == [4.0 * model.count_params()] * 2


REPLICAS = """
from keras_dlopt.distribute.build import split_cpu
split_cpu(2)
import json, keras, numpy as np, keras_dlopt as dlopt
x = np.random.default_rng(0).normal(size=(32, 6)).astype("float32")
told = []
for kind in ("cpu:1", "cpu:2"):
    with dlopt.distribute.strategy(kind).scope():
        keras.utils.set_random_seed(0)
        net = keras.Sequential([keras.Input((6,)), keras.layers.Dense(8, name="a")])
        chain = dlopt.Prune(0.5) >> dlopt.FakeQuant(bits=4)
        entries = [(dlopt.at("a/input"), dlopt.FakeQuantActivation())]
        recipe = dlopt.Recipe([*entries, (dlopt.named("kernel"), chain)])
        small = dlopt.transform(net, recipe)
        small.compile(keras.optimizers.SGD(0.1), "mse", steps_per_execution=2)
        logger = dlopt.callbacks.CompressionLogger(details=True)
        seen = small.fit(x, x[:, :1], batch_size=8, epochs=2, verbose=0,
                         callbacks=[logger]).history
        told.append({k: v for k, v in seen.items() if k != "loss"})
print("RESULT", json.dumps(told))
"""


@pytest.mark.dist
def test_two_replicas_tell_what_one_device_tells(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", REPLICAS],
        capture_output=True,
        text=True,
        timeout=250,
        cwd=tmp_path,
    )
    assert "RESULT" in done.stdout, done.stderr
    one, two = json.loads(done.stdout.partition("RESULT")[2])
    assert one["sparsity"] == [0.5, 0.5]
    assert set(one) == set(two)
    for name in one:
        assert two[name] == pytest.approx(one[name], rel=1e-4), name


def test_a_teacher_does_not_count():
    recipe = dlopt.Recipe([(dlopt.named("kernel"), dlopt.Prune(0.5))])
    small = dlopt.transform(network(), recipe)
    alone = compression(small, details=True)
    assert compression(dlopt.distill.distill(small, network(64)), details=True) == alone
    assert set(alone) >= {"bits/a/kernel", "bits/b/kernel", "sparsity/a/kernel"}


def test_weights_that_are_nan_are_told_as_they_are():
    small, _ = trained([(dlopt.named("kernel"), dlopt.FakeQuant(bits=4))])
    small.layers[-1].kernel.assign(np.full((32, 2), np.nan))
    assert compression(small)["sparsity"] == 0


def test_what_cannot_be_called_is_refused():
    with pytest.raises(
        ConfigError, match=r"send must be a function of \(logs, epoch\)"
    ):
        CompressionLogger(send="mlflow")
    assert CompressionLogger(send=print).get_config() == {
        "details": False,
        "send": None,
    }
