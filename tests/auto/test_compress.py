"""The one call from a trained model to a small one."""

import dataclasses
import json

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_dlopt as dlopt
from keras_dlopt import Recipe
from keras_dlopt.auto import compressing, goals, training
from keras_dlopt.auto.compressed import Trial
from keras_dlopt.auto.goals import Parent, Strength, coded, rate_recipe, strength_for
from keras_dlopt.auto.training import job_for, known_loss
from keras_dlopt.errors import ConfigError, DataError, ModelError
from keras_dlopt.export import Predictor
from keras_dlopt.graph.targets import weight_targets

L = keras.layers
FILE = {"int8": True, "path": "a.tflite"}
HALF = dlopt.Prune(0.5)
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


@dataclasses.dataclass
class Grown:
    """An export's report of another size."""

    size: int


@pytest.fixture(scope="module")
def digits():
    return dlopt.data.load("digits")


@pytest.fixture(scope="module")
def net(digits):
    keras.utils.set_random_seed(0)
    layers = [L.Flatten(), L.Dense(48, "relu"), L.Dense(10)]
    model = keras.Sequential([keras.Input(digits.input_shape), *layers])
    model.compile(keras.optimizers.Adam(3e-3), LOSS)
    model.fit(*digits.train, epochs=15, verbose=0)
    return model


def all_channels(job, path, asked, trials, *, target):
    """Leaves an int8 file as it is."""
    return None, trials, []


def accuracy(model, x, y):
    return float((model.predict(x, verbose=0).argmax(-1) == y).mean())


def test_a_size_is_reached_trained_written_and_read_back(net, digits, tmp_path):
    before = [w.numpy() for w in net.weights]
    path = tmp_path / "small.dlopt"
    made = dlopt.compress(net, digits, size=0.12, epochs=6, path=path)
    assert path.stat().st_size == made.bytes <= 0.12 * made.plain_bytes
    assert made.plain_bytes == 4 * net.count_params()
    again = dlopt.load_compressed(path)
    x, y = digits.val
    np.testing.assert_array_equal(again(x), made.model(x))
    assert made.trials[0].accuracy == pytest.approx(accuracy(again, x, y))
    assert accuracy(net, x, y) - made.trials[0].accuracy < 0.05
    # Trained on, not only cut: what was trained for is better than at once.
    strength = strength_for(Parent(net), made.trials[0].goal)
    cut = dlopt.finalize(dlopt.transform(net, strength.recipe()))
    z, w = digits.train
    assert float(LOSS(w, made.model(z))) < float(LOSS(w, cut(z)))
    # What was given stays as it was.
    assert all(map(np.array_equal, before, [w.numpy() for w in net.weights]))
    assert net.trainable_variables
    assert dlopt.Recipe.from_json(made.recipe.to_json()) == made.recipe
    data = json.loads(made.to_json(tmp_path / "made.json").read_text())
    assert (data["bytes"], data["trials"][0]["bytes"]) == (made.bytes, made.bytes)
    assert f"became {made.bytes:,}" in str(made)
    told = f"{made.bytes:,} bytes, for a goal of {int(0.12 * made.plain_bytes):,}"
    assert told in made.reasons[-1]


@pytest.mark.slow
def test_small_sizes_are_trained_towards_where_there_is_time(net, digits):
    made = dlopt.compress(net, digits, size=0.06, epochs=26, rate=3e-3)
    assert made.trials[0].method == "trained towards few bits"
    assert made.bytes <= 0.06 * made.plain_bytes
    assert made.trials[0].accuracy > accuracy(net, *digits.val) - 0.04
    ((_, transform),) = made.recipe.entries
    assert transform.end == 26 * 20


@pytest.mark.parametrize(
    ("share", "sparsity", "clusters"),
    [(0.4, False, None), (0.2, False, 16), (0.06, True, 16)],
)
def test_the_mildest_strength_that_fits_is_taken(net, share, sparsity, clusters):
    goal = int(share * 4 * net.count_params())
    found = strength_for(Parent(net), goal)
    assert (found.sparsity > 0, found.clusters) == (sparsity, clusters)
    assert coded(dlopt.transform(net, found.recipe())).file_bytes <= goal
    if sparsity:
        milder = dataclasses.replace(found, sparsity=found.sparsity - 0.02)
        assert coded(dlopt.transform(net, milder.recipe())).file_bytes > goal


@pytest.mark.parametrize(
    "strength", [Strength(), Strength(clusters=16), Strength(0.9, 8)], ids=str
)
def test_sizes_are_those_of_files_that_nobody_writes(strength):
    inputs = keras.Input((8, 8, 3))
    y = L.Conv2D(8, 3)(L.Normalization(axis=(1, 3), mean=None)(inputs))
    y = L.ReLU()(L.BatchNormalization()(y))
    model = keras.Model(inputs, L.Dense(5)(L.Flatten()(y)))
    parent = Parent(model)
    recipe = strength.recipe(where=parent.but(goals.WEIGHTS))
    written = coded(dlopt.transform(model, recipe)).file_bytes
    assert parent.size(strength) == pytest.approx(written, abs=8)


def test_statistics_are_never_rounded_nor_counted_as_weights():
    rng = np.random.default_rng(0)
    x = rng.normal(50, 9, (64, 6, 5)).astype("float32")
    flat = L.Normalization()  # statistics of rank 1
    square = L.Normalization(axis=(1, 2))  # and of rank 2
    for layer in (flat, square):
        layer.adapt(x)
    layers = [square, flat, L.Flatten(), L.Dense(32, name="frozen"), L.Dense(3)]
    model = keras.Sequential([keras.Input((6, 5)), *layers])
    model.get_layer("frozen").trainable = False
    parent = Parent(model)
    held = [w.numpy() for w in (*flat.weights, *square.weights)]
    for recipe in (
        rate_recipe(parent, 1500, 10),
        Strength().recipe(where=parent.but(goals.WEIGHTS)),
    ):
        ((selector, _),) = recipe.entries
        chosen = [t.path for t in weight_targets(model) if selector(t)]
        assert [p for p in chosen if "normalization" in p] == []
        assert "frozen/kernel" in chosen
        made = dlopt.finalize(dlopt.transform(model, Recipe([(selector, HALF)])))
        kept = [w.numpy() for layer in made.layers[:2] for w in layer.weights]
        for one, other in zip(
            sorted(held, key=np.shape), sorted(kept, key=np.shape), strict=True
        ):
            np.testing.assert_array_equal(one, other)
    # What is beside the codes is the file without the rows of the codes.
    rows = dict(zip([id(w) for w in model.weights], parent.ledger.rows, strict=True))
    coded_rows = sum(
        rows[id(w)].bits for layer in model.layers[3:] for w in layer.weights
    )
    beside = parent.ledger.file_bytes - coded_rows / 8
    assert parent.beside(goals.CODED) == pytest.approx(beside)


def test_schedules_end_within_the_training():
    recipe = Strength(0.9, 16).recipe(1000)
    ((_, chain),) = recipe.entries
    prune, cluster = chain.links
    assert (prune.sparsity.end, cluster.begin) == (450, 750)
    # A single step still prunes first.
    ((_, chain),) = Strength(0.9, 16).recipe(1).entries
    assert chain.links[0].sparsity.end <= chain.links[1].begin


class Fake(compressing._Search):
    """A search whose trainings cost nothing: accuracy falls below a size."""

    def __init__(self, turns_at):
        self.trials, self.reasons, self.start = [], [], 0.0
        self.turns_at = turns_at

    def reach(self, goal):
        right = 0.9 if goal >= self.turns_at else 0.5
        self.trials.append(Trial("", goal, goal, right, 0.0, 1.0))
        return self.trials[-1]


@pytest.mark.parametrize("turns_at", [15, 100, 1000, 10_000, 50_000])
def test_the_search_ends_near_the_size_where_accuracy_turns(turns_at):
    search = Fake(turns_at)
    found = search._smallest(60_000, 100_000, lambda t: t.accuracy > 0.8)
    least = max(turns_at, 100_000 / 1024)
    assert turns_at <= found.bytes <= 2.1 * least
    assert len(search.trials) < 14


@pytest.mark.parametrize(
    ("turns_at", "most", "tried"),
    [
        (15, 3000, None),  # the size is no end: what is smaller and holds is taken
        (8000, 10_000, [6250, 10_000]),
        (20_000, 10_000, [6250, 10_000]),  # nothing larger is tried
        (90, 50, [50]),  # less than a search goes down to is tried if it is asked for
    ],
)
def test_no_size_above_the_one_asked_for_is_tried(turns_at, most, tried):
    search = Fake(turns_at)
    found = search._smallest(most, 100_000, lambda t: t.accuracy > 0.8)
    assert (found is None) == (turns_at > most)
    goals_tried = [t.goal for t in search.trials]
    assert max(goals_tried) <= most
    if tried is None:
        assert found.bytes < most / 10
    else:
        assert goals_tried[: len(tried)] == tried


@pytest.mark.slow
def test_as_small_as_the_accuracy_allows(net, digits):
    made = dlopt.compress(net, digits, max_accuracy_drop=0.1, epochs=6)
    before = accuracy(net, *digits.val)
    assert made.trials[0].accuracy >= before - 0.1
    assert {t.bytes for t in made.pareto} <= {t.bytes for t in made.trials}
    assert made.ratio > 3


def test_int8_is_judged_by_its_file_and_trained_on_if_it_must(
    net, digits, tmp_path, monkeypatch
):
    path = tmp_path / "a.tflite"
    made = dlopt.compress(net, digits, int8=True, path=path)
    x, y = digits.val
    right = float((Predictor(path)(x).argmax(-1) == y).mean())
    assert made.trials[0].accuracy == pytest.approx(right)
    assert made.bytes == path.stat().st_size
    assert 0 < made.trials[0].seconds <= made.seconds
    # As if the file had lost much: training comes next, and is judged by its file.
    from keras_dlopt.auto import small_int8

    holds = iter([False, True])
    monkeypatch.setattr(small_int8, "_holds", lambda *_: next(holds))
    monkeypatch.setattr(compressing, "narrowed", all_channels)
    made = dlopt.compress(
        net, digits, int8=True, path=path, epochs=1, max_accuracy_drop=0.0
    )
    assert [t.method.split()[1] for t in made.trials] == ["with", "after"]
    right = float((Predictor(path)(x).argmax(-1) == y).mean())
    assert made.trials[0].accuracy == pytest.approx(right)
    assert all(0 < t.seconds <= made.seconds for t in made.trials)
    # As if that lost much, too: once more, with the whole rate, and then no more.
    rates = []
    monkeypatch.setattr(
        small_int8.Job, "fit", lambda _, model, name, rate: rates.append(rate) or model
    )
    holds = iter([False] * 3)
    with pytest.raises(ConfigError, match=r"at the full rate: [\d.]+%: more than the"):
        dlopt.compress(net, digits, int8=True, path=path, max_accuracy_drop=0.0)
    assert rates == pytest.approx([1e-4, 1e-3])
    monkeypatch.undo()
    monkeypatch.setattr(small_int8, "_holds", lambda *_: next(holds))
    monkeypatch.setattr(compressing, "narrowed", all_channels)
    # A file that grew while it was trained on is refused as well.
    holds = iter([False, True])
    written = iter([small_int8.litert(made.model, path, data=x[:64]).size])
    monkeypatch.setattr(
        small_int8, "litert", lambda *a, **k: Grown(next(written) + 10_000)
    )
    with pytest.raises(ConfigError, match="The file of int8 with training has"):
        dlopt.compress(
            net,
            digits,
            int8=True,
            path=path,
            epochs=1,
            max_accuracy_drop=0.0,
            max_bytes=made.bytes + 100,
        )


def test_the_file_written_is_the_one_measured(net, digits, tmp_path, monkeypatch):
    saved = []

    def counted(model):
        saved.append(coded(model))
        return saved[-1]

    monkeypatch.setattr(compressing, "coded", counted)
    monkeypatch.setattr(goals, "coded", counted)
    path = tmp_path / "a.dlopt"
    made = dlopt.compress(net, digits, size=0.5, epochs=1, path=path)
    # The parent's, and one for each trial.
    assert len(saved) == 1 + len(made.trials)
    assert path.read_bytes() == saved[-1].data


def _labels(form):
    """A task of three or two classes, its labels and a network, by form."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(160, 4)).astype("float32")
    y = x[:, :3].argmax(1)
    if form.startswith("binary"):
        y = (y > 0).astype("int32")
        y = y.astype("float32")[:, None] if form.endswith("column") else y
    elif form == "one_hot":
        y = np.eye(3, dtype="float32")[y]
    elif form == "column":
        y = y[:, None]
    head = {"binary": (1, "sigmoid"), "binary_logits": (1, None)}
    head["binary_column"] = (1, None)
    width, activation = head.get(form, (3, None))
    keras.utils.set_random_seed(1)
    layers = [L.Dense(16, "relu"), L.Dense(width, activation)]
    return x, y, keras.Sequential([keras.Input((4,)), *layers])


LOSSES = {
    "column": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    "one_hot": keras.losses.CategoricalCrossentropy(from_logits=True),
    "binary": "binary_crossentropy",
    "binary_logits": keras.losses.BinaryCrossentropy(from_logits=True),
    "binary_column": keras.losses.BinaryCrossentropy(from_logits=True),
}


@pytest.mark.parametrize(
    ("form", "compiled"),
    # Numbers of type float may be meant as such: a loss has to say it.
    [(f, c) for f in LOSSES for c in (True, False) if c or f != "binary_column"],
)
def test_labels_of_any_form_are_judged_as_keras_judges_them(form, compiled):
    x, y, model = _labels(form)
    loss = LOSSES[form]
    # Far from the middle, so that what is not compiled shows what its outputs are.
    kernel = model.layers[-1].kernel
    kernel.assign(9 * kernel)
    if compiled:
        model.compile("adam", loss)
    job = job_for(model, (x, y), (x, y), batch_size=50, epochs=1)
    assert (job.classifies, job.teacher) == (True, True)
    threshold = 0.5 if form == "binary" else 0.0
    metric = (
        keras.metrics.BinaryAccuracy(threshold=threshold)
        if form.startswith("binary")
        else "accuracy"
    )
    model.compile("adam", loss, metrics=[metric])
    expected = model.evaluate(x, y, verbose=0, batch_size=160)
    found = job.judged(model)
    np.testing.assert_allclose(found[::-1], expected, rtol=1e-5)
    if compiled and form in ("one_hot", "binary_column"):  # taught, too
        trained = job.fit(dlopt.transform(model, Strength().recipe()), "")
        assert np.isfinite(trained.history.history["loss"]).all()


@pytest.mark.parametrize(
    ("loss", "labels", "width"),
    [
        ("mse", np.arange(20) % 2, 1),  # whole numbers to come near to
        ("mse", np.arange(20) % 3 + 0.0, 3),
        ("binary_crossentropy", np.ones((20, 3)), 3),  # several labels an example
        ("sparse_categorical_crossentropy", np.full(20, 7), 3),  # no such class
    ],
)
def test_what_quality_cannot_judge_is_no_classification(loss, labels, width):
    model = keras.Sequential([keras.Input((4,)), L.Dense(width)])
    data = np.zeros((20, 4), "float32"), labels
    assert known_loss(model, data, loss) == (loss, False)


def test_losses_of_columns_and_rows_do_not_mix():
    x = np.arange(20, dtype="float32")[:, None]
    y = x[:, 0].copy()
    model = keras.Sequential([keras.Input((1,)), L.Dense(1, kernel_initializer="ones")])
    model.compile("adam", lambda a, b: keras.ops.mean((a - b) ** 2))
    job = job_for(model, (x, y), (x, y), batch_size=50, epochs=1)
    assert job.judged(model) == (None, 0.0)


def test_the_tenth_held_out_is_drawn():
    x = np.arange(100, dtype="float32")[:, None]
    y = (np.arange(100) >= 90).astype(int)  # in order: the last tenth is one class
    (kept, _), (out, labels) = training._parts((x, y), None, 3)
    assert sorted([*kept[:, 0], *out[:, 0]]) == list(range(100))
    assert len(out) == 10
    assert set(labels) == {0, 1} or labels.sum() == 0
    assert not np.array_equal(out, x[-10:])
    again, other = (training._parts((x, y), None, s)[1][0] for s in (3, 4))
    np.testing.assert_array_equal(out, again)
    assert not np.array_equal(out, other)
    # Several inputs are held out together.
    (_, _), (both, _) = training._parts(({"a": x, "b": -x}, y), None, 3)
    np.testing.assert_array_equal(both["a"], -both["b"])
    np.testing.assert_array_equal(both["a"], out)


@pytest.mark.parametrize("batched", [False, True])
def test_statistics_are_those_of_the_weights_after_few_steps(batched):
    x = np.random.default_rng(0).normal(3, 1, (128, 4)).astype("float32")
    y = (x[:, 0] > 3).astype(int)
    # Behind an activation it has no kernel to go into.
    layers = [L.Dense(256, "relu"), L.BatchNormalization(momentum=0.99), L.Dense(2)]
    model = keras.Sequential([keras.Input((4,)), *layers])
    data = (x, y)
    if batched:
        data = tf.data.Dataset.from_tensor_slices((x, y)).batch(64)
    # Two steps move an average of momentum 0.99 by two hundredths.
    made = dlopt.compress(model, data, (x, y), size=0.8, epochs=1)
    dense, norm, _ = made.model.layers[-3:]
    np.testing.assert_allclose(norm.moving_mean, dense(x).numpy().mean(0), rtol=1e-4)


def test_normalization_that_fills_half_of_the_file_goes_into_the_kernels(monkeypatch):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 6, 6, 2)).astype("float32")
    y = (x[:, 0, 0, 0] > 0).astype(int)
    layers = [L.Conv2D(64, 1), L.BatchNormalization(), L.ReLU()]
    layers.append(L.GlobalAveragePooling2D())
    model = keras.Sequential([keras.Input((6, 6, 2)), *layers, L.Dense(2)])
    for weight in layers[1].weights:
        weight.assign(rng.uniform(0.5, 2, weight.shape))
    folded = goals.absorbed(model)
    np.testing.assert_allclose(folded(x), model(x), rtol=1e-3, atol=1e-4)
    assert Parent(model).beside(goals.CODED) > 400 + Parent(folded).beside(goals.CODED)
    beside = round(Parent(model).beside(goals.CODED))
    job = job_for(model, (x, y), (x, y), loss=LOSS)
    search = compressing._Search(job, Parent(model), None, 0, 0.0)
    assert search.parent_for(2 * beside + 2) is search.parent
    assert search.parent_for(2 * beside - 2) is search.folded
    goal = 2 * beside - 40
    made = dlopt.compress(model, (x, y), (x, y), max_bytes=goal, epochs=1)
    names = [type(layer).__name__ for layer in made.model.layers]
    assert "BatchNormalization" not in names
    assert made.bytes <= goal
    assert made.plain_bytes == 4 * model.count_params()
    # What has none, or cannot be rebuilt, stays as it is.
    assert goals.absorbed(folded) is folded

    def never(_):
        raise ModelError("no")

    monkeypatch.setattr(goals, "fold_batch_normalization", never)
    assert goals.absorbed(model) is model


def test_nobody_watches_a_silent_training(net, digits, monkeypatch):
    monkeypatch.setattr(training, "Recorder", None)  # would fail if it were made
    assert dlopt.compress(net, digits, size=0.9, epochs=1).bytes


def test_regression_is_judged_by_its_loss(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 6)).astype("float32")
    y = x @ rng.normal(size=(6, 2)).astype("float32")
    layers = [keras.Input((6,)), L.Dense(64, "relu"), L.Dense(2)]
    model = keras.Sequential(layers)
    model.compile("adam", "mse")
    model.fit(x, y, epochs=3, verbose=0)
    made = dlopt.compress(model, (x, y), size=0.5, epochs=2)
    assert made.report is None
    held = np.random.default_rng(0).permutation(200)[:20]
    held = float(np.square(made.model(x[held]) - y[held]).mean())
    assert made.trials[0].loss == pytest.approx(held, rel=1e-5)
    with pytest.raises(ConfigError, match="max_accuracy_drop needs a model that class"):
        dlopt.compress(model, (x, y), max_accuracy_drop=0.1)


def test_an_accuracy_that_is_not_held_is_refused_with_figures(net, digits):
    with pytest.raises(ConfigError, match="of the validation examples came out right"):
        dlopt.compress(net, digits, size=0.04, max_accuracy_drop=0.0, epochs=1)


def test_wrong_goals_are_refused_before_the_work(net, digits, tmp_path, monkeypatch):
    monkeypatch.setattr(compressing, "job_for", None)
    for options, text in (
        ({}, "compress needs a goal"),
        ({"size": 0.1, "max_bytes": 9}, "Give size or max_bytes, not both"),
        ({"size": 1.5}, "size must be"),
        ({"size": 0.1, "path": "a.keras"}, "path must end in .dlopt"),
        ({"int8": True}, "Pass where, as path='model.tflite'"),
        ({"int8": True, "path": "a.dlopt"}, "path must end in .tflite"),
        ({**FILE, "clusters": 4, "size": 0.1}, "size=0.1, clusters=4 means noth"),
        ({**FILE, "epochs": 2}, "without max_accuracy_drop"),
        ({"size": 0.1, "target": "tflm"}, "target='tflm' means nothing with int8=Fal"),
        ({"size": 0.1, "storage": "a"}, "means nothing with neither time_budget nor a"),
        ({"time_budget": 9}, "compress needs a goal"),
        ({"size": 0.1, "time_budget": 0}, "time_budget must be"),
        ({"size": 0.1, "path": tmp_path / "no" / "a.dlopt"}, "There is no folder"),
        ({"max_accuracy_drop": -1}, "max_accuracy_drop must be"),
    ):
        with pytest.raises(ConfigError, match=text):
            dlopt.compress(net, digits, **options)
    small = dlopt.transform(net, Strength(0.5, 4).recipe())
    with pytest.raises(ModelError, match="is transformed already"):
        dlopt.compress(small, digits, size=0.1)


def test_wrong_data_are_refused(net, digits):
    x, y = digits.train
    for data, text in (
        ((x[:5], y[:5]), "10 examples or more"),
        ((x, y[:-1]), "as many labels"),
        (iter(()), "Without val, train must be arrays"),
    ):
        with pytest.raises(DataError, match=text):
            dlopt.compress(net, data, size=0.1)
    with pytest.raises(DataError, match="number of batches in train is not known"):
        dlopt.compress(net, iter(()), digits.val, size=0.1)


def test_the_least_that_is_left_is_known_beforehand(net, digits, monkeypatch):
    monkeypatch.setattr(goals, "_HALVINGS", 1)
    with pytest.raises(ConfigError, match="cannot be coded into 20 bytes"):
        dlopt.compress(net, digits, max_bytes=20)


def test_data_of_another_shape_is_refused_before_anything_is_done(net):
    with pytest.raises(DataError, match=r"takes examples of shape .* the data has"):
        dlopt.compress(net, (np.zeros((40, 3)), np.zeros(40, int)), size=0.1)
