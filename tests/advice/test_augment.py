"""What augmentation advises, followed."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_dlopt import runtime
from keras_dlopt.data import augment

advice = pytest.mark.advice
L = keras.layers
X, Y = np.zeros((8, 4, 4, 1), "float32"), np.arange(8) % 3


@advice("data/augment/pipeline.py", "Give classes=... to make them so.")
def test_labels_to_be_mixed(told):
    with told():
        augment.augmented((X, Y), L.MixUp(), batch_size=4)
    data = augment.augmented((X, Y), L.MixUp(), batch_size=4, classes=3)
    assert next(iter(data))[1].shape == (4, 3)


@advice("data/augment/pipeline.py", "Give a random layer of keras.layers, or a functi")
def test_layers_that_draw_nothing(told):
    with told():
        augment.augmented((X, Y), L.Rescaling(2.0), batch_size=4)
    for policy in (L.RandomFlip(), lambda x, seed: 2 * x):
        data = augment.augmented((X, Y), policy, batch_size=4)
        assert next(iter(data))[0].shape == (4, 4, 4, 1)


@advice("data/augment/averaging.py", "Train the model inside, and wrap it afterwards.")
def test_averaging_is_not_trained(told):
    model = keras.Sequential([keras.Input((4, 4, 1)), L.Flatten(), L.Dense(3)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    averaged = augment.TestTimeAugmentation(model)
    with told():
        averaged.fit(X, Y)
    model.compile("sgd", loss)
    model.fit(X, Y, verbose=0)
    assert augment.TestTimeAugmentation(model).predict(X, verbose=0).shape == (8, 3)


@advice(
    "data/augment/inside.py", "Put layers of Keras, such as RandAugment, into the m"
)
def test_layers_of_keras_stand_in_the_model(told):
    with told():
        augment.AugmentationLayer(L.RandAugment(value_range=(0, 1)))
    layers = [L.RandAugment(value_range=(0, 1)), L.Flatten(), L.Dense(3)]
    model = keras.Sequential([keras.Input((4, 4, 1)), *layers])
    assert model(X, training=True).shape == (8, 3)


@advice("data/augment/inside.py", "Use keras.layers.RandAugment there.")
def test_augmenting_on_another_backend(told, monkeypatch):
    layer = augment.AugmentationLayer()
    monkeypatch.setattr(runtime, "on_tensorflow", lambda: False)
    with told():
        layer(X, training=True)
    made = L.RandAugment(value_range=(0, 1))(X, training=True)
    assert made.shape == X.shape


@advice("data/augment/trivial.py", "Give the policy the largest value that yours have")
def test_images_on_another_scale(told):
    images = 255 * np.ones((4, 4, 4, 1), "float32")
    with told(tf.errors.InvalidArgumentError):
        augment.TrivialAugment()(images, seed=(0, 0))
    made = augment.TrivialAugment(most=255.0)(images, seed=(0, 0))
    assert made.shape == images.shape
