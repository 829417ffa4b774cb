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
