"""The shortcut term on other backends and devices, each in a process of its own."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from reference import layers as twin

SCRIPT = """
import json, os, sys
import numpy as np
import keras
from keras_dlopt.layers import Residual

keras.utils.set_random_seed(0)
rng = np.random.default_rng(0)
x = rng.normal(size=(16, 4)).astype("float32")
y = (np.arange(16) % 3).astype("int32")
w = rng.normal(size=(4, 4)).astype("float32")
v = rng.normal(size=(4, 3)).astype("float32")

def build():
    inputs = keras.Input((4,))
    body = keras.layers.Dense(4, activation="tanh", name="body")
    h = Residual(body, shortcut_loss=0.3, distance=sys.argv[2], name="block")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(3, name="out")(h))
    model.compile(
        keras.optimizers.SGD(0.1),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    model.set_weights([w, np.zeros(4), v, np.zeros(3)])
    return model

if sys.argv[1] == "mirrored":
    import tensorflow as tf
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0],
        [tf.config.LogicalDeviceConfiguration()] * 2,
    )
    strategy = tf.distribute.MirroredStrategy(
        ["CPU:0", "CPU:1"],
        cross_device_ops=tf.distribute.HierarchicalCopyAllReduce(),
    )
    with strategy.scope():
        model = build()
else:
    model = build()
logs = model.fit(x, y, batch_size=16, epochs=2, shuffle=False, verbose=0).history
weights = [np.asarray(keras.ops.convert_to_numpy(t.value)).tolist()
           for t in model.weights]
print("RESULT " + json.dumps({"logs": logs, "weights": weights}))
"""


def _run(where, distance):
    backend = "jax" if where == "jax" else "tensorflow"
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, where, distance],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "KERAS_BACKEND": backend},
        cwd=pathlib.Path(__file__).parent,
        check=False,
    )
    lines = [s for s in done.stdout.splitlines() if s.startswith("RESULT ")]
    assert lines, done.stderr[-3000:]
    return json.loads(lines[-1].removeprefix("RESULT "))


def _twin(distance):
    """Two steps of gradient descent in float64, with numerical gradients."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(16, 4)).astype("float32").astype(float)
    y = np.arange(16) % 3
    w = rng.normal(size=(4, 4)).astype("float32").astype(float)
    v = rng.normal(size=(4, 3)).astype("float32").astype(float)
    shapes = [(4, 4), (4,), (4, 3), (3,)]
    theta = np.concatenate([w.ravel(), np.zeros(4), v.ravel(), np.zeros(3)])

    def parts(theta):
        cuts = np.cumsum([int(np.prod(s)) for s in shapes])[:-1]
        w, b, v, c = (
            p.reshape(s) for p, s in zip(np.split(theta, cuts), shapes, strict=True)
        )
        body = np.tanh(x @ w + b)
        logits = (body + x) @ v + c
        log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        term = getattr(twin, distance)(body, x)
        return -log_p[np.arange(16), y].mean() + 0.3 * term, term

    losses, terms = [], []
    for _ in range(2):
        loss, term = parts(theta)
        losses.append(loss)
        terms.append(term)
        steps = 1e-6 * np.eye(len(theta))
        slope = [(parts(theta + e)[0] - parts(theta - e)[0]) / 2e-6 for e in steps]
        theta = theta - 0.1 * np.array(slope)
    return losses, terms, theta


@pytest.mark.parametrize(
    ("where", "distance"),
    [
        pytest.param("mirrored", "mse", marks=pytest.mark.dist),
        pytest.param("mirrored", "cosine", marks=[pytest.mark.dist, pytest.mark.slow]),
        pytest.param("jax", "mse", marks=[pytest.mark.jax, pytest.mark.slow]),
        pytest.param("jax", "cosine", marks=pytest.mark.jax),
    ],
)
def test_loss_and_updates_equal_the_twin(where, distance):
    if where == "jax":
        pytest.importorskip("jax")
    result = _run(where, distance)
    losses, terms, theta = _twin(distance)
    np.testing.assert_allclose(result["logs"]["loss"], losses, rtol=1e-5)
    weights = np.concatenate([np.ravel(w) for w in result["weights"]])
    np.testing.assert_allclose(weights, theta, rtol=1e-4, atol=1e-5)
    if where == "jax":
        assert list(result["logs"]) == ["loss"]
    else:
        np.testing.assert_allclose(
            result["logs"]["block_shortcut_loss"], terms, rtol=1e-5
        )
