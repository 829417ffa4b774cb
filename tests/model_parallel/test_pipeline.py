"""A pipeline on one device: batches that do not divide, and what it refuses."""

import keras
import numpy as np
import pytest

from keras_dlopt.errors import DataError, ModelError
from keras_dlopt.model_parallel import Layout, Pipeline, SplitTrainer

RNG = np.random.default_rng(0)
X = RNG.normal(size=(22, 6)).astype("float32")
Y = RNG.integers(0, 3, 22).astype("int32")
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def net():
    keras.utils.set_random_seed(1)
    dense = keras.layers.Dense(8, "gelu", kernel_regularizer="l2")
    return keras.Sequential([keras.Input((6,)), dense, keras.layers.Dense(3)])


def piped(micro_batches=3):
    made = Pipeline(net(), devices=["CPU:0", "CPU:0"], micro_batches=micro_batches)
    made.compile(keras.optimizers.SGD(0.1), LOSS)
    return made


def test_micro_batches_that_differ_count_by_examples():
    plain, split = net(), piped()
    plain.compile(keras.optimizers.SGD(0.1), LOSS)
    options = {"batch_size": 8, "epochs": 2, "shuffle": False, "verbose": 0}
    left = plain.fit(X, Y, **options).history
    right = split.fit(X, Y, **options).history
    np.testing.assert_allclose(left["loss"], right["loss"], rtol=1e-5)
    for a, b in zip(plain.get_weights(), split.get_weights(), strict=True):
        # Two orders of adding up float32 numbers of size 1.
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_a_weight_that_was_frozen_stays_as_it_is():
    model = net()
    model.layers[0].kernel.trainable = False
    before = model.get_weights()
    split = Pipeline(model, devices=["CPU:0", "CPU:0"], micro_batches=2)
    split.compile(keras.optimizers.SGD(0.1), LOSS)
    split.fit(X, Y, batch_size=8, verbose=0)
    after = split.model.get_weights()
    np.testing.assert_array_equal(after[0], before[0])
    assert all(np.any(a != b) for a, b in zip(after[1:], before[1:], strict=True))


def test_a_batch_of_fewer_examples_than_parts_is_refused():
    text = "must have an example for each of the 3 micro-batches"
    with pytest.raises(DataError, match=f"{text}.*Received: a batch of 2"):
        piped().train_on_batch(X[:2], Y[:2])
    with pytest.raises(Exception, match=text):
        piped().fit(X[:10], Y[:10], batch_size=8, verbose=0)


def test_a_pipeline_says_what_to_save(tmp_path):
    with pytest.raises(ModelError, match="Save its `model`, an ordinary model"):
        piped().save(tmp_path / "piped.keras")
    piped().model.save(tmp_path / "plain.keras")


def test_split_training_takes_pairs_and_says_so():
    model = net()
    model.compile("sgd", LOSS)
    trainer = SplitTrainer(model, Layout({"batch": 1}))
    with pytest.raises(DataError, match="without weights. Received: tuple of 3 parts"):
        trainer.fit([(X, Y, Y)])
    with pytest.raises(DataError, match="no batch in epoch 2. A generator gives"):
        trainer.fit(((X, Y) for _ in range(1)), epochs=2)
