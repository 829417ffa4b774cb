"""Runs one contract over all cases in a process of its own; prints a line for each.

    python -m contracts.worker replicas

Logical devices and the backend must be set before TensorFlow or JAX starts, so
`replicas` and `jax` cannot share the test process.
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

if CONTRACT in ("replicas", "moving"):
    import tensorflow as tf

    from contracts import equality
    from keras_dlopt.distribute.build import split_cpu

    split_cpu(4)


# Of each way to keep state one; all run on 4 devices in the slow tests.
ON_FOUR = (
    "AdamW",
    "SOAP",
    "LBFGS",
    "ScheduleFree",
    "Lookahead",
    "Prune",
    "FakeQuant",
    "FakeQuantActivation",
    "Cluster",
    "RateAware",
    "L0",
    "LSQActivation",
)


def _run(case, strategy, prepare):
    """20 steps."""
    from contracts.building import STEPS, trial

    with strategy.scope():
        t = trial(case)
        prepare(t.model)
    return t.run(passes=20 // STEPS)


def _mirrored():
    return tf.distribute.MirroredStrategy(
        ["CPU:0", "CPU:1"],
        cross_device_ops=tf.distribute.HierarchicalCopyAllReduce(),
    )


def _replicas(case):
    """Keras' MirroredStrategy on 2 devices, and ours on 4, against one device.

    Those `ON_FOUR` run on 4 as well; all do so in the slow tests.
    """
    with equality.precision_for(case.name, "replicas"):
        _equal_on_replicas(case)


def _equal_on_replicas(case):
    import keras_dlopt as dlopt

    alone = _run(case, dlopt.distribute.strategy("one_device"), lambda model: None)
    mirrored = _mirrored()
    for count, strategy, prepare in (
        (2, mirrored, lambda model: None),
        (4, dlopt.distribute.strategy("cpu:4"), dlopt.distribute.data_parallel),
    ):
        if count == 4 and case.name not in ON_FOUR:
            continue
        both = _run(case, strategy, prepare)
        far = equality.difference(alone, both)
        bound = equality.TOLERANCE
        if case.name not in equality.WIDE["replicas"]:
            bound = equality.AMPLIFIES.get((case.name, count), bound)
        assert case.random or far <= bound, f"{count} replicas differ by {far:.2g}"


def _moving(case):
    from contracts import moving

    if case.kind == "optimizer":
        moving.check(case, _mirrored())


def _jax(case):
    from contracts.building import trial

    t = trial(case, jit=True)
    history = t.fit(epochs=2)
    assert np.all(np.isfinite(history.history["loss"]))
    for value in t.weights():
        assert np.all(np.isfinite(value))


def main():
    check = {"replicas": _replicas, "moving": _moving, "jax": _jax}[CONTRACT]
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
