"""Many LiteRT interpreters give what one gives, in order."""

import importlib.util
import time

import keras
import numpy as np
import pytest

pytest.importorskip("ai_edge_litert")

from keras_dlopt.distribute import RunError, predict_litert
from keras_dlopt.errors import ConfigError, DataError, MissingDependencyError


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    keras.utils.set_random_seed(0)
    net = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3)])
    path = tmp_path_factory.mktemp("litert") / "net.tflite"
    net.export(path, format="litert", verbose=False)
    return net, path


def test_order_and_tail_are_kept(exported):
    net, path = exported
    x = np.random.default_rng(0).normal(size=(11, 6)).astype("float32")
    expected = keras.ops.convert_to_numpy(net(x))
    for processes, batch in ((1, 1), (3, 4)):
        got = predict_litert(path, x, processes=processes, batch_size=batch)
        np.testing.assert_allclose(got, expected, atol=1e-5)


def test_a_process_that_fails_is_named(exported, tmp_path):
    broken = tmp_path / "broken.tflite"
    broken.write_bytes(b"not a model")
    with pytest.raises(RunError, match="LiteRT process 0 failed with exit code 1"):
        predict_litert(broken, np.ones((2, 6), "float32"), processes=1)


def test_a_file_of_several_outputs_is_refused(exported, tmp_path):
    net, _ = exported
    path = tmp_path / "two.tflite"
    both = keras.Model(net.inputs, [net.outputs[0], keras.ops.exp(net.outputs[0])])
    both.export(path, format="litert", verbose=False)
    with pytest.raises(RunError, match="has 1 inputs and 2 outputs; predict_litert"):
        predict_litert(path, np.ones((2, 6), "float32"), processes=1)


def test_time_is_limited(exported):
    began = time.monotonic()
    with pytest.raises(RunError, match=r"timed out after 0\.01 s and was ended"):
        predict_litert(exported[1], np.ones((2, 6), "float32"), seconds=0.01)
    assert time.monotonic() - began < 30


def test_arguments_are_checked(exported, monkeypatch):
    x = np.ones((2, 6), "float32")
    with pytest.raises(ConfigError, match="needs a file that is there"):
        predict_litert("nowhere.tflite", x)
    with pytest.raises(ConfigError, match="Received: .*processes=0"):
        predict_litert(exported[1], x, processes=0)
    with pytest.raises(DataError, match="holds no example"):
        predict_litert(exported[1], x[:0])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"keras-dlopt\[litert\]"):
        predict_litert(exported[1], x)
