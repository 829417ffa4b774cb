"""Advice by numbers."""

import json

import keras
import numpy as np
import pytest

import keras_dlopt as dlopt
from keras_dlopt.auto import advise

L = keras.layers


def test_every_number_is_counted():
    rng = np.random.default_rng(0)
    keras.utils.set_random_seed(0)
    first, last = L.Dense(64, "relu", name="a"), L.Dense(10, name="b")
    model = keras.Sequential([keras.Input((32,)), first, last])
    a, b = rng.normal(size=(32, 64)), rng.normal(size=(64, 10))
    a[:, 5] = 0  # a channel that carries nothing
    b[::2, ::2] = b[1::2, 1::2] = 0
    first.kernel.assign(a)
    last.kernel.assign(b)
    found = advise(model)
    assert (found.bytes, found.kernel_bytes) == (4 * 2762, 4 * (2048 + 640))
    assert [(p.path, p.bytes) for p in found.parts] == [("a", 8448), ("b", 2600)]
    assert found.parts[0].share == pytest.approx(8448 / 11048)
    assert found.parts[1].zeros == 0.5
    assert found.zeros == pytest.approx((32 + 320) / 2688)
    assert (found.int8_share, found.parts[0].int8) == (1.0, True)
    # Order-0 entropy of the codes, counted in another way.
    coded = 4 * (64 + 10) + 4 * (64 + 10)
    for part, kernel in zip(found.parts, (a, b), strict=True):
        top = np.abs(kernel).max(0)
        top[top == 0] = 1
        codes = np.round(np.float32(kernel) / np.float32(top) * 127)
        _, counts = np.unique(codes, return_counts=True)
        p = counts / counts.sum()
        assert part.entropy == pytest.approx(-(p * np.log2(p)).sum(), abs=0.01)
        coded += -(p * np.log2(p)).sum() * kernel.size / 8
    assert found.coded_bytes == pytest.approx(coded, abs=8)
    dead, report = dlopt.surgery.remove_dead(model)
    assert found.examination.removable_channels == 1
    told, call = found.candidates[0]
    assert f"{model.count_params() - dead.count_params():,} parameters leave" in told
    assert "remove_dead" in call
    assert report is not None
    data = json.loads(json.dumps(found.to_dict()))
    assert data["bytes"] == found.bytes
    assert "a" in str(found)


def test_what_int8_has_no_form_of_is_not_counted_as_such():
    layers = [L.LSTM(8, name="lstm"), L.Dense(4, "softmax", name="d")]
    model = keras.Sequential([keras.Input((6, 3)), *layers])
    found = advise(model)
    by_path = {part.path: part for part in found.parts}
    assert (by_path["d"].int8, by_path["d"].bytes) == (True, 4 * 36)
    assert found.int8_share == pytest.approx(
        32 / sum(np.prod(p.shape) for p in kernels(model))
    )


def kernels(model):
    return [w for w in model.weights if "kernel" in w.path]
