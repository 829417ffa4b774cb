"""Training within a time."""

import dataclasses
import math

import keras
import numpy as np
import pytest

from keras_dlopt.auto import train_within, within
from keras_dlopt.errors import ConfigError, DataError

L = keras.layers
RNG = np.random.default_rng(0)
X = RNG.normal(size=(400, 8)).astype("float32")
Y = X[:, :3].argmax(1)


def network(seed=0):
    keras.utils.set_random_seed(seed)
    layers = [L.Dense(16, "relu"), L.Dense(3)]
    return keras.Sequential([keras.Input((8,)), *layers])


def test_the_best_short_training_is_done_in_full(monkeypatch):
    monkeypatch.setattr(within, "_SEARCHED", math.inf)
    net = network()
    before = [w.numpy() for w in net.weights]
    done = []
    kept = within._fit

    def fit(job, *asked):
        model, found = kept(job, *asked)
        done.append(found)
        return model, found

    monkeypatch.setattr(within, "_fit", fit)
    made = train_within(net, (X, Y), (X, Y), time_budget=1e-3)
    assert len(made.tried) == len(done) - 1 == 3  # one batch size fits 400 examples
    assert made.tried[0].accuracy == max(one.accuracy for one in made.tried)
    best, final = made.tried[0], made.final
    assert (best.optimizer, best.rate) == (final.optimizer, final.rate)
    right = float((np.asarray(made.model(X)).argmax(1) == Y).mean())
    assert final.accuracy == pytest.approx(right)
    assert right > (np.asarray(net(X)).argmax(1) == Y).mean() + 0.1
    assert str(best) in made.reasons[0]
    assert all(map(np.array_equal, before, [w.numpy() for w in net.weights]))


def test_the_rate_is_warmed_up_and_comes_down():
    data = (X, Y)
    job = within.job_for(network(), data, data, batch_size=40, teacher=False)
    rates = []

    class Watch:
        def stage(self, name, steps):
            assert steps == 40

        def advance(self, note):
            rates.append(note)

    object.__setattr__(job, "progress", Watch())
    model, found = within._fit(job, "SGD", 0.1, 40, 4)
    assert (len(rates), found.epochs) == (40, 4)
    schedule = model.optimizer._learning_rate
    seen = [float(schedule(step)) for step in (0, 2, 21, 40)]
    expected = [0.0, 0.1, 0.1 * (1 + math.cos(math.pi / 2)) / 2, 0.0]
    np.testing.assert_allclose(seen, expected, atol=1e-6)


def test_what_is_refused():
    with pytest.raises(ConfigError, match="time_budget must be"):
        train_within(network(), (X, Y), time_budget=0)


@pytest.mark.advice("auto/within.py", "Pass (x, y).")
@pytest.mark.advice("auto/within.py", "Check labels and loss=, or train it yourself")
def test_advice_is_followed(monkeypatch):
    net = network()
    for data, loss, text in (
        (Batches(), None, r"Pass \(x, y\)."),
        ((X, Y), flat, "Check labels and loss="),
    ):
        with pytest.raises((ConfigError, DataError), match=text):
            train_within(net, data, (X, Y), loss=loss, time_budget=1e-3)
    assert train_within(net, (X, Y), (X, Y), time_budget=1e-3).final.epochs == 1
    kept = within._fit

    def diverges(job, *asked):
        model, found = kept(job, *asked)
        lost = dataclasses.replace(found, loss=math.inf)
        return model, lost if done else (done.append(1) or found)

    done = []
    monkeypatch.setattr(within, "_fit", diverges)
    with pytest.raises(ConfigError, match="it diverged. Look at the data with report"):
        train_within(net, (X, Y), (X, Y), time_budget=1e-3)


def flat(y, rows):
    return 0 * keras.ops.sum(rows, axis=-1)


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return 2

    def __getitem__(self, number):
        return X[:8], Y[:8]
