"""Local workers: one fails, one hangs, two equal one."""

import json
import os
import pathlib
import signal
import socket
import threading
import time

import numpy as np
import pytest

from keras_dlopt.distribute import RunError, run, workers
from keras_dlopt.distribute.workers import free_ports
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


def with_child(tmp_path, then):
    """A script that starts a process that sleeps, notes its number, and goes on."""
    return script(
        tmp_path,
        "import os, subprocess\n"
        "child = subprocess.Popen(['sleep', '999'])\n"
        f"open({str(tmp_path / 'new')!r}, 'w').write(str(child.pid))\n"
        f"os.replace({str(tmp_path / 'new')!r}, {str(tmp_path / 'child')!r})\n" + then,
    )


def is_gone(process, seconds=30):
    """Whether a process has ended, or does so soon."""
    state = pathlib.Path(f"/proc/{process}/stat")
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not state.exists() or state.read_text().split()[2] == "Z":
            return True
        time.sleep(0.05)
    return False


def test_one_that_hangs_is_ended_with_all_it_started(tmp_path):
    path = with_child(tmp_path, "child.wait()\n")
    for seconds in (2, 60):  # the longer for a busy machine
        with pytest.raises(
            RunError, match=f"timed out after {seconds} s and was ended"
        ):
            run(path, workers=1, seconds=seconds)
        if (tmp_path / "child").exists():
            break
    assert is_gone(int((tmp_path / "child").read_text()))


# A stand-in: two processes of TensorFlow that meet take 10 s to start.
PEERS = """
import json, os, pathlib, sys, time
index = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
folder = pathlib.Path(sys.argv[1]) / "tensorflow"
folder.mkdir(exist_ok=True)
waits = "import time\\ndef meet(): time.sleep(600)"
(folder / f"all_reduce_{index}.py").write_text(waits)
sys.path.insert(0, str(folder))

def reads_data():
    time.sleep(600)

print("worker", index, "began", flush=True)
reads_data() if index == int(sys.argv[2]) else __import__(f"all_reduce_{index}").meet()
"""


@pytest.mark.parametrize("hangs", [0, 2, 9])
def test_the_one_that_hangs_is_named_not_those_that_wait_for_it(tmp_path, hangs):
    path = script(tmp_path, PEERS)
    for seconds in (3, 60):  # the longer for a busy machine
        with pytest.raises(RunError, match=f"timed out after {seconds} s") as info:
            run(path, tmp_path, hangs, workers=3, seconds=seconds, logs=tmp_path)
        if all((tmp_path / f"worker-{i}.log").stat().st_size > 16 for i in range(3)):
            break
    text = str(info.value)
    if hangs == 9:  # all wait
        assert text.startswith("Worker 0 and 1 and 2 of 3 timed out")
        return
    assert text.startswith(f"Worker {hangs} of 3 timed out")
    assert f"Worker {hangs} is at: " in text
    assert "(reads_data), called from " in text
    assert f"Worker 1 waits at: {tmp_path}/tensorflow/all_reduce_1.py:2 (meet)" in text
    assert f"worker {hangs} began" in text


def test_one_that_ends_leaves_nothing_running(tmp_path):
    run(with_child(tmp_path, ""), workers=1, seconds=300)
    assert is_gone(int((tmp_path / "child").read_text()))


def test_workers_end_with_the_process_that_started_them(tmp_path):
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        pytest.skip("the test runner handles SIGTERM itself")

    def terminate():
        end = time.monotonic() + 200
        while not (tmp_path / "child").exists() and time.monotonic() < end:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=terminate, daemon=True).start()
    with pytest.raises(SystemExit) as ended:
        run(with_child(tmp_path, "child.wait()\n"), workers=1, seconds=300)
    assert ended.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert is_gone(int((tmp_path / "child").read_text()))


def test_a_script_has_no_input_to_wait_for(tmp_path):
    with pytest.raises(RunError, match="EOFError"):
        run(script(tmp_path, "input()"), 1, workers=1, seconds=300)


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
        ({"workers": 0}, "workers must be a whole number, 1 or greater"),
        (
            {"workers": "2"},
            "workers must be .* 1 or greater. Received: '2'",
        ),
        ({"restarts": -1}, "restarts must be a whole number, 0 or greater"),
        ({}, "There is no script 'nowhere.py'"),
    ],
)
def test_arguments_are_checked(arguments, text):
    with pytest.raises(ConfigError, match=text):
        run("nowhere.py", **arguments)


def test_ports_are_free_and_not_those_of_outgoing_connections(monkeypatch):
    found = free_ports(5)
    assert len(set(found)) == 5
    assert all(10_000 <= port < 32_000 for port in found)
    with socket.socket() as one:
        one.bind(("127.0.0.1", found[0]))
        one.listen()
        monkeypatch.setattr(workers, "_PORTS", range(found[0], found[0] + 1000))
        assert found[0] not in free_ports(5)
    monkeypatch.setattr(workers, "_PORTS", range(1000, 2000))
    with pytest.raises(RunError, match="No 2000 free ports between 1000 and 1999"):
        free_ports(2000)


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
        # The gradients, and the sum and the count behind the mean of the loss.
        assert "EXCHANGES 3\n" in text
        assert "STEPS 6\n" in text
        assert "REFUSED The workers have different numbers of batches: " in text
        assert "3.5 on average" in text
