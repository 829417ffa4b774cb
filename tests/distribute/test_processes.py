"""Local workers: one fails, one hangs, two equal one."""

import json
import os
import pathlib
import time

import numpy as np
import pytest

from keras_dlopt.distribute import RunError, run
from keras_dlopt.errors import ConfigError

TRAINER = pathlib.Path(__file__).with_name("trainer.py")


def script(tmp_path, text):
    path = tmp_path / "script.py"
    path.write_text(text)
    return path


def test_each_worker_gets_its_own_config(tmp_path):
    path = script(
        tmp_path, "import os, sys; print(os.environ['TF_CONFIG'], sys.argv[1])"
    )
    done = run(path, "here", workers=3, seconds=60, logs=tmp_path / "logs")
    configs = []
    for worker in done:
        text, argument = worker.text().strip().rsplit(" ", 1)
        assert argument == "here"
        configs.append(json.loads(text))
    assert [c["task"]["index"] for c in configs] == [0, 1, 2]
    assert len(set(configs[0]["cluster"]["worker"])) == 3
    assert all(c["cluster"] == configs[0]["cluster"] for c in configs)


def test_one_that_fails_ends_the_others_that_wait_for_it(tmp_path):
    text = (
        "import json, os, sys, time\n"
        "if json.loads(os.environ['TF_CONFIG'])['task']['index'] == 1:\n"
        "    sys.exit('no such file')\n"
        "time.sleep(600)\n"
    )
    began = time.monotonic()
    with pytest.raises(
        RunError, match="Worker 1 of 2 failed with exit code 1.*"
    ) as info:
        run(script(tmp_path, text), workers=2, seconds=300)
    assert "no such file" in str(info.value)
    assert time.monotonic() - began < 60


def test_one_that_hangs_is_ended_with_all_it_started(tmp_path):
    text = (
        "import os, subprocess, sys\n"
        "wait = [sys.executable, '-c', 'import time; time.sleep(99)']\n"
        "child = subprocess.Popen(wait)\n"
        f"open({str(tmp_path / 'child')!r}, 'w').write(str(child.pid))\n"
        "child.wait()\n"
    )
    with pytest.raises(RunError, match="did not end within 3 s and was ended"):
        run(script(tmp_path, text), workers=1, seconds=3)
    child = int((tmp_path / "child").read_text())
    time.sleep(0.5)
    state = pathlib.Path(f"/proc/{child}/stat")
    assert not state.exists() or state.read_text().split()[2] == "Z"


def test_restarts_run_all_again(tmp_path):
    mark = tmp_path / "mark"
    text = (
        "import os, pathlib, sys\n"
        f"mark = pathlib.Path({str(mark)!r})\n"
        "if not mark.exists():\n"
        "    mark.touch()\n"
        "    sys.exit(3)\n"
    )
    done = run(script(tmp_path, text), workers=1, seconds=60, restarts=1)
    assert [w.returncode for w in done] == [0]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"workers": 0}, "workers must be 1 or more"),
        ({"restarts": -1}, "restarts 0 or more"),
        ({}, "There is no script 'nowhere.py'"),
    ],
)
def test_arguments_are_checked(arguments, text):
    with pytest.raises(ConfigError, match=text):
        run("nowhere.py", **arguments)


@pytest.mark.dist
@pytest.mark.timeout(400)
def test_two_workers_equal_one_process(tmp_path, start):
    environment = {"PYTHONPATH": str(TRAINER.parents[1])}
    for number in range(2):
        os.makedirs(tmp_path / str(number))
    run(
        TRAINER,
        "multi_worker",
        str(tmp_path),
        "--plain",
        "--out",
        str(tmp_path / "two.npz"),
        workers=2,
        seconds=300,
        environment=environment,
        logs=tmp_path,
    )
    one = tmp_path / "one.npz"
    done = start(TRAINER, "one_device", tmp_path, "--plain", "--out", one, seconds=200)
    assert done.returncode == 0, done.stderr[-3000:]
    with np.load(one) as left, np.load(tmp_path / "two.npz") as right:
        for name in left.files:
            np.testing.assert_allclose(left[name], right[name], atol=1e-6, rtol=1e-6)


EXCHANGES = """
import json, os
import keras, numpy as np, tensorflow as tf
from keras_dlopt import distribute
from keras_dlopt.errors import DataError

plan = distribute.plan("multi_worker", batch_size=4, drop_remainder=True)
strategy = distribute.strategy(plan)
with strategy.scope():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model = distribute.data_parallel(model)
    model.compile("sgd", "mse")

def data(batches):
    zeros = np.zeros((4 * batches, 3), "float32")
    examples = tf.data.Dataset.from_tensor_slices((zeros, zeros[:, :2]))
    return distribute.prepare(examples, plan)

model.fit(data(3), epochs=2, verbose=0)
step = model.train_function._once._list_all_concrete_functions()[0]
graph = step.graph.as_graph_def()
nodes = [*graph.node, *(n for f in graph.library.function for n in f.node_def)]
print("EXCHANGES", sum("Collective" in node.op for node in nodes))
print("STEPS", int(model.optimizer.iterations.value.numpy()))
try:
    model.fit(data(3 + json.loads(os.environ["TF_CONFIG"])["task"]["index"]))
except DataError as error:
    print("REFUSED", error)
"""


@pytest.mark.dist
@pytest.mark.timeout(400)
def test_workers_exchange_gradients_and_logs_and_nothing_else(tmp_path):
    done = run(script(tmp_path, EXCHANGES), workers=2, seconds=300, logs=tmp_path)
    for worker in done:
        text = worker.text()
        assert "EXCHANGES 2\n" in text
        assert "STEPS 6\n" in text
        assert "REFUSED The workers have different numbers of batches: " in text
        assert "3.5 on average" in text
