"""What online learning advises, followed."""

import json
import types

import keras
import numpy as np
import pytest

from keras_dlopt import Prune, Recipe, finalize, named, online, transform
from keras_dlopt.online import state_file, steps
from keras_dlopt.online.steps import Steps

advice = pytest.mark.advice
L = keras.layers
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
X = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")
Y = np.arange(8) % 3


def net(rate=0.1, width=3, **options):
    model = keras.Sequential([keras.Input((4,)), L.Dense(width)])
    model.compile(keras.optimizers.SGD(rate), LOSS, run_eagerly=True, **options)
    return model


def double():
    inputs = keras.Input((4,))
    outputs = [L.Dense(3)(inputs), L.Dense(2)(inputs)]
    model = keras.Model(inputs, outputs)
    model.compile("sgd", ["mse", "mse"], run_eagerly=True)
    return model


def learner(model=None, **options):
    return online.OnlineLearner(model or net(), **{"batch_size": 8, **options})


@advice("online/engine.py", "Compile with a number as the learning rate, or take")
def test_a_rate_that_follows_a_schedule(told):
    falling = keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.9)
    reacts = {"drift": online.DDM(), "on_drift": online.OnDrift(2.0)}
    with told():
        learner(net(falling), **reacts)
    learner(net(0.1), **reacts).learn(X, Y)
    learner(net(falling), **reacts | {"on_drift": online.OnDrift()}).learn(X, Y)


@advice("online/engine.py", "Leave them out; replay works with any.")
@advice("online/tasks.py", "Pass error=, a function of labels and outputs that gives")
@advice("online/tasks.py", "Pass task='values', with error= for several outputs.")
def test_several_outputs(told):
    y = [np.zeros((8, 3), "float32"), np.zeros((8, 2), "float32")]
    given = {"task": "values", "error": lambda y, out: np.abs(out[0]).mean(1)}
    with told():
        learner(double()).learn(X, y)
    with told():
        learner(double(), task="values").learn(X, y)
    with told():
        learner(double(), terms=[online.DarkExperience()], **given).learn(X, y)
    assert len(learner(double(), **given).learn(X, y).errors) == 8


@advice("online/engine.py", "Call learn() first, with a memory.")
@advice("online/engine.py", "Pass x and y of what the model knows.")
@advice("online/saving.py", "Call learn() first.")
def test_before_the_first_sample(told, tmp_path):
    made = learner(terms=[online.EWC()])
    for call in (made.rehearse, made.anchor, lambda: made.save(tmp_path / "a.npz")):
        with told():
            call()
    made.anchor(X, Y)
    made.learn(X, Y)
    made.rehearse()
    made.save(tmp_path / "a.npz")


@advice("online/engine.py", "must divide by the {} replicas. Received: {}. Take {}.")
@advice("online/steps.py", "Leave it out, or learn on one device.")
def test_replicas(told, monkeypatch):
    two = types.SimpleNamespace(num_replicas_in_sync=2)
    jitted = net()
    jitted.jit_compile = True
    with monkeypatch.context() as m:
        m.setattr(keras.Model, "distribute_strategy", two)
        with told():
            learner(batch_size=7)
        learner(batch_size=8)
        with told():
            Steps(jitted, None, None, lambda: None)
        Steps(net(), None, None, lambda: None)
    Steps(jitted, None, None, lambda: None)


@advice("online/keeping.py", "Pass keep=None, or a model that was pruned or clustered")
def test_nothing_to_keep(told):
    with told():
        learner(keep="zeros")
    learner(keep=None).learn(X, Y)
    pruned = finalize(transform(net(), Recipe([(named("kernel"), Prune(0.5))])))
    pruned.compile("sgd", LOSS, run_eagerly=True)
    learner(pruned, keep="zeros").learn(X, Y)


@advice("online/learner.py", "Leave it out, or take Reservoir, DarkExperience, ADWIN")
@advice("online/learner.py", "Give a memory, such as Reservoir(500).")
def test_what_goes_with_classes_and_with_a_memory(told):
    with told():
        learner(task="values", memory=online.ClassBalanced(8))
    learner(task="values", memory=online.Reservoir(8), drift=online.ADWIN())
    with told():
        learner(memory=None, terms=[online.DarkExperience()])
    learner(memory=online.Reservoir(500), terms=[online.DarkExperience()])


@advice("online/learner.py", "Give both, or call save(path) yourself.")
def test_half_of_a_snapshot(told, tmp_path):
    path = tmp_path / "a.npz"
    with told():
        learner(path=path)
    learner(path=path, every=8).learn(X, Y)
    made = learner()
    made.learn(X, Y)
    made.save(path)


@advice("online/learner.py", "Check where it reads from; a generator gives its samples")
def test_an_empty_stream(told):
    once = ((X[i : i + 4], Y[i : i + 4]) for i in (0, 4))
    made = learner()
    assert made.follow(once) == 8
    with told():
        made.follow(once)
    assert learner().follow([(X, Y)]) == 8


@advice("online/samples.py", "Pass arrays of the shape (samples, ...) with at least")
@advice("online/samples.py", "Cast or reshape them to that.")
@advice("online/samples.py", "Reshape them, with the samples along the first axis.")
@advice("online/samples.py", "Give each sample its label.")
@advice("online/samples.py", "Remove those rows, or fill the gaps.")
@advice("online/samples.py", "Convert texts and objects to numbers first.")
def test_samples_that_do_not_fit(told):
    made = learner()
    holes = np.where(X[3, 2] == X, np.nan, X)
    for x, y in (
        (X[:0], Y[:0]),
        (X, Y[:3]),
        (X.T, Y[:4]),
        (holes, Y),
        (X.astype("U"), Y),
    ):
        with told():
            made.learn(x, y)
    made.learn(X, Y)
    made.learn(X[[0, 1, 2, 4]], Y[[0, 1, 2, 4]])
    made.learn(np.nan_to_num(holes), Y)
    with told():
        made.learn(X.astype("int32"), Y)
    made.learn(X.astype("int32").astype("float32"), Y)


@advice("online/samples.py", "Give all inputs the same number.")
def test_inputs_of_two_lengths(told):
    inputs = {"a": keras.Input((4,), name="a"), "b": keras.Input((4,), name="b")}
    model = keras.Model(inputs, L.Dense(3)(inputs["a"] + inputs["b"]))
    model.compile("sgd", LOSS, run_eagerly=True)
    made = learner(model)
    with told():
        made.learn({"a": X, "b": X[:5]}, Y)
    made.learn({"a": X, "b": X}, Y)


@advice("online/saving.py", "Make this one with the same, or start anew.")
@advice("online/saving.py", "Build and compile the same model first.")
@advice("online/saving.py", "Restore an older copy, or start anew.")
@advice("online/state_file.py", "Give the path that save() was given.")
@advice("online/state_file.py", "Update keras-dlopt.")
@advice("online/state_file.py", "Restore an older copy, or start anew.")
def test_files_that_do_not_fit(told, tmp_path, monkeypatch):
    path, older = tmp_path / "a.npz", tmp_path / "older.npz"
    made = learner()
    made.learn(X, Y)
    made.save(path)
    made.save(older)
    with told():
        learner(batch_size=4).restore(path)
    with told():
        learner(net(width=4)).restore(path)
    np.savez(tmp_path / "other.npz", x=X)
    with told():
        learner().restore(tmp_path / "other.npz")
    with monkeypatch.context() as m:
        m.setattr(state_file, "_VERSION", 2)
        made.save(path)
    with told():
        learner().restore(path)
    for change in (
        lambda told: told["header"].pop("seen"),
        lambda told: told["arrays"].update(no_such=["float32", [1]]),
    ):
        _changed(older, path, change)
        with told():
            learner().restore(path)
    assert learner().restore(older).seen == 8


def _changed(old, new, change):
    arrays = dict(np.load(old))
    header = json.loads(arrays["header"].tobytes())
    change(header)
    arrays["header"] = np.frombuffer(json.dumps(header).encode(), "uint8")
    np.savez(new, **arrays)


@advice("online/steps.py", "Call compile() with the optimizer and the loss with which")
@advice("online/steps.py", "Compile without it; Replay(steps=...) says how many steps")
@advice("online/steps.py", "Set KERAS_BACKEND=tensorflow.")
def test_models_that_cannot_learn_yet(told, monkeypatch):
    model = keras.Sequential([keras.Input((4,)), L.Dense(3)])
    with told():
        learner(model)
    model.compile("sgd", LOSS, steps_per_execution=2)
    with told():
        learner(model)
    model.compile("sgd", LOSS, run_eagerly=True)
    with monkeypatch.context() as m:
        m.setattr(steps, "on_tensorflow", lambda: False)
        with told():
            learner(model)
    # Followed in this process, which was started with KERAS_BACKEND=tensorflow.
    made = learner(model, replay=online.Replay(steps=2))
    made.learn(X, Y)
    assert int(model.optimizer.iterations) == 2


@advice("online/tasks.py", "Restore the last snapshot and lower the learning rate.")
def test_a_model_that_diverged(told, tmp_path):
    path, y = tmp_path / "a.npz", X[:, :3] + 5
    for rate in (1e12, 1e-2):
        model = net(rate)
        model.compile(keras.optimizers.SGD(rate), "mse", run_eagerly=True)
        made = learner(model, task="values")
        if path.exists():
            made.restore(path)
            model.optimizer.learning_rate = made._engine.base = rate
            made.learn(X, y)
            continue
        made.learn(X, y)
        made.save(path)
        with told():
            for _ in range(4):
                made.learn(X, y)


@advice("online/tasks.py", "Pass task='values' for other labels.")
@advice("online/tasks.py", "Give the model a wider head from the start, or number")
def test_labels_that_the_head_cannot_hold(told):
    made = learner()
    with told():
        made.learn(X, Y + 0.5)
    with told():
        made.learn(X, Y + 7)
    made.learn(X, Y)
    learner(net(width=10)).learn(X, Y + 7)
    model = net(width=1)
    model.compile("sgd", "mse", run_eagerly=True)
    learner(model, task="values").learn(X, Y + 0.5)


class Own(keras.Model):
    """A model with a train step that computes its loss one way or the other."""

    def __init__(self, by_method):
        super().__init__()
        self.head, self.by_method = L.Dense(3), by_method

    def call(self, x):
        return self.head(x)

    def train_step(self, data):
        import tensorflow as tf

        x, y = data
        with tf.GradientTape() as tape:
            out = self(x)
            loss = self.compute_loss(x, y, out) if self.by_method else LOSS(y, out)
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply(gradients, self.trainable_variables)
        return {"loss": loss}


@advice("online/terms.py", "Call self.compute_loss(x, y, y_pred) there, or leave out")
def test_a_train_step_past_the_loss(told):
    for by_method, terms in ((False, 1), (True, 1), (False, 0)):
        model = Own(by_method)
        model(X)
        model.compile("sgd", LOSS, run_eagerly=True)
        made = learner(model, terms=[online.DarkExperience()][:terms])
        if terms and not by_method:
            with told():
                made.learn(X, Y)
        else:
            made.learn(X, Y)
            made.learn(X, Y)
