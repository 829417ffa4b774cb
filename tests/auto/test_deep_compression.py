"""The named call from a trained model to a file many times smaller."""

import dataclasses

import keras
import numpy as np
import pytest

import keras_dlopt as dlopt
from keras_dlopt.auto.training import job_for
from keras_dlopt.errors import ConfigError

L = keras.layers


@pytest.fixture(scope="module")
def digits():
    return dlopt.data.load("digits")


@pytest.fixture(scope="module")
def net(digits):
    keras.utils.set_random_seed(0)
    layers = [L.Flatten(), L.Dense(96, "relu"), L.Dense(10)]
    model = keras.Sequential([keras.Input(digits.input_shape), *layers])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(3e-3), loss)
    model.fit(*digits.train, epochs=10, verbose=0)
    return model


def test_the_file_is_so_many_times_smaller(net, digits, tmp_path):
    path, asked = tmp_path / "small.dlopt", {"epochs": 6, "rate": 3e-3}
    made = dlopt.deep_compression(net, digits, ratio=15, path=path, **asked)
    assert path.stat().st_size == made.bytes <= made.plain_bytes / 15
    x, y = digits.val
    again = dlopt.load_compressed(path)
    np.testing.assert_array_equal(again(x), made.model(x))
    right = [(m.predict(x, verbose=0).argmax(-1) == y).mean() for m in (net, again)]
    assert right[1] > right[0] - 0.05
    # Pruned: most are zeros. Shared: few values are left.
    kernel = again.layers[1].kernel.numpy()
    assert np.mean(kernel == 0) > 0.5
    assert len(np.unique(kernel)) <= 17
    assert made.report is not None


def test_the_goal_is_what_compress_is_asked_for(net, digits, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "keras_dlopt.auto.deep.compress",
        lambda *given, **options: asked.append((given, options)),
    )
    none = dict.fromkeys(("size", "max_bytes", "max_accuracy_drop"))
    for goal, wanted in (
        ({}, {"size": 1 / 50}),
        ({"ratio": 8}, {"size": 1 / 8}),
        ({"max_bytes": 900}, {"max_bytes": 900}),
        ({"max_accuracy_drop": 0.01}, {"max_accuracy_drop": 0.01}),
        (
            {"ratio": 4, "max_accuracy_drop": 0.01},
            {"size": 1 / 4, "max_accuracy_drop": 0.01},
        ),
    ):
        dlopt.deep_compression(net, digits, None, **goal, epochs=3)
        given, options = asked.pop()
        assert given == (net, digits, None)
        assert options == {**none, **wanted, "epochs": 3}


def test_what_is_no_ratio_is_refused(net, digits):
    for goal, text in (
        ({"ratio": 1.0}, r"how many times smaller the file is, above 1. Received: 1.0"),
        ({"ratio": -3}, "ratio must be"),
        ({"ratio": 9, "max_bytes": 10}, "Give ratio or max_bytes, not both"),
    ):
        with pytest.raises(ConfigError, match=text):
            dlopt.deep_compression(net, digits, **goal)


def test_the_teacher_of_arrays_runs_once(net, digits):
    x, y = (part[:64] for part in digits.train)
    job = job_for(net, (x, y), (x, y), epochs=1)
    np.testing.assert_allclose(job._outputs, net(x), atol=1e-5)
    # Of batches the order is not known, and outputs may be larger than the examples.
    batches = [(x, y)]
    assert dataclasses.replace(job, train=batches)._outputs is None
    wide = keras.Sequential([keras.Input((2,)), L.Dense(50)])
    pairs = (np.ones((4, 2), "float32"), np.zeros(4, "int64"))
    assert dataclasses.replace(job, model=wide, train=pairs)._outputs is None
