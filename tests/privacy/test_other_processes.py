"""On two replicas, and on the JAX backend, what one device with TensorFlow computes."""

import os
import subprocess
import sys

import pytest

RUN = """
import os, sys
import numpy as np
import keras
from keras_dlopt import finalize, privacy

kind = sys.argv[1]
if kind == "replicas":
    import tensorflow as tf
    from keras_dlopt.distribute.build import split_cpu
    split_cpu(2)
    both = tf.distribute.MirroredStrategy(
        ["CPU:0", "CPU:1"], cross_device_ops=tf.distribute.HierarchicalCopyAllReduce()
    )
    scopes = [tf.distribute.get_strategy().scope, both.scope]
else:
    import contextlib
    scopes = [contextlib.nullcontext, contextlib.nullcontext]
L = keras.layers
rng = np.random.default_rng(0)
x = rng.normal(size=(40, 6)).astype("float32")
y = rng.integers(0, 3, 40)
start = [rng.normal(size=s).astype("float32") for s in ((6, 5), (5,), (5, 3), (3,))]
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

def trained(scope, sigma, microbatch=None):
    with scope():
        net = keras.Sequential(
            [keras.Input((6,)), L.Dense(5, activation="tanh"), L.Dense(3)]
        )
        net.set_weights(start)
        model = privacy.private(
            net, noise_multiplier=sigma, clip=0.3, seed=1, microbatch=microbatch
        )
        model.compile(keras.optimizers.Adam(0.1), loss, metrics=["accuracy"])
    history = model.fit(x, y, 9, epochs=2, verbose=0).history
    assert model.ledger[0].steps == 10, model.ledger
    return finalize(model).get_weights(), history

one, first = trained(scopes[0], 2.0)
two, second = trained(scopes[1], 2.0)
apart = max(abs(a - b).max() for a, b in zip(one, two))
assert apart < (1e-5 if kind == "replicas" else 1e-9), apart
np.testing.assert_allclose(first["loss"], second["loss"], rtol=1e-5)
parts, _ = trained(scopes[1], 2.0, microbatch=2)
assert max(abs(a - b).max() for a, b in zip(one, parts)) < 1e-5
plain, history = trained(scopes[0], 0.0)
print("RESULT", repr([w.tolist() for w in plain]), repr(history["loss"]))
"""


def run(kind, **environment):
    done = subprocess.run(
        [sys.executable, "-c", RUN, kind],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    line = next(s for s in done.stdout.splitlines() if s.startswith("RESULT"))
    return line


@pytest.mark.dist
def test_two_replicas_clip_and_add_noise_as_one():
    run("replicas")


@pytest.mark.jax
@pytest.mark.slow
def test_jax_computes_the_same():
    import numpy as np

    found = []
    for backend in ("jax", "tensorflow"):
        line = run("backend", KERAS_BACKEND=backend)
        found.append([float(v) for v in line[7:].replace("[", " ").replace(
            "]", " ").replace(",", " ").split()])  # fmt: skip
    np.testing.assert_allclose(*found, atol=1e-5)
