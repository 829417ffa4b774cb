"""A learner over a stream: what it learns, keeps, saves and refuses."""

import keras
import numpy as np
import pytest

import keras_dlopt as dlopt
from keras_dlopt import online
from keras_dlopt.errors import ConfigError, DataError, FormatError, ModelError
from keras_dlopt.online.batching import Batcher

L = keras.layers
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
RNG = np.random.default_rng(0)
X = RNG.normal(size=(600, 6)).astype("float32")
Y = X[:, :3].argmax(1)


def net(rate=0.1, width=8, loss=LOSS, **options):
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [keras.Input((6,)), L.Dense(width, activation="relu"), L.Dense(3)]
    )
    model.compile(keras.optimizers.SGD(rate, momentum=0.9), loss, **options)
    return model


def learner(model=None, **options):
    given = {
        "batch_size": 16,
        "memory": online.ClassBalanced(40),
        "replay": online.Replay(16, steps=2),
        "terms": [online.DarkExperience(0.2)],
        "drift": online.DDM(),
        "on_drift": online.OnDrift(3.0, half_life=50, forget=True, recent=8),
    }
    return online.OnlineLearner(model or net(), **{**given, **options})


def same(a, b):
    assert a.seen == b.seen
    assert a.drifts == b.drifts
    assert a.metrics.state() == b.metrics.state()
    one, other = (m.model.variables + m.model.optimizer.variables for m in (a, b))
    for u, v in zip(one, other, strict=True):
        assert np.array_equal(u.numpy(), v.numpy()), u.path
    parts = [m._engine.batcher.held.state() for m in (a, b)]
    assert parts[0][0] == parts[1][0]
    for name, array in parts[0][1].items():
        assert np.array_equal(array, parts[1][1][name]), name


@pytest.fixture(scope="module")
def whole():
    """A learner that saw the stream, whose concept changes in its middle."""
    made = learner()
    made.result = made.learn(X, np.r_[Y[:300], (Y[300:] + 1) % 3])
    return made


def test_it_learns_sees_the_drift_and_learns_again(whole):
    errors = whole.result.errors
    assert len(errors) == 592
    assert errors[200:300].mean() < 0.3
    assert errors[310:330].mean() > 0.6
    assert errors[-80:].mean() < 0.35
    assert any(300 < at <= 360 for at in whole.drifts)
    assert whole.result.drifts == tuple(whole.drifts)
    assert whole.result.new_labels == (0, 1, 2)
    assert whole.metrics.mean == pytest.approx(errors.mean())
    # What came long before the last alarm was forgotten.
    held = whole._engine.batcher.held
    assert held.arrived[: held.count].min() >= whole.drifts[-1] - 8


def test_each_call_is_traced_once(whole):
    whole.predict(X[:3])
    whole.predict(X[:200])
    whole.rehearse(1)
    assert whole._engine.steps.traces() == {"learn": 1, "train": 1, "predict": 1}


def test_portions_make_no_difference():
    one, other = learner(), learner()
    y = np.r_[Y[:60], (Y[60:100] + 1) % 3]
    one.learn(X[:100], y)
    pending = [other.learn(X[i:j], y[i:j]).pending for i, j in ((0, 7), (7, 90))]
    assert pending == [7, 90 % 16]
    other.follow([(X[:50], y[:50]), (X[50:100], y[50:])])  # 90 of it were seen
    same(one, other)
    assert one.seen == 100
    assert one.pending == 4
    assert one.metrics.count == 96


def test_saved_and_restored_to_the_bit(tmp_path):
    path = tmp_path / "state.npz"
    one = learner(path=path, every=48)
    one.learn(X[:60], Y[:60])
    # Written at the batch end after 48 samples, by itself.
    other = learner(path=path, every=48).restore(path)
    assert other.seen == 48
    other.follow([(X[:60], Y[:60])])
    one.anchor()
    other.anchor()
    for made in (one, other):
        made.learn(X[60:110], Y[60:110])
        made.rehearse(0.5)
    same(one, other)
    assert np.array_equal(one.predict(X[:9]), other.predict(X[:9]))


def test_what_waits_is_learned_by_flush():
    made = learner(drift=None)
    made.learn(X[:21], Y[:21])
    assert made.metrics.count == 16
    done = made.flush()
    assert len(done.errors) == 5
    assert made.metrics.count == 21
    assert made.pending == 0
    assert made.kept == 21
    assert len(made.flush().errors) == 0
    assert made._engine.steps.traces()["learn"] == 1


def test_a_step_is_the_gradient_of_what_is_documented(monkeypatch):
    """Against a softmax regression in NumPy: labels, kept rows and kept logits."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((6,)), L.Dense(3)])
    model.compile(keras.optimizers.SGD(0.2), LOSS)
    w, b = (v.numpy().astype("float64") for v in model.trainable_variables)
    seen = []
    mixed = Batcher.mixed
    monkeypatch.setattr(Batcher, "mixed", lambda *a: seen.append(mixed(*a)) or seen[-1])
    made = learner(
        model,
        batch_size=8,
        replay=online.Replay(24, steps=3, weight=0.5),
        terms=[online.DarkExperience(0.7)],
    )
    made.learn(X[:40], Y[:40])
    for batches in seen:
        for x, y, kept, memory, _ in zip(
            batches.x,
            batches.y,
            batches.kept,
            batches.memory,
            batches.weight,
            strict=True,
        ):
            z = x.astype("float64") @ w + b
            p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
            slope = (p - np.eye(3)[y]) / 8  # the mean over the 8 new rows
            if memory.any():
                slope[8:] = 0.5 * (p - np.eye(3)[y])[8:] / 24
                slope[8:] += 0.7 * 2 * (z - kept)[8:] / (24 * 3)
            else:
                slope = (p - np.eye(3)[y]) / 32
            w, b = w - 0.2 * x.T @ slope, b - 0.2 * slope.sum(0)
    assert len(seen) == 5
    assert sum(batches.memory.any() for batches in seen) == 4
    found = [v.numpy() for v in model.trainable_variables]
    assert found[0] == pytest.approx(w, abs=2e-5)
    assert found[1] == pytest.approx(b, abs=2e-5)


def test_kept_logits_are_those_of_the_prediction():
    made = learner(batch_size=8, replay=online.Replay(8))
    expected = made.predict(X[:8])  # also before anything was learned
    assert expected == pytest.approx(made.model(X[:8]).numpy(), abs=1e-6)
    made.learn(X[:8], Y[:8])
    held = made._engine.batcher.held
    kept = held.columns[-1][np.argsort(held.arrived[:8])]
    assert kept == pytest.approx(expected, abs=1e-6)


def test_the_rate_rises_at_a_drift_and_comes_back(whole):
    made = learner(on_drift=online.OnDrift(4.0, half_life=16), drift=online.DDM())
    assert made.learning_rate == pytest.approx(0.1)
    y = np.r_[Y[:160], (Y[160:] + 1) % 3]
    rates, at = [], 0
    while not made.drifts:
        made.learn(X[at : at + 16], y[at : at + 16])
        at += 16
    used = float(made.model.optimizer.learning_rate.numpy())
    assert used == pytest.approx(0.1)
    for _ in range(12):
        rates.append(made.learning_rate)
        made.learn(X[at : at + 16], y[at : at + 16])
        used = float(made.model.optimizer.learning_rate.numpy())
        assert used == pytest.approx(rates[-1])
        at += 16
    first = made.on_drift.at(
        made.drifts[0] and -(-made.drifts[0] // 16) * 16 - made.drifts[0]
    )
    assert rates[0] == pytest.approx(0.1 * first)
    if len(made.drifts) == 1:
        assert rates[-1] == pytest.approx(0.1)


def test_rehearsal_lowers_the_rate_and_gives_it_back():
    made = learner(terms=[online.DarkExperience(), online.EWC(1.0)])
    made.learn(X[:80], Y[:80])
    before = made.model.trainable_variables[0].numpy()
    iterations = int(made.model.optimizer.iterations)
    made.rehearse(2.0)
    # 40 items twice, 32 rows a step, two steps a call.
    assert int(made.model.optimizer.iterations) - iterations == 4
    assert float(made.model.optimizer.learning_rate) == pytest.approx(0.1)
    assert np.abs(made.model.trainable_variables[0].numpy() - before).max() > 0


def test_values_are_learned_as_well():
    made = learner(
        net(0.01, loss="mse"),
        task="values",
        memory=online.Reservoir(40),
        drift=online.PageHinkley(),
    )
    y = (X @ RNG.normal(size=(6, 3))).astype("float32")
    errors = made.learn(X, y).errors
    assert errors[-50:].mean() < 0.5 * errors[:50].mean()
    first = learner(
        net(loss="mse"), task="values", memory=online.Reservoir(40), drift=None
    )
    wanted = ((first.model(X[:16]).numpy() - y[:16]) ** 2).mean(1)
    assert first.learn(X[:16], y[:16]).errors == pytest.approx(wanted, rel=1e-4)


def test_config_goes_there_and_back():
    made = learner()
    again = online.OnlineLearner.from_config(made.get_config(), model=net())
    assert again.get_config() == made.get_config()
    assert again.memory == made.memory
    assert dlopt.OnlineLearner is online.OnlineLearner


# What does not fit.


@pytest.mark.parametrize(
    ("x", "y", "text"),
    [
        (X[:0], Y[:0], r"x has no samples: its shape is \(0, 6\)"),
        (X[:4], Y[:3], r"x has 4 samples and y has \[3\]"),
        (X[:4, :5], Y[:4], r"takes samples of the shape \[\(6,\)\]\. Received: \[\(5,"),
        (X[:4], np.array([0, 1, 3, 2]), "label 3 in row 2 has no place in a head of 3"),
        (X[:4], np.array([0, -1, 1, 2]), "The label -1 in row 1 has no place"),
        (X[:4], np.array([0.5, 1, 1, 2]), r"y has samples of float32\[\], and earlier"),
        (
            X[:4],
            np.array([0, np.nan, 1, 2]),
            "y has numbers that are not finite, first",
        ),
        (
            np.where(X[:4] == X[2, 1], np.inf, X[:4]),
            Y[:4],
            "not finite, first in row 2",
        ),
        (X[:4].astype("U"), Y[:4], "x must be arrays of numbers"),
        (X[:4].astype("float16"), Y[:4], "x has samples of float16.*float32"),
    ],
)
def test_samples_that_do_not_fit_are_refused_whole(whole, x, y, text):
    seen, count = whole.seen, whole.metrics.count
    with pytest.raises(DataError, match=text):
        whole.learn(x, y)
    assert (whole.seen, whole.metrics.count) == (seen, count)


def test_an_empty_stream_is_refused():
    with pytest.raises(DataError, match="The stream is empty"):
        learner().follow(iter([]))


def test_weights_that_diverged_are_named(tmp_path):
    path = tmp_path / "s.npz"
    made = learner(path=path, every=16, drift=None, terms=())
    made.learn(X[:16], Y[:16])
    before = path.read_bytes()
    made.model.trainable_variables[1].assign(np.full(8, np.nan, "float32"))
    with pytest.raises(ModelError, match="weights or outputs are not finite: it has"):
        made.learn(X, Y)
    with pytest.raises(ModelError, match="not finite: it has diverged"):
        made.save(path)
    assert path.read_bytes() == before
    assert made.restore(path).learn(X[16:], Y[16:]).samples == 584


def test_refused_labels_leave_no_form_behind():
    made = learner()
    with pytest.raises(DataError, match="Labels of classes must be whole numbers"):
        made.learn(X[:4], np.array([0.5, 1, 1, 2]))
    assert made.learn(X[:16].astype("float16"), Y[:16].astype("uint8")).pending == 0


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"memory": None}, "compares kept samples, and memory=None keeps none"),
        ({"task": "values"}, "goes with task='classes' only"),
        ({"path": "a.npz"}, "path and every go together"),
        ({"every": 5}, "path and every go together"),
        ({"keep": "zeros"}, "no kernel of .* has zeros"),
        ({"keep": "codes"}, "no kernel of .* has weights that share values"),
        ({"terms": ["ewc"]}, r"terms\[0\] must be a term, such as"),
        ({"memory": 500}, "memory must be a Memory"),
        ({"task": "labels"}, "task must be 'classes' or 'values'"),
    ],
)
def test_arguments_that_do_not_go_together(options, text):
    with pytest.raises(ConfigError, match=text):
        learner(**options)


def test_models_that_cannot_learn():
    plain = keras.Sequential([keras.Input((6,)), L.Dense(3)])
    with pytest.raises(ModelError, match="is not compiled"):
        learner(plain)
    with pytest.raises(ModelError, match="must be a built keras.Model"):
        learner(keras.Sequential([L.Dense(3)]))
    with pytest.raises(ConfigError, match="steps_per_execution=4 is for fit"):
        learner(net(steps_per_execution=4))
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.9)
    with pytest.raises(ConfigError, match="optimizer's follows a schedule of its own"):
        learner(net(schedule))
    assert learner(net(schedule), drift=None).learn(X[:16], Y[:16]).pending == 0


def test_files_that_do_not_fit(tmp_path, whole):
    path = tmp_path / "a.npz"
    with pytest.raises(ConfigError, match="There is no state yet"):
        learner().save(path)
    whole.save(path)
    with pytest.raises(ConfigError, match="other arguments: batch_size: 16, here 8"):
        learner(batch_size=8).restore(path)
    with pytest.raises(ConfigError, match="variables of another model or optimizer"):
        learner(net(width=9)).restore(path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(FormatError, match="no .npz archive of plain arrays, or a dam"):
        learner().restore(path)
    np.savez(path, x=np.zeros(3))
    with pytest.raises(FormatError, match="is no state of an online learner"):
        learner().restore(path)


def test_nothing_to_rehearse_or_to_anchor():
    made = learner(memory=None, terms=(), drift=None)
    made.learn(X[:16], Y[:16])
    with pytest.raises(ConfigError, match="There is nothing to rehearse"):
        made.rehearse()
    with pytest.raises(ConfigError, match=r"anchor\(\) has no examples"):
        made.anchor()
