"""Runs one contract over all cases in a process of its own; prints a line for each.

    python -m contracts.worker two_replicas

Logical devices and the backend must be set before TensorFlow or JAX starts, so
`two_replicas` and `jax` cannot share the test process.
"""

import json
import os
import sys
import traceback

CONTRACT = sys.argv[1]
if CONTRACT == "jax":
    os.environ["KERAS_BACKEND"] = "jax"

import keras
import numpy as np

from catalogue import all_cases

if CONTRACT == "two_replicas":
    import tensorflow as tf

    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0],
        [tf.config.LogicalDeviceConfiguration()] * 2,
    )


def _two_replicas(case):
    from contracts.building import trial

    alone = trial(case)
    alone.fit()
    strategy = tf.distribute.MirroredStrategy(
        ["CPU:0", "CPU:1"],
        cross_device_ops=tf.distribute.HierarchicalCopyAllReduce(),
    )
    with strategy.scope():
        both = trial(case)
    both.fit()
    _compare(case, alone.weights(), both.weights())


def _jax(case):
    from contracts.building import trial

    t = trial(case, jit=True)
    history = t.fit(epochs=2)
    assert np.all(np.isfinite(history.history["loss"]))
    for value in t.weights():
        assert np.all(np.isfinite(value))


def _compare(case, left, right):
    for a, b in zip(left, right, strict=True):
        assert a.shape == b.shape
        assert np.all(np.isfinite(b))
        if not case.random:
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5)


def main():
    check = {"two_replicas": _two_replicas, "jax": _jax}[CONTRACT]
    for case in all_cases():
        if CONTRACT in case.exempt:
            continue
        keras.utils.clear_session(free_memory=False)
        try:
            check(case)
            text = ""
        except Exception:
            text = traceback.format_exc()[-3000:]
        print("RESULT " + json.dumps([case.name, text]), flush=True)


if __name__ == "__main__":
    main()
