import keras
import numpy as np
import pytest

import keras_dlopt as dlopt
from keras_dlopt.errors import ConfigError, ModelError
from keras_dlopt.surgery.hashing import HashedKernel, hashed_layers

L = keras.layers


def _small(**kwargs):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3))
    x = L.Conv2D(8, 3, strides=2, activation="relu", name="conv")(inputs)
    x = L.Flatten()(x)
    x = L.Dense(64, use_bias=False, name="big")(x)
    model = keras.Model(inputs, L.Dense(3, activation="softmax", name="top")(x))
    recipe = dlopt.Recipe(
        [(dlopt.named("kernel"), dlopt.HashedWeights(1 / 16, **kwargs))]
    )
    return dlopt.transform(model, recipe)


@pytest.mark.parametrize("signs", [True, False])
def test_a_file_holds_the_buckets_only(signs, tmp_path):
    small = _small(signs=signs, seed=3)
    x = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype("float32")
    small.compile("sgd", "sparse_categorical_crossentropy")
    small.fit(x, np.arange(4) % 3, verbose=0)
    plain, folded = dlopt.finalize(small), hashed_layers(small)
    np.testing.assert_array_equal(folded.predict_on_batch(x), plain.predict_on_batch(x))
    big = folded.get_layer("big")
    np.testing.assert_array_equal(
        keras.ops.convert_to_numpy(big.kernel()), plain.get_layer("big").kernel
    )
    path = tmp_path / "m.dlopt"
    ledger = dlopt.save_compressed(folded, path)
    whole = dlopt.save_compressed(plain, tmp_path / "plain.dlopt")
    assert ledger.plain_bytes < whole.plain_bytes / 12
    assert ledger.file_bytes < whole.file_bytes / 3
    again = dlopt.load_compressed(path)
    np.testing.assert_array_equal(again.predict_on_batch(x), plain.predict_on_batch(x))
    folded.compile("sgd", "sparse_categorical_crossentropy")
    folded.fit(x, np.arange(4) % 3, verbose=0)


def test_signs_let_a_bucket_stand_for_a_number_and_its_negative():
    layer = HashedKernel("Dense", 20, buckets=3, seed=1)
    layer.build((None, 10))
    layer.buckets.assign([1.0, 2.0, 3.0])
    found = set(keras.ops.convert_to_numpy(layer.kernel()).ravel().tolist())
    assert found == {-3.0, -2.0, -1.0, 1.0, 2.0, 3.0}


def test_what_is_refused():
    with pytest.raises(ModelError, match="takes a model with HashedWeights"):
        hashed_layers(keras.Sequential([keras.Input((4,)), L.Dense(4)]))
    with pytest.raises(ConfigError, match="kind must be one of"):
        HashedKernel("Conv9D", 4, buckets=2)
    model = keras.Sequential([keras.Input((8, 8, 4)), L.DepthwiseConv2D(3)])
    recipe = dlopt.Recipe([(dlopt.rank(4), dlopt.HashedWeights(0.5))])
    with pytest.raises(ConfigError, match="of a DepthwiseConv2D cannot be stored"):
        hashed_layers(dlopt.transform(model, recipe))


def test_the_recipe_takes_what_can_be_stored():
    x = keras.Input((5, 16))
    y = L.TimeDistributed(L.Dense(16, name="in"), name="time")(x)
    y = L.Conv1D(16, 3, groups=2, name="grouped")(L.LSTM(16, return_sequences=True)(y))
    inner = keras.Sequential([keras.Input((3, 16)), L.Dense(16, name="d")], name="sub")
    model = keras.Model(x, L.Conv1D(4, 2, name="conv")(inner(y)))
    recipe = dlopt.hashed_recipe(model, 1 / 4, signs=False, seed=2)
    ((selector, chosen),) = recipe.entries
    assert set(selector.paths) == {"sub/d/kernel", "conv/kernel"}
    assert chosen == dlopt.HashedWeights(1 / 4, signs=False, seed=2)
    small = dlopt.transform(model, recipe)
    batch = np.random.default_rng(0).normal(size=(2, 5, 16)).astype("float32")
    folded, whole = hashed_layers(small), dlopt.finalize(small)
    np.testing.assert_allclose(folded(batch), whole(batch), rtol=1e-5, atol=1e-6)
    assert folded.count_params() < model.count_params()
    ((selector, _),) = dlopt.hashed_recipe(model, select=dlopt.rank(3)).entries
    assert selector.paths == ("conv/kernel",)
    for path, text in (
        ("time/.*", "lies in a TimeDistributed, whose layers"),
        ("lstm.*", "of a LSTMCell cannot be stored.*knows the kernels of Conv1D"),
        ("nowhere", "meets no weight. Put HashedWeights"),
    ):
        with pytest.raises(ConfigError, match=text):
            dlopt.hashed_recipe(model, select=dlopt.matching(path))
    entry = (dlopt.matching("time/.*kernel"), dlopt.HashedWeights(0.25))
    with pytest.raises(ConfigError, match="lies in a TimeDist.*hashed_recipe"):
        hashed_layers(dlopt.transform(model, dlopt.Recipe([entry])))
