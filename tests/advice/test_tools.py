"""Trials, the TPU's compiler, measuring and the command line: advice followed."""

import json
import pathlib
import re
import subprocess
import tomllib
import zipfile

import keras
import numpy as np
import pytest
from keras import Input, layers

import keras_dlopt as dlopt
from keras_dlopt import demo, errors, measure, report, runtime, tpu
from keras_dlopt.cli.tpu_check import _check_folders
from keras_dlopt.measure import npu
from keras_dlopt.model_parallel import FunctionalStep
from keras_dlopt.report import runners
from keras_dlopt.tpu import checking, programs
from keras_dlopt.trials import run_tasks
from keras_dlopt.trials.store import alone

advice = pytest.mark.advice
HERE = pathlib.Path(__file__).parent
X = np.ones((4, 3), "float32")


def net(*inputs, compiled=True):
    model = keras.Sequential([*inputs, layers.Dense(2, name="d")], name="m")
    if compiled:
        model.compile("sgd", "mse")
    return model


# -- trials ----------------------------------------------------------------------------

SQUARE = f"{HERE / 'task_targets.py'}:square"


@advice("trials/executors.py", "Pass its path.")
@advice(
    "trials/executors.py", "Define it at the top of a file, not inside another func"
)
@advice("trials/store.py", "Give another name or store, or what it was made with.")
@advice("trials/store.py", "Wait for its end, or give another store.")
@advice("trials/store.py", "Pass a recipe as recipe.to_dict().")
def test_trials(told, tmp_path):
    store = tmp_path / "s.db"

    def values(target=SQUARE, tasks=({"x": 3},), **options):
        options = {"store": store, "slots": 1, **options}
        return [done.value for done in run_tasks(target, list(tasks), **options)]

    with told():
        values("task_targets.py:square")
    with told():
        values(lambda x: x)
    assert values() == [9]
    with told():
        values(maximize=True)
    assert values(maximize=True, name="another") == [9]
    assert values(maximize=True, store=tmp_path / "other.db") == [9]
    assert values(maximize=False) == [9]
    with alone(store):
        with told():
            values()
        assert values(store=tmp_path / "third.db") == [9]
    assert values() == [9]
    recipe = dlopt.Recipe([(dlopt.named("kernel"), dlopt.Prune(0.5))])
    with told():
        values("builtins:len", [{"obj": recipe}])
    task = {"recipe": recipe.to_dict()}
    assert dlopt.Recipe.from_dict(json.loads(json.dumps(task))["recipe"]) == recipe


# -- tpu -------------------------------------------------------------------------------


@advice("tpu/checking.py", "share it. Received: {}. Try {}.")
@advice(
    "tpu/checking.py", "Start it with keras.Input, call model.build(input_shape), o"
)
@advice(
    "tpu/checking.py", "Check the model on a machine with more memory, or a smaller"
)
def test_checks(told, tmp_path):
    with told():
        checking._topology("v5e:2x4", 1020)
    assert checking._topology("v5e:2x4", 1016).devices == 8
    with told():
        checking._source(net(), tmp_path)
    built = net()
    built.build((None, 3))
    called = net()
    called(X)
    for model in (net(Input((3,))), built, called):
        assert pathlib.Path(checking._source(model, tmp_path)).is_file()

    class Killed:
        code, job = -9, {"batch": 8}

    with told():  # it is a result, not an error
        raise errors.RunError(checking._stopped("train", Killed()).failure.message)
    Killed.code, Killed.tail = 1, "no room"
    assert checking._stopped("train", Killed()).failure.operation == "compiler abort"


@advice(
    "tpu/programs.py", "Build the model with keras.Input or model.build(input_shape"
)
@advice(
    "tpu/programs.py", "Start it with keras.Input or call model.build(input_shape)."
)
@advice("tpu/programs.py", "Build the model under the policy and save it again.")
@advice("tpu/programs.py", "Give module:function with the module importable from here.")
@advice("tpu/programs.py", "Write it with model.save(...).")
def test_programs(told, tmp_path, monkeypatch):
    class Two(keras.Model):
        def call(self, x):
            return x["a"] + x["b"]

    unknown = Two()
    unknown({"a": X, "b": X})
    with told():
        programs.input_specs(unknown, 4)
    built = net()
    built.build((None, 3))
    for model in (net(Input((3,))), built):
        assert programs.input_specs(model, 4).shape == (4, 3)
    with monkeypatch.context() as patched:
        patched.setattr(programs, "_builder", lambda _: net)
        with told():
            programs.load_model("here:net")
        patched.setattr(programs, "_builder", lambda _: lambda: net(Input((3,))))
        assert programs.load_model("here:net").built
    path = str(tmp_path / "m.keras")
    net(Input((3,))).save(path)
    with told():
        programs.load_model(path, policy="mixed_bfloat16")
    keras.config.set_dtype_policy("mixed_bfloat16")
    net(Input((3,))).save(path)
    keras.config.set_dtype_policy("float32")
    assert programs.load_model(path).layers[-1].compute_dtype == "bfloat16"
    with told():
        programs.load_model("nowhere:build")
    (tmp_path / "nowhere.py").write_text(
        "import keras\n\n\ndef build():\n"
        "    return keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert programs.load_model("nowhere:build").built
    pathlib.Path(path).write_text("hello")
    with told():
        programs.load_model(path)
    net(Input((3,))).save(path)
    assert programs.load_model(path).built


@advice("tpu/saving.py", "Write it with tpu.save_step().")
@advice("tpu/saving.py", "Save the step again with the installed keras_dlopt.")
def test_saved_steps(told, tmp_path):
    pytest.importorskip("jax")
    path = tmp_path / "step"
    path.write_text("hello")
    with told():
        tpu.load_step(path)
    with zipfile.ZipFile(path, "w") as file:
        for name in ("step.bin", "state.npz"):
            file.writestr(name, b"")
        file.writestr("step.json", json.dumps({"version": 9}))
    with told():
        tpu.load_step(path)
    tpu.save_step(net(Input((3,))), path, batch=4)
    assert tpu.load_step(path).batch == 4


# -- measure, command line, other backends ---------------------------------------------


@advice("measure/profile.py", "Use jax.profiler there.")
@advice("demo.py", "Set the environment variable KERAS_BACKEND=tensorflow.")
@advice("model_parallel/functional.py", "Set KERAS_BACKEND before Keras is imported.")
@advice("report/runners.py", "Measure files there: 'model.t")
def test_other_backends(told, tmp_path, monkeypatch):
    """Followed in this process, which was started with KERAS_BACKEND=tensorflow."""
    settings = demo.Settings(out=tmp_path / "out")
    model = net(Input((3,)))
    with monkeypatch.context() as patched:
        patched.setattr(keras.backend, "backend", lambda: "torch")
        patched.setattr(runners, "on_tensorflow", lambda: False)
        for refused in (
            lambda: dlopt.measure.profile_fit(model, X, X),
            lambda: demo.check(settings),
            lambda: FunctionalStep(model),
            lambda: runners.of_model(model, "graph", X, 1),
        ):
            with told():
                refused()
    demo.check(settings)
    assert FunctionalStep(model).state().trainable
    assert callable(runners.of_model(model, "graph", X, 1))
    assert runtime.on_tensorflow()


@advice("report/measuring.py", "Give a model or a file.")
@advice("measure/costs.py", "Pass example=, a bat")
def test_measuring(told):
    with told():
        report.measure([])
    open_size = keras.Sequential([Input((None, 3)), layers.Dense(2, name="d")])
    with told():
        measure.costs(open_size)
    assert measure.costs(open_size, example=np.ones((1, 5, 3), "float32")).by_layer


@advice(
    "measure/npu.py", "Try a smaller model, or compile it by hand to see where it s"
)
def test_a_compiler_that_does_not_end(told, monkeypatch, tmp_path):
    def slow(*arguments, timeout, **options):
        raise subprocess.TimeoutExpired("vela", timeout)

    def quick(*arguments, **options):
        return subprocess.CompletedProcess("vela", 0, "done", "")

    arguments = (tmp_path / "m.tflite", "ethos-u55-128", "system", "memory", tmp_path)
    monkeypatch.setattr(npu.subprocess, "run", slow)
    with told():
        npu._compile(*arguments)
    monkeypatch.setattr(npu.subprocess, "run", quick)
    assert npu._compile(*arguments) == "done"


@advice("cli/tpu_check.py", "Make it, or give another file.")
def test_folders_of_results(told, tmp_path):
    with told():
        _check_folders(tmp_path / "new" / "report.json")
    (tmp_path / "new").mkdir()
    _check_folders(tmp_path / "new" / "report.json", tmp_path / "other.json")


@advice("errors.py", "Install it with: pip install 'keras-dlopt[{}]'")
def test_packages_that_are_missing(told, monkeypatch):
    with told():
        errors.require("no-such-package", extra="litert", purpose="This test")
    # What the extra names is what is then looked for, and the extra exists.
    project = tomllib.loads((HERE.parents[1] / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"]
    sources = pathlib.Path(errors.__file__).parent.rglob("*.py")
    texts = [path.read_text() for path in sources]
    needed = {name for text in texts for name in re.findall(r'extra="(\w+)"', text)}
    assert needed
    assert needed <= set(extras)
    errors.require("numpy", extra="litert", purpose="This test")
