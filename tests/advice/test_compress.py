"""What the one call to a small model advises, followed."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from typer.testing import CliRunner

import keras_dlopt as dlopt
from keras_dlopt.auto import compressing, goals, searching, small_int8
from keras_dlopt.auto.goals import Parent, coded, strength_for
from keras_dlopt.cli.app import app

L = keras.layers
RNG = np.random.default_rng(0)
X = RNG.normal(size=(120, 6)).astype("float32")
Y = X.argmax(1).astype("int32") % 3
NUMBERS = X[:, :2] * 2


def network(width=24, outputs=3):
    keras.utils.set_random_seed(0)
    layers = [keras.Input((6,)), L.Dense(width, "relu"), L.Dense(outputs)]
    model = keras.Sequential(layers)
    for layer in model.layers:  # as trained: zeros would cost nothing
        layer.bias.assign(RNG.normal(size=layer.bias.shape) / 10)
    return model


def compress(model, *data, **options):
    return dlopt.compress(model, *(data or ((X, Y),)), epochs=1, **options)


@pytest.mark.advice("auto/wanted.py", "Give size or max_bytes, not both.")
def test_one_size(told):
    with told():
        compress(network(), size=0.5, max_bytes=900)
    assert compress(network(), max_bytes=900).bytes <= 900


@pytest.mark.advice("auto/wanted.py", "means nothing with")
def test_what_is_not_looked_at(told):
    with told():
        compress(network(), size=0.5, target="tflm")
    assert compress(network(), size=0.5).bytes


@pytest.mark.advice("auto/searching.py", "Pass what it was begun with, or another st")
@pytest.mark.advice("auto/searching.py", "Allow more, give more time_budget, or train")
def test_searches(told, tmp_path):
    kept, other = tmp_path / "trials", tmp_path / "others"
    asked = {"time_budget": 1e-3, "max_bytes": 5}
    with told():
        compress(network(), storage=kept, **asked)
    asked["max_bytes"] = 1200
    with told():
        compress(network(), storage=kept, **asked)
    assert compress(network(), storage=other, **asked).bytes <= 1200


@pytest.mark.advice("auto/searching.py", "Leave time_budget out.")
def test_a_search_without_candidates(told, monkeypatch):
    def refuse(*args):
        raise dlopt.errors.ConfigError("Not so.")

    monkeypatch.setattr(searching.Maker, "made", refuse)
    with told():
        compress(network(), max_bytes=900, time_budget=1e-3)
    assert compress(network(), max_bytes=900).bytes <= 900


@pytest.mark.advice("auto/wanted.py", "Pass where, as path='model.tflite'.")
def test_a_place_for_the_int8_file(told, tmp_path):
    model, path = network(), tmp_path / "model.tflite"
    with told():
        dlopt.compress(model, (X, Y), int8=True)
    made = dlopt.compress(model, (X, Y), int8=True, path=path)
    assert made.bytes == path.stat().st_size


@pytest.mark.advice("auto/wanted.py", "Make it first.")
def test_a_folder_for_the_file(told, tmp_path):
    path = tmp_path / "new" / "a.dlopt"
    with told():
        compress(network(), size=0.9, path=path)
    path.parent.mkdir()
    assert compress(network(), size=0.9, path=path).bytes == path.stat().st_size


@pytest.mark.advice("auto/wanted.py", "Leave it out, and pass size=")
@pytest.mark.advice("auto/training.py", "Pass loss=, such as loss='mse'.")
def test_models_that_give_numbers(told):
    model, data = network(outputs=2), (X, NUMBERS)
    with told():
        compress(model, data, size=0.9)
    with told():
        compress(model, data, loss="mse", max_accuracy_drop=0.1)
    made = compress(model, data, loss="mse", size=0.9)
    assert made.trials[0].accuracy is None


@pytest.mark.advice("auto/wanted.py", "Give the model from before, or ")
def test_transformed_models(told):
    model = network()
    small = dlopt.transform(model, _recipe())
    with told():
        compress(small, size=0.9)
    for one in (model, dlopt.finalize(small)):
        assert compress(one, size=0.9).bytes


def _recipe():
    return dlopt.Recipe([(dlopt.named("kernel"), dlopt.Prune(0.5))])


@pytest.mark.advice("auto/goals.py", "Allow that many, remove channels first (prune_ch")
def test_a_size_below_what_is_left(told):
    model = network(width=200)
    with told():
        compress(model, max_bytes=300)
    most = goals.Strength(goals.MOST, 16)
    least = Parent(model).size(most)
    assert strength_for(Parent(model), least).sparsity > 0.99
    narrow, _ = dlopt.prune_channels(model, parameters=0.3, multiple=1)
    assert coded(dlopt.transform(narrow, most.recipe())).file_bytes < least
    assert compress(network(width=8), max_bytes=600).bytes <= 600


@pytest.mark.advice("auto/compressing.py", "Allow that many, or train longer with epoc")
def test_a_file_that_grows_while_training(told, monkeypatch):
    monkeypatch.setattr(compressing, "_TRIES", 1)
    with monkeypatch.context() as patched:
        grown = compressing.Strength()
        patched.setattr(compressing, "strength_for", lambda *a, **k: grown)
        with told():
            compress(network(width=200), size=0.1)
    assert compress(network(width=200), size=0.4).bytes
    longer = dlopt.compress(network(width=64), (X, Y), size=0.3, epochs=3)
    assert longer.bytes <= 0.3 * longer.plain_bytes


@pytest.mark.advice(
    "auto/compressing.py", "Allow more bytes or a larger drop, or train"
)
@pytest.mark.advice(
    "auto/compressing.py", "Train longer with epochs=, or try post_trai"
)
def test_an_accuracy_that_was_not_held(told, monkeypatch):
    model = network(width=64)
    model.compile(keras.optimizers.Adam(1e-2), "mse")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-2), loss)
    model.fit(X, Y, epochs=20, verbose=0)
    tight = {"size": 0.25, "max_accuracy_drop": 0.0}
    # No step of training, so that hardly anything is left.
    with told():
        compress(model, (X, Y), (X, Y), rate=10.0, **tight)
    assert compress(model, (X, Y), (X, Y), size=0.6, max_accuracy_drop=0.05).bytes
    assert compress(model, (X, Y), (X, Y), size=0.25, max_accuracy_drop=1.0).bytes
    with told():
        compress(model, (X, Y), (X, Y), rate=10.0, max_accuracy_drop=0.0)
    small = dlopt.post_training.quantize(model, X)
    right = [(np.asarray(m(X)).argmax(1) == Y).mean() for m in (model, small)]
    assert right[1] >= right[0] - 0.02


@pytest.mark.advice(
    "auto/small_int8.py", "Remove channels first (prune_channels), or le"
)
@pytest.mark.advice(
    "auto/small_int8.py", "Allow more, train longer with epochs=, or kee"
)
def test_int8_files(told, tmp_path, monkeypatch):
    model, path = network(width=200), tmp_path / "a.tflite"
    with told():
        dlopt.compress(model, (X, Y), int8=True, path=path, max_bytes=3500)
    assert list(tmp_path.iterdir()) == []
    assert compress(model, max_bytes=3500).bytes <= 3500
    narrow, _ = dlopt.prune_channels(model, parameters=0.3, multiple=1)
    made = dlopt.compress(narrow, (X, Y), int8=True, path=path, max_bytes=3500)
    assert made.bytes <= 3500
    holds = small_int8._holds
    monkeypatch.setattr(small_int8, "_holds", lambda *_: False)
    with told():
        compress(model, int8=True, path=path, max_accuracy_drop=0.0)
    monkeypatch.setattr(small_int8, "_holds", holds)
    assert compress(model, int8=True, path=path, max_accuracy_drop=0.5).bytes
    kept = dlopt.post_training.quantize(model, X, mixed="auto")
    assert dlopt.export.litert(kept, path, data=X[:4]).verified


@pytest.mark.advice(
    "auto/training.py", "Pass arrays, or train.apply(tf.data.experimental"
)
@pytest.mark.advice("auto/training.py", "Pass val=.")
def test_batches(told):
    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(40)
    with told():
        compress(network(), data, size=0.9)
    unknown = data.filter(lambda x, y: True)
    with told():
        compress(network(), unknown, (X, Y), size=0.9)
    known = unknown.apply(tf.data.experimental.assert_cardinality(3))
    assert compress(network(), known, (X, Y), size=0.9).bytes


@pytest.mark.advice("cli/inputs.py", "Pass another file as --out.")
def test_the_given_file_is_not_written_over(tmp_path):
    path = tmp_path / "a.dlopt"
    dlopt.save_compressed(network(), path)
    np.savez(tmp_path / "d.npz", x_train=X, y_train=Y, x_test=X[:20], y_test=Y[:20])
    asked = ["compress", str(path), "--data", str(tmp_path / "d.npz"), "--size", "0.9"]
    found = CliRunner().invoke(app, asked)
    assert (found.exit_code, "--out" in found.output) == (2, True)
    out = tmp_path / "b.dlopt"
    found = CliRunner().invoke(app, [*asked, "--epochs", "1", "--out", str(out)])
    assert found.exit_code == 0, found.output
    assert out.exists()
