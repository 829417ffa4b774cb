"""The one call from a trained model to a small one."""

import dataclasses
import json

import keras
import numpy as np
import pytest

import keras_dlopt as dlopt
from keras_dlopt.auto import compressing, goals
from keras_dlopt.auto.compressed import Trial
from keras_dlopt.auto.goals import Strength, coded_bytes, strength_for
from keras_dlopt.errors import ConfigError, DataError, ModelError
from keras_dlopt.export import Predictor

L = keras.layers
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


@pytest.fixture(scope="module")
def digits():
    return dlopt.data.load("digits")


@pytest.fixture(scope="module")
def net(digits):
    keras.utils.set_random_seed(0)
    layers = [L.Flatten(), L.Dense(48, "relu"), L.Dense(10)]
    model = keras.Sequential([keras.Input(digits.input_shape), *layers])
    model.compile(keras.optimizers.Adam(3e-3), LOSS)
    model.fit(*digits.train, epochs=15, verbose=0)
    return model


def accuracy(model, x, y):
    return float((model.predict(x, verbose=0).argmax(-1) == y).mean())


def test_a_size_is_reached_trained_written_and_read_back(net, digits, tmp_path):
    before = [w.numpy() for w in net.weights]
    path = tmp_path / "small.dlopt"
    made = dlopt.compress(net, digits, size=0.12, epochs=6, path=path)
    assert path.stat().st_size == made.bytes <= 0.12 * made.plain_bytes
    assert made.plain_bytes == 4 * net.count_params()
    again = dlopt.load_compressed(path)
    x, y = digits.val
    np.testing.assert_array_equal(again(x), made.model(x))
    assert made.trials[0].accuracy == pytest.approx(accuracy(again, x, y))
    assert accuracy(net, x, y) - made.trials[0].accuracy < 0.05
    # Trained on, not only cut: what was trained for is better than at once.
    strength = strength_for(net, made.trials[0].goal)
    cut = dlopt.finalize(dlopt.transform(net, strength.recipe()))
    z, w = digits.train
    assert float(LOSS(w, made.model(z))) < float(LOSS(w, cut(z)))
    # What was given stays as it was.
    assert all(map(np.array_equal, before, [w.numpy() for w in net.weights]))
    assert net.trainable_variables
    assert dlopt.Recipe.from_json(made.recipe.to_json()) == made.recipe
    data = json.loads(made.to_json(tmp_path / "made.json").read_text())
    assert (data["bytes"], data["trials"][0]["bytes"]) == (made.bytes, made.bytes)
    assert f"became {made.bytes:,}" in str(made)


def test_small_sizes_are_trained_towards_where_there_is_time(net, digits):
    made = dlopt.compress(net, digits, size=0.06, epochs=26, rate=3e-3)
    assert made.trials[0].method == "trained towards few bits"
    assert made.bytes <= 0.06 * made.plain_bytes
    assert made.trials[0].accuracy > accuracy(net, *digits.val) - 0.04
    ((_, transform),) = made.recipe.entries
    assert transform.end == 26 * 20


@pytest.mark.parametrize(
    ("share", "sparsity", "clusters"),
    [(0.4, False, None), (0.2, False, 16), (0.06, True, 16)],
)
def test_the_mildest_strength_that_fits_is_taken(net, share, sparsity, clusters):
    goal = int(share * 4 * net.count_params())
    found = strength_for(net, goal)
    assert (found.sparsity > 0, found.clusters) == (sparsity, clusters)
    assert coded_bytes(dlopt.transform(net, found.recipe())) <= goal
    if sparsity:
        milder = dataclasses.replace(found, sparsity=found.sparsity - 0.02)
        assert coded_bytes(dlopt.transform(net, milder.recipe())) > goal


def test_schedules_end_within_the_training():
    recipe = Strength(0.9, 16).recipe(1000)
    ((_, chain),) = recipe.entries
    prune, cluster = chain.links
    assert (prune.sparsity.end, cluster.begin) == (450, 750)
    # A single step still prunes first.
    ((_, chain),) = Strength(0.9, 16).recipe(1).entries
    assert chain.links[0].sparsity.end <= chain.links[1].begin


class Fake(compressing._Search):
    """A search whose trainings cost nothing: accuracy falls below a size."""

    def __init__(self, turns_at):
        self.trials, self.reasons, self.start = [], [], 0.0
        self.budget, self.turns_at = float("inf"), turns_at

    def reach(self, goal):
        right = 0.9 if goal >= self.turns_at else 0.5
        self.trials.append(Trial("", goal, goal, right, 0.0, 1.0))
        return self.trials[-1]


@pytest.mark.parametrize("turns_at", [15, 100, 1000, 10_000, 50_000])
def test_the_search_ends_near_the_size_where_accuracy_turns(turns_at):
    search = Fake(turns_at)
    found = search._smallest(6250, 100_000, lambda t: t.accuracy > 0.8)
    least = max(turns_at, 100_000 / 1024)
    assert turns_at <= found.bytes <= 2.1 * least
    assert len(search.trials) < 14


def test_a_search_ends_with_its_budget():
    search = Fake(10)
    search.budget = 0.0
    assert search._smallest(6250, 100_000, lambda t: True).bytes == 6250
    assert search.reasons == ["the time budget ended the search"]


@pytest.mark.slow
def test_as_small_as_the_accuracy_allows(net, digits):
    made = dlopt.compress(
        net, digits, max_accuracy_drop=0.1, epochs=6, time_budget=1e-3
    )
    before = accuracy(net, *digits.val)
    assert made.trials[0].accuracy >= before - 0.1
    assert {t.bytes for t in made.pareto} <= {t.bytes for t in made.trials}
    assert made.ratio > 3


def test_int8_is_judged_by_its_file_and_trained_on_if_it_must(
    net, digits, tmp_path, monkeypatch
):
    path = tmp_path / "a.tflite"
    made = dlopt.compress(net, digits, int8=True, path=path, epochs=2)
    x, y = digits.val
    right = float((Predictor(path)(x).argmax(-1) == y).mean())
    assert made.trials[0].accuracy == pytest.approx(right)
    assert made.bytes == path.stat().st_size
    # As if the file had lost much: training comes next, and is judged by its file.
    from keras_dlopt.auto import small_int8

    holds = iter([False, True])
    monkeypatch.setattr(small_int8, "_holds", lambda *_: next(holds))
    made = dlopt.compress(
        net, digits, int8=True, path=path, epochs=1, max_accuracy_drop=0.0
    )
    assert [t.method.split()[1] for t in made.trials] == ["with", "after"]
    right = float((Predictor(path)(x).argmax(-1) == y).mean())
    assert made.trials[0].accuracy == pytest.approx(right)


def test_regression_is_judged_by_its_loss(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 6)).astype("float32")
    y = x @ rng.normal(size=(6, 2)).astype("float32")
    layers = [keras.Input((6,)), L.Dense(64, "relu"), L.Dense(2)]
    model = keras.Sequential(layers)
    model.compile("adam", "mse")
    model.fit(x, y, epochs=3, verbose=0)
    made = dlopt.compress(model, (x, y), size=0.5, epochs=2)
    assert made.report is None
    held = float(np.square(made.model(x[-20:]) - y[-20:]).mean())
    assert made.trials[0].loss == pytest.approx(held, rel=1e-5)
    with pytest.raises(ConfigError, match="max_accuracy_drop needs a model that class"):
        dlopt.compress(model, (x, y), max_accuracy_drop=0.1)


def test_an_accuracy_that_is_not_held_is_refused_with_figures(net, digits):
    with pytest.raises(ConfigError, match="of the validation examples came out right"):
        dlopt.compress(net, digits, size=0.04, max_accuracy_drop=0.0, epochs=1)


def test_wrong_goals_are_refused_before_the_work(net, digits, tmp_path, monkeypatch):
    monkeypatch.setattr(compressing, "job_for", None)
    for options, text in (
        ({}, "compress needs a goal"),
        ({"size": 0.1, "max_bytes": 9}, "Give size or max_bytes, not both"),
        ({"size": 1.5}, "size must be"),
        ({"size": 0.1, "path": "a.keras"}, "path must end in .dlopt"),
        ({"int8": True}, "path must end in .tflite, and int8=True needs one"),
        ({"size": 0.1, "path": tmp_path / "no" / "a.dlopt"}, "There is no folder"),
        ({"max_accuracy_drop": -1}, "max_accuracy_drop must be"),
    ):
        with pytest.raises(ConfigError, match=text):
            dlopt.compress(net, digits, **options)
    small = dlopt.transform(net, Strength(0.5, 4).recipe())
    with pytest.raises(ModelError, match="is transformed already"):
        dlopt.compress(small, digits, size=0.1)


def test_wrong_data_are_refused(net, digits):
    x, y = digits.train
    for data, text in (
        ((x[:5], y[:5]), "10 examples or more"),
        ((x, y[:-1]), "as many labels"),
        (iter(()), "Without val, train must be arrays"),
    ):
        with pytest.raises(DataError, match=text):
            dlopt.compress(net, data, size=0.1)
    with pytest.raises(DataError, match="number of batches in train is not known"):
        dlopt.compress(net, iter(()), digits.val, size=0.1)


def test_the_least_that_is_left_is_known_beforehand(net, digits, monkeypatch):
    monkeypatch.setattr(goals, "_HALVINGS", 1)
    with pytest.raises(ConfigError, match="cannot be coded into 300 bytes"):
        dlopt.compress(net, digits, max_bytes=300)
