"""LearningRateSearch: rates, folds, resuming."""

import builtins
import math

import keras
import numpy as np
import pytest

from keras_dlopt.callbacks import LearningRateSearch
from keras_dlopt.callbacks.search import _folds
from keras_dlopt.errors import ConfigError, DataError, MissingDependencyError

optuna = pytest.importorskip("optuna")

X = np.random.default_rng(0).normal(size=(30, 2)).astype("float32")
Y = X[:, :1] - X[:, 1:]


class Stub:
    """Stands in for a model: its history depends on the rate alone."""

    calls = ()

    def __init__(self, rate):
        self.rate = rate

    def fit(self, x, y, *, validation_data, **kwargs):
        Stub.calls.append((self.rate, len(x), len(validation_data[0])))
        value = abs(math.log10(self.rate) + 3)
        self.history = {
            "val_loss": [value + 1, value if self.rate < 0.05 else math.nan]
        }
        return self


@pytest.fixture(autouse=True)
def _fresh():
    Stub.calls = []


def test_best_rate_and_folds():
    result = LearningRateSearch(Stub, trials=8, folds=3).run(X, Y)
    assert len(Stub.calls) == 24
    assert all(call[1:] == (20, 10) for call in Stub.calls)
    good = [row for row in result.trials if math.isfinite(row["value"])]
    best = min(good, key=lambda row: abs(math.log10(row["rate"]) + 3))
    assert result.best_rate == best["rate"]
    assert [row["number"] for row in result.trials] == list(range(8))
    assert all(len(row["folds"]) == 3 for row in result.trials)


def test_every_example_is_held_out_once():
    parts = list(_folds(np.arange(17), np.arange(17), 4, 0))
    held = np.concatenate([part[2] for part in parts])
    assert sorted(held) == list(range(17))
    for x, y, held_x, held_y in parts:
        assert not set(x) & set(held_x)
        np.testing.assert_array_equal(x, y)
        np.testing.assert_array_equal(held_x, held_y)


def test_interrupted_search_resumes_to_the_same_trials(tmp_path):
    storage = f"sqlite:///{tmp_path / 'search.db'}"
    unbroken = LearningRateSearch(Stub, trials=6, folds=2, seed=4).run(X, Y)

    class Dies(Stub):
        def fit(self, *args, **kwargs):
            if len(Stub.calls) == 5:
                raise KeyboardInterrupt
            return super().fit(*args, **kwargs)

    Stub.calls = []
    with pytest.raises(KeyboardInterrupt):
        LearningRateSearch(Dies, trials=6, folds=2, seed=4, storage=storage).run(X, Y)
    Stub.calls = []
    resumed = LearningRateSearch(Stub, trials=6, folds=2, seed=4, storage=storage)
    result = resumed.run(X, Y)
    assert len(Stub.calls) == 8  # two trials were finished, four are left
    assert str(result.trials) == str(unbroken.trials)
    assert result.best_rate == unbroken.best_rate


def test_resuming_with_other_settings_is_refused(tmp_path):
    storage = f"sqlite:///{tmp_path / 'search.db'}"
    LearningRateSearch(Stub, trials=1, folds=2, storage=storage).run(X, Y)
    with pytest.raises(ConfigError, match=r"other settings.*'folds': 2.*'folds': 3"):
        LearningRateSearch(Stub, trials=1, folds=3, storage=storage).run(X, Y)


def test_with_a_real_model():
    def build(rate):
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        model.compile(keras.optimizers.SGD(rate), "mse")
        return model

    search = LearningRateSearch(
        build, trials=2, folds=1, epochs=1, batch_size=12, low=1e-4, high=0.3, seed=2
    )
    result = search.run(X, Y)
    assert result.best_rate in (search.rate(0), search.rate(1))
    assert result.best_value == min(row["value"] for row in result.trials)


def test_all_diverged_is_said():
    with pytest.raises(ConfigError, match=r"Every rate of the search diverged"):
        LearningRateSearch(Stub, trials=2, folds=2, low=0.06, high=0.1).run(X, Y)


def test_missing_monitor_is_named():
    search = LearningRateSearch(Stub, trials=1, folds=2, monitor="val_accuracy")
    with pytest.raises(ConfigError, match=r"'val_accuracy' is not in the history"):
        search.run(X, Y)


def test_too_few_examples_are_refused():
    with pytest.raises(DataError, match=r"folds=5 needs at least.*3 examples"):
        LearningRateSearch(Stub, folds=5).run(X[:3], Y[:3])


def test_without_optuna(monkeypatch):
    real = builtins.__import__

    def no_optuna(name, *args, **kwargs):
        if name == "optuna":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", no_optuna)
    with pytest.raises(MissingDependencyError, match=r"keras-dlopt\[auto\]"):
        LearningRateSearch(Stub).run(X, Y)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"low": -1.0}, r"low must be a positive number"),
        ({"low": 1.0}, r"low < high"),
        ({"mode": "auto"}, r"mode must be 'min' or 'max'"),
        ({"folds": 0}, r"folds must be a whole number, 1 or greater"),
    ],
)
def test_bad_arguments_are_named(arguments, text):
    with pytest.raises(ConfigError, match=text):
        LearningRateSearch(Stub, **arguments)
