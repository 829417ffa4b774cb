"""Plans, data, workers and checkpoints: what refused trainings are told to do."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import Input, layers

import keras_dlopt as dlopt
from keras_dlopt.distribute import (
    Facts,
    build,
    choose,
    fit,
    functions,
    plan,
    predict,
    predict_litert,
    prepare,
    run,
    uneven_shares,
    workers,
)
from keras_dlopt.distribute.checkpoints import Checkpoints, Position
from keras_dlopt.distribute.facts import WorkerCluster, read_cluster
from keras_dlopt.model_parallel import (
    FunctionalStep,
    Layout,
    Pipeline,
    SplitTrainer,
    automatic_layout,
)
from keras_dlopt.select import at, named, rank

advice = pytest.mark.advice
SCRIPT = pathlib.Path(__file__).with_name("on_devices.py")
X = np.random.default_rng(0).normal(size=(10, 3)).astype("float32")
Y = np.ones((10, 2), "float32")


# -- plans and facts -------------------------------------------------------------------

TWO_WORKERS = Facts(cluster=WorkerCluster(("a:1", "b:1"), 0))


@advice(
    "distribute/plans.py", "Use 'cpu:2' to try data parallelism on the CPU, or 'auto'"
)
@advice(
    "distribute/plans.py", "Start the script with keras_dlopt.distribute.run(script,"
)
@advice(
    "distribute/plans.py", "Check TPU_NAME, and that no other process holds the TPU"
)
@advice(
    "distribute/plans.py", "Use 'multi_worker', which trains by all-reduce; keras_dl"
)
@advice(
    "distribute/plans.py", "Use {} or {}, or give the batch of one replica with per_"
)
@advice("distribute/plans.py", "Choose one of {} (N: a number).")
def test_plans(told):
    with told():
        choose(Facts(), "mirrored")
    assert choose(Facts(), "cpu:2").replicas == 2
    assert choose(Facts(), "auto").kind == "one_device"
    for kind in ("multi_worker", "ParameterServerStrategy"):
        with told():
            choose(Facts(), kind)
    assert choose(TWO_WORKERS, "multi_worker").replicas == 2
    with told():
        choose(Facts(tpu_problem="it is not there"), "tpu")
    assert choose(Facts(tpu_cores=8), "tpu").replicas == 8
    with told():
        choose(Facts(), "cpu:2", batch_size=5)
    for batch in (4, 6):
        assert choose(Facts(), "cpu:2", batch_size=batch).batch_size == batch
    assert choose(Facts(), "cpu:2", batch_size=5, per_replica=True).batch_size == 10
    with told():
        choose(Facts(), "cpus")
    for kind in ("auto", "one_device", "cpu:3"):
        assert choose(Facts(), kind)


@advice("distribute/plans.py", "Use 'multi_worker' to train together.")
def test_processes_that_train_alone(told):
    alone = choose(TWO_WORKERS, "one_device")
    with told():  # it is a reason of the plan, not an error
        raise dlopt.errors.ConfigError(" ".join(alone.reasons))
    assert "each trains alone" not in str(choose(TWO_WORKERS, "multi_worker").reasons)


def cluster(found, task=("worker", 0)):
    config = {"cluster": found, "task": {"type": task[0], "index": task[1]}}
    return read_cluster({"TF_CONFIG": json.dumps(config)})


@advice(
    "distribute/facts.py", "Unset it to train in one process, or let keras_dlopt.dis"
)
@advice(
    "distribute/facts.py", "Name 'worker' processes only; they train by all-reduce."
)
@advice("distribute/facts.py", "Name 'worker' processes, and one 'chief' if you like.")
@advice("distribute/facts.py", "Give each process a host:port of its own.")
def test_clusters(told):
    with told():
        read_cluster({"TF_CONFIG": "{"})
    assert read_cluster({}) is None
    with told():
        cluster({"worker": ["a:1", "b:1"], "ps": ["c:1"]})
    with told():
        cluster({"workers": ["a:1", "b:1"]})
    with told():
        cluster({"worker": ["a:1", "a:1"]})
    assert cluster({"worker": ["a:1", "b:1"]}).workers == ("a:1", "b:1")
    chief = cluster({"chief": ["c:1"], "worker": ["a:1", "b:1"]}, ("chief", 0))
    assert chief.workers == ("c:1", "a:1", "b:1")


@advice(
    "distribute/uneven.py", "Leave out devices that do not work, or use a larger bat"
)
def test_devices_of_no_speed(told):
    for batch, speeds in ((8, [1.0, 0.0]), (1, [1.0, 1.0])):
        with told():
            uneven_shares(batch, speeds)
    assert uneven_shares(8, [1.0]) == [8]
    assert uneven_shares(2, [1.0, 1.0]) == [1, 1]


# -- data ------------------------------------------------------------------------------


def counted(dataset, made=None, **options):
    made = choose(Facts(), batch_size=4) if made is None else made
    return [len(batch) for batch in prepare(dataset, made, **options)]


@advice(
    "distribute/pipeline.py", "Make one of arrays with tf.data.Dataset.from_tensor_"
)
@advice("distribute/pipeline.py", "Check what it is made of.")
@advice("distribute/pipeline.py", "Make it with batch_size=..., the number of examples")
@advice(
    "distribute/pipeline.py", "Pass the examples unbatched, or make the plan with t"
)
@advice(
    "distribute/pipeline.py", "Make them with batch({}, drop_remainder=True), or pa"
)
@advice(
    "distribute/pipeline.py", "Make the plan with drop_remainder=True, or leave exa"
)
@advice("distribute/pipeline.py", "Choose a smaller batch_size.")
@advice(
    "distribute/pipeline.py", "Pass batches=..., the number of batches of the plan'"
)
def test_data_sets(told):
    data = tf.data.Dataset.range(8)
    with told():
        counted(np.arange(8))
    assert counted(tf.data.Dataset.from_tensor_slices(np.arange(8))) == [4, 4]
    with told():
        counted(data.take(0))
    with told():
        counted(data, choose(Facts()))
    with told():
        counted(data.batch(2), batched=True)
    assert counted(data) == [4, 4]
    assert (
        counted(data.batch(2), choose(Facts(), batch_size=2), batched=True) == [2] * 4
    )
    whole = choose(Facts(), batch_size=4, drop_remainder=True)
    with told():
        counted(data.batch(4), whole, batched=True)
    assert counted(data.batch(4, drop_remainder=True), whole, batched=True) == [4, 4]
    assert counted(data, whole) == [4, 4]
    two = {"kind": "cpu:2", "batch_size": 4}
    with told():
        counted(data.take(5), choose(Facts(), **two))
    assert counted(data.take(5), choose(Facts(), **two, drop_remainder=True)) == [4]
    assert counted(data.take(4), choose(Facts(), **two)) == [4]
    with told():
        counted(data, choose(Facts(), batch_size=16, drop_remainder=True))
    assert counted(data, whole) == [4, 4]
    unknown = data.filter(lambda n: n < 8)
    with told():
        counted(unknown)
    assert counted(unknown, batches=2) == [4, 4]
    endless = prepare(unknown.repeat(), choose(Facts(), batch_size=4))
    assert len(next(iter(endless))) == 4


# -- one process -----------------------------------------------------------------------


@advice("distribute/build.py", "Start another process.")
@advice(
    "distribute/build.py", "Set KERAS_BACKEND=tensorflow, or use keras.distribution."
)
@advice(
    "distribute/inference.py", "Give every process its part of the data and no strat"
)
def test_strategies_of_one_process(told, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(build, "_BUILT", {("tpu", (), 1, ""): object()})
        with told():
            build.strategy("one_device")
    assert build.strategy("one_device").num_replicas_in_sync == 1
    with monkeypatch.context() as patched, told():
        patched.setattr(keras.backend, "backend", lambda: "jax")
        build.require_tensorflow("This test")
    build.require_tensorflow("This test")
    assert keras.distribution.list_devices()
    model = net()

    class Several(tf.distribute.MultiWorkerMirroredStrategy):
        def __init__(self):
            pass

        num_replicas_in_sync = 2

    with told():
        predict(model, X, Several())
    parts = np.concatenate([predict(model, part) for part in (X[:4], X[4:])])
    np.testing.assert_allclose(parts, model(X), atol=1e-6)


@advice("distribute/functions.py", "Give every worker as many, with dataset.take(...).")
def test_workers_with_other_numbers_of_batches(told):
    class Other(tf.distribute.OneDeviceStrategy):
        """Another worker had two batches, this one three."""

        def experimental_local_results(self, value):
            if self.other is None:
                return super().experimental_local_results(value)
            pair = [np.mean([3, self.other]), np.mean([9, self.other**2])]
            return (tf.constant(pair, tf.float64),)

    strategy = Other("CPU:0")
    strategy.other = 2
    with told():
        functions._check_counts(strategy, 3.0)
    data = tf.data.Dataset.range(5).batch(1).take(3)
    strategy.other = int(data.cardinality())
    functions._check_counts(strategy, 3.0)


def script(folder, text):
    path = folder / "script.py"
    path.write_text(textwrap.dedent(text))
    return path


@advice("distribute/workers.py", "Pass a Python file.")
@advice("distribute/workers.py", "Allow more seconds if it was only slow.{}")
@advice("distribute/workers.py", "End processes that listen there.")
def test_workers(told, tmp_path, monkeypatch):
    with told():
        run(tmp_path / "nowhere.py", workers=1)
    path = script(tmp_path, "import time\ntime.sleep(3)\nprint('done')\n")
    with told():
        run(path, workers=1, seconds=0.5)
    (found,) = run(path, workers=1, seconds=120)
    assert found.text().strip() == "done"
    free = workers.free_ports(1)
    with monkeypatch.context() as patched:
        patched.setattr(workers, "_PORTS", range(free[0], free[0] + 1000))
        with told():
            workers.free_ports(1001)
    assert len(set(workers.free_ports(3))) == 3


@advice(
    "distribute/build.py", "Check that every address is right and reachable and that"
)
def test_addresses_that_nobody_answers_at(told):
    code = """
        import time
        from keras_dlopt.distribute.build import ended_after
        with ended_after(0.1, "the others"):
            time.sleep(60)
    """
    arguments = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == os.EX_UNAVAILABLE
    with told():  # the process ended and said so
        raise dlopt.errors.RunError(done.stderr)
    with build.ended_after(60, "the others"):
        pass  # they are there


@advice(
    "distribute/interpreters.py", "Allow more seconds, or use more processes, if it"
)
def test_slow_interpreters(told, tmp_path):
    path = tmp_path / "m.tflite"
    model = net()
    dlopt.export.litert(model, path)
    with told():
        predict_litert(path, X, processes=1, seconds=0.01)
    for processes in (1, 2):
        got = predict_litert(path, X, processes=processes, seconds=120)
        np.testing.assert_allclose(got, model(X), atol=1e-5)


# -- resume ----------------------------------------------------------------------------


def net(*, compiled=True):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([Input((3,)), layers.Dense(2)], name="m")
    if compiled:
        model.compile("sgd", "mse")
    return model


class Breaks(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        if batch == 1:
            raise KeyboardInterrupt


EXAMPLES = tf.data.Dataset.from_tensor_slices((X, Y))


def resumed(folder, *, model=None, examples=EXAMPLES, size=5, broken=False, **options):
    """Trains one epoch in a folder, or goes on with it; the number of the epochs."""
    made = plan("one_device", batch_size=size) if size else plan("one_device")
    given = {"epochs": 1, "every": 1, "verbose": 0, **options}
    if broken:
        given["callbacks"] = [Breaks()]
        with pytest.raises(KeyboardInterrupt):
            fit(net(), examples, made, directory=str(folder), **given)
        return None
    model = net() if model is None else model
    history = fit(model, examples, made, directory=str(folder), **given)
    return len(history.history.get("loss", ()))


@advice(
    "distribute/resume.py", "Train with what it had to the end of the epoch, or in a"
)
@advice(
    "distribute/resume.py", "Train in a new directory, or delete that folder to go o"
)
@advice(
    "distribute/checkpoints.py", "Train with the model and optimizer that wrote it,"
)
def test_going_on(told, tmp_path):
    first = tmp_path / "a"
    resumed(first, broken=True)
    other = {"shuffle": 4}
    with told():
        resumed(first, **other)
    assert resumed(tmp_path / "b", **other) == 1
    model = net()
    model.compile("adam", "mse")
    with told():
        resumed(first, model=model)
    assert resumed(tmp_path / "c", model=model) == 1
    assert resumed(first) == 1
    beyond = tmp_path / "d"
    resumed(beyond, broken=True)
    store = Checkpoints(beyond)
    (kept,) = beyond.glob("step-*")
    order = store.newest().data
    store.save(net(), Position(0, 7, 7, data=order))
    (folder,) = set(beyond.glob("step-*")) - {kept}
    with told():
        resumed(beyond)
    assert resumed(tmp_path / "e") == 1
    shutil.rmtree(folder)
    assert resumed(beyond) == 1


@advice(
    "distribute/checkpoints.py", "Make room, or keep fewer, and start the script aga"
)
@advice(
    "distribute/checkpoints.py", "If the files are damaged, delete that folder, or p"
)
def test_disks(told, tmp_path, monkeypatch):
    resumed(tmp_path, broken=True)

    def full(self, content):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched, told():
        patched.setattr(pathlib.Path, "write_bytes", full)
        resumed(tmp_path)
    assert resumed(tmp_path) == 1
    resumed(tmp_path, epochs=2)
    older, newest = sorted(tmp_path.glob("step-*"))
    file = newest / "state.weights.h5"
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)
    copy = shutil.copytree(tmp_path, tmp_path.with_name("copy"))
    with told():
        resumed(tmp_path, epochs=2)
    shutil.rmtree(newest)
    assert resumed(tmp_path, epochs=2) == 1
    with pytest.warns(UserWarning, match="An older checkpoint is taken"):
        assert resumed(copy, epochs=2, damaged="older") == 1
    assert older.name < newest.name


@advice("distribute/resume.py", "Make it with batch_size=....")
@advice(
    "distribute/resume.py", "Give it a keras.Input, or call it once, then compile it"
)
@advice(
    "distribute/resume.py", "Use dataset.apply(tf.data.experimental.assert_cardinali"
)
def test_trainings_that_can_go_on(told, tmp_path):
    with told():
        resumed(tmp_path / "a", size=None)
    unbuilt = keras.Sequential([layers.Dense(2)])
    with told():
        resumed(tmp_path / "a", model=unbuilt)
    unbuilt(X)
    unbuilt.compile("sgd", "mse")
    assert resumed(tmp_path / "a", model=unbuilt) == 1
    assert resumed(tmp_path / "b", model=net()) == 1
    unknown = EXAMPLES.filter(lambda x, y: True)
    with told():
        resumed(tmp_path / "c", examples=unknown)
    known = unknown.apply(tf.data.experimental.assert_cardinality(10))
    assert resumed(tmp_path / "c", examples=known) == 1


# -- weights or layers over devices ----------------------------------------------------


@advice(
    "model_parallel/layout.py", "Start it with keras.Input, call model.build(input_s"
)
@advice(
    "model_parallel/layout.py", "Give one entry an axis; add rank({}) to the selecto"
)
@advice("model_parallel/layout.py", "Choose a multiple, or leave the weight whole.")
@advice("model_parallel/layout.py", "Lower `least`, or use another number of devices.")
def test_layouts(told):
    def wide(units=8):
        return keras.Sequential([Input((3,)), layers.Dense(units, name="w")])

    layout = Layout({"model": 2}, [(named("kernel", "bias"), (None, "model"))])
    with told():
        layout.axes_of(keras.Sequential([layers.Dense(8)]))
    with told():
        layout.axes_of(wide())
    both = named("kernel", "bias") & rank(2)
    good = Layout({"model": 2}, [(both, (None, "model"))])
    built = keras.Sequential([layers.Dense(8)])
    built.build((None, 3))
    on_data = keras.Sequential([layers.Dense(8)])
    on_data(X)
    for model in (wide(), built, on_data):
        assert len(good.axes_of(model)) == 1
    with told():
        good.axes_of(wide(7))
    assert len(good.axes_of(wide(6))) == 1
    rows = Layout({"model": 3}, [(at("w/kernel"), ("model", None))])
    assert len(rows.axes_of(wide(7))) == 1
    with told():
        automatic_layout(wide(7), devices=2)
    for devices, least in ((7, 4), (3, 4)):
        assert automatic_layout(wide(7), devices=devices, least=least).rules


@advice(
    "model_parallel/functional.py", "Start it with keras.Input, call model.build(inp"
)
@advice(
    "model_parallel/functional.py", "Call model.compile(optimizer=..., loss=...) fir"
)
def test_functional_steps(told):
    with told():
        FunctionalStep(keras.Sequential([layers.Dense(2)]))
    with told():
        FunctionalStep(net(compiled=False))
    built = keras.Sequential([layers.Dense(2)])
    built.build((None, 3))
    on_data = keras.Sequential([layers.Dense(2)])
    on_data(X)
    for model in (net(), built, on_data):
        model.compile("sgd", "mse")
        step = FunctionalStep(model)
        loss, _ = step(step.state(), X, Y)
        assert np.isfinite(float(loss))


@advice(
    "model_parallel/pipeline.py", "Save its `model`, an ordinary model with the same"
)
@advice(
    "model_parallel/pipeline.py", "Leave the last examples out, or choose another ba"
)
@advice("model_parallel/pipeline.py", "Start it with keras.Input.")
@advice(
    "model_parallel/pipeline.py", "Write it with the Functional API, or use SplitTra"
)
def test_pipelines(told, tmp_path):
    def piped(model, micro_batches=4):
        made = Pipeline(model, devices=["CPU:0"], micro_batches=micro_batches)
        made.compile("sgd", "mse")
        return made

    with told():
        piped(keras.Sequential([layers.Dense(2)]))

    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(2)

        def call(self, x):
            return self.dense(x)

    subclassed = Subclassed()
    subclassed(X)
    with told():
        piped(subclassed)
    subclassed.compile(keras.optimizers.SGD(0.1), "mse")
    trainer = SplitTrainer(subclassed, Layout({"batch": 1}))
    assert np.isfinite(trainer.train_on_batch(X, Y))
    x = Input((3,))
    assert piped(keras.Model(x, layers.Dense(2)(x))).cuts == []
    model = piped(net())
    with told():
        model.save(tmp_path / "p.keras")
    model.model.save(tmp_path / "m.keras")
    model.save_weights(tmp_path / "p.weights.h5")
    again = keras.models.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(again(X), model(X))
    with told():
        model.train_on_batch(X[:3], Y[:3])
    assert np.isfinite(model.train_on_batch(X[:8], Y[:8]))
    fewer = piped(net(), micro_batches=3)
    assert np.isfinite(fewer.train_on_batch(X[:3], Y[:3]))


# -- several devices -------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.dist
@pytest.mark.timeout(400)
def test_on_devices():
    """`on_devices.py` follows what needs two devices, in a process of its own."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT)],
        cwd=SCRIPT.parents[1],
        capture_output=True,
        text=True,
        timeout=390,
        check=False,
        env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
    )
    lines = [s for s in done.stdout.splitlines() if s.startswith("RESULT ")]
    found = dict(json.loads(line.removeprefix("RESULT ")) for line in lines)
    assert len(found) == 10, done.stderr[-3000:]
    assert {name: text for name, text in found.items() if text} == {}
