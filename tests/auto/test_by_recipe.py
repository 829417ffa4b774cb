"""Recipes by name or file, training under them, and data that does not fit."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_dlopt as dlopt
from keras_dlopt.errors import ConfigError, DataError, ModelError
from keras_dlopt.transforms.prune import Lamp

L = keras.layers
RNG = np.random.default_rng(0)
X = RNG.normal(size=(200, 6)).astype("float32")
Y = (X @ RNG.normal(size=(6, 3))).argmax(1).astype("int32")


def network(activation=None):
    keras.utils.set_random_seed(0)
    layers = [keras.Input((6,)), L.Dense(16, "relu"), L.Dense(3, activation)]
    return keras.Sequential(layers)


@pytest.mark.parametrize(
    ("name", "links"),
    [
        ("pruned-80", ["Prune"]),
        ("pruned-97.5", ["Prune"]),
        ("clustered-16", ["Cluster"]),
        ("pruned-80-clustered-4", ["Prune", "Cluster"]),
        ("deep-compression", ["Prune", "Cluster"]),
        ("int8", ["FakeQuant"]),
        ("pruned-80-int8", ["Prune", "FakeQuant"]),
        ("clustered-16-int8", ["Cluster", "FakeQuant"]),
        ("pruned-80-clustered-16-int8", ["Prune", "Cluster", "FakeQuant"]),
    ],
)
def test_a_name_is_the_chain_that_it_says(name, links):
    made = dlopt.recipe(name, network(), steps=200)
    chain = made.entries[-1][1]
    assert [type(t).__name__ for t in getattr(chain, "links", [chain])] == links
    quantized = any(t.kind == "activation" for _, t in made.entries)
    assert quantized is name.endswith("int8")
    assert dlopt.Recipe.from_json(made.to_json()) == made


def test_schedules_follow_the_steps():
    prune, cluster = dlopt.recipe("deep-compression", steps=1000).entries[0][1].links
    assert (prune.sparsity.end, cluster.begin, cluster.clusters) == (450, 750, 16)
    assert float(prune.sparsity(450)) == pytest.approx(0.9)
    assert isinstance(prune.score, Lamp)
    at_once = dlopt.recipe("pruned-80")
    assert dlopt.report.sparsity(
        dlopt.finalize(dlopt.transform(network(), at_once))
    ) == pytest.approx(0.8, abs=0.01)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("prunned-80", "Did you mean 'pruned-80'?"),
        ("pruned-80int8", "Did you mean 'pruned-80-int8'?"),
        ("pruned-80-", "Did you mean 'pruned-80'?"),
        ("int-8", "Did you mean 'int8'?"),
        ("deepcompression", "Did you mean 'deep-compression'?"),
        ("", "There is no recipe ''. Names are int8, pruned-80"),
        ("pruned-0", "There is no recipe 'pruned-0'."),
        ("zzz", "There is no recipe 'zzz'. Names are"),
    ],
)
def test_other_names_are_refused_with_the_nearest(name, near):
    with pytest.raises(ConfigError, match="There is no recipe") as caught:
        dlopt.recipe(name)
    assert near in str(caught.value)


def test_what_a_name_cannot_mean():
    with pytest.raises(ConfigError, match="has 2 shared values or more. Received"):
        dlopt.recipe("clustered-1")
    with pytest.raises(ConfigError, match="steps must be a whole number"):
        dlopt.recipe("pruned-80", steps=0)


@pytest.mark.parametrize("name", dlopt.auto.RECIPES)
def test_every_name_trains(name):
    before = network("softmax").get_weights()
    model = network("softmax")
    made = dlopt.auto.train(model, (X, Y), recipe=name, epochs=2, batch_size=30)
    assert made.steps == 12
    assert (made.recipe.entries[0][1].kind == "activation") is name.endswith("int8")
    # Of 144 kernel values one is 0.7 points; none is zero by chance.
    wanted = 0.9 if name.startswith("deep") else 0.8 * ("pruned" in name)
    assert made.sparsity >= wanted - 0.01
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_plain_training_is_adamw_under_a_cosine():
    """The twin: the same fit, written by hand."""
    model = network()
    parts = (X[:180], Y[:180]), (X[180:], Y[180:])
    options = {"epochs": 2, "batch_size": 30, "rate": 0.01, "seed": 3}
    made = dlopt.auto.train(model, *parts, **options)
    twin = keras.models.clone_model(model)
    twin.set_weights(model.get_weights())
    keras.utils.set_random_seed(3)
    rate = keras.optimizers.schedules.CosineDecay(0.01, 12)
    twin.compile(
        keras.optimizers.AdamW(rate, weight_decay=0.01),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    twin.fit(X[:180], Y[:180], epochs=2, batch_size=30, verbose=0)
    for one, other in zip(made.model.get_weights(), twin.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)
    right = [
        float(np.mean(np.argmax(m.predict(X[180:], verbose=0), 1) == Y[180:]))
        for m in (model, twin)
    ]
    assert made.accuracy == pytest.approx(right)
    assert str(made).startswith(f"validation accuracy {right[0]:.2%} became")


def test_a_regression_has_a_loss_and_no_accuracy():
    layers = [keras.Input((6,)), L.Dense(2)]
    model = keras.Sequential(layers)
    data = X, (X[:, :2] * 2)
    with_teacher = {"recipe": "pruned-50", "loss": "mse", "teacher": True}
    made = dlopt.auto.train(model, data, epochs=1, **with_teacher)
    assert made.accuracy is None
    assert made.loss[1] < made.loss[0]
    assert "validation loss" in str(made)
    assert made.to_dict()["recipe"] == made.recipe.to_dict()


@pytest.mark.parametrize("suffix", [".keras", ".dlopt", ".tflite"])
def test_the_file_holds_what_was_trained(tmp_path, suffix):
    path = tmp_path / f"model{suffix}"
    made = dlopt.auto.train(
        network(), (X, Y), recipe="pruned-60", epochs=2, batch_size=30, path=path
    )
    assert made.bytes == path.stat().st_size
    wanted = made.model.predict(X, verbose=0)
    if suffix == ".tflite":
        found = dlopt.export.Predictor(path)(X)
    else:
        found = dlopt.report.load(path).predict(X, verbose=0)
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_a_rate_is_found_on_a_copy():
    model = network()
    before = model.get_weights()
    keras.utils.set_random_seed(0)
    batches = tf.data.Dataset.from_tensor_slices((X, Y)).batch(20)
    for data in ((X, Y), batches):
        found = dlopt.auto.find_rate(model, data, low=1e-4, high=10, batch_size=20)
        assert len(found.rates) == 100
        assert 1e-3 < found.suggestion < 5
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_data_that_does_not_fit():
    check = dlopt.auto.check_fits
    with pytest.raises(DataError, match=r"of shape \(6,\), and the data has \(5,\)"):
        check(network(), (X[:, :5], Y))
    with pytest.raises(DataError, match="takes one input of shape .* data has 2"):
        check(network(), ([X, X], Y))
    with pytest.raises(DataError, match="has 3 outputs, .* labels go from 1 to 3"):
        check(network(), (X, Y + 1))
    with pytest.raises(DataError, match=r"and the data has \(5,\)"):
        check(network(), tf.data.Dataset.from_tensors((X[:, :5], Y)))
    digits = dlopt.data.load("digits")
    with pytest.raises(DataError, match=r"the data has \(8, 8, 1\)"):
        check(network(), digits)
    check(network(), (X, Y), None, (X[..., None], Y), (X, X[:, :3]))
    images = keras.Sequential([keras.Input((None, None, 1)), L.Conv2D(2, 3)])
    check(images, digits, (digits.x_val[..., 0], digits.y_val))
    two = keras.Model([a := keras.Input((2,)), b := keras.Input((3,))], L.Add()([a, a]))
    assert b is not None
    with pytest.raises(DataError, match="takes 2 inputs, and the data has one"):
        check(two, (X, Y))
    check(two, ([X, X], Y % 2))  # shapes of several are left to Keras


@pytest.mark.advice("auto/fitting.py", "Give the data that it was trained on")
@pytest.mark.advice("auto/fitting.py", "Give that one alone, as an array.")
def test_data_made_to_fit():
    made = dlopt.auto.train(network(), (X, Y), epochs=1)
    assert made.accuracy is not None


@pytest.mark.advice("auto/named_recipes.py", "Take clustered-16, or more.")
@pytest.mark.advice("auto/named_recipes.py", "Pass the model: recipe(")
def test_names_made_right():
    with pytest.raises(ConfigError, match="Pass the model: recipe"):
        dlopt.recipe("int8")
    assert len(dlopt.recipe("int8", network()).entries) == 3
    assert dlopt.recipe("clustered-16").entries[0][1].clusters == 16


@pytest.mark.advice("auto/wanted.py", "Give the model from before, or")
def test_a_transformed_model_is_refused():
    small = dlopt.transform(network(), dlopt.recipe("pruned-50"))
    with pytest.raises(ModelError, match="is transformed already. Give the model from"):
        dlopt.auto.train(small, (X, Y), epochs=1)
    made = dlopt.auto.train(dlopt.finalize(small), (X, Y), epochs=1)
    assert made.steps == 3


@pytest.mark.advice("auto/by_recipe.py", "Make it first.")
def test_a_path_that_can_be_written(tmp_path):
    path = tmp_path / "new" / "a.keras"
    with pytest.raises(ConfigError, match="Make it first."):
        dlopt.auto.train(network(), (X, Y), epochs=1, path=path)
    with pytest.raises(ConfigError, match="the end of path must be"):
        dlopt.auto.train(network(), (X, Y), epochs=1, path="a.h5")
    path.parent.mkdir()
    dlopt.auto.train(network(), (X, Y), epochs=1, path=path)
    assert path.exists()


def test_a_file_of_keras_is_whole_or_absent(tmp_path):
    path = tmp_path / "none" / "a.keras"
    with pytest.raises(ConfigError, match="Nothing was changed"):
        dlopt.auto.save_keras(network(), path)
    assert list(tmp_path.iterdir()) == []
