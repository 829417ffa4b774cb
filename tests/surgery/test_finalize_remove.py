"""Masks of whole filters become smaller layers when a model is finalized."""

import keras
import numpy as np
import pytest
from keras import layers as L

import keras_dlopt as dlopt
from keras_dlopt.transforms.finalize import finalize as baked
from support.removing import randomized, relative


def masked_model(padding, share=0.5, **norm):
    model = keras.Sequential(
        [
            keras.Input((9, 9, 3)),
            L.Conv2D(8, 3, name="a", use_bias=False),
            L.BatchNormalization(name="norm", **norm),
            L.ReLU(),
            L.Conv2D(6, 3, name="b", padding=padding),
        ]
    )
    randomized(model)
    rule = dlopt.Prune(share, pattern=dlopt.prune.Filters())
    small = dlopt.transform(model, dlopt.Recipe([(dlopt.at("a/kernel"), rule)]))
    small.compile("sgd", "mse")
    return small


def batch():
    return np.random.default_rng(3).normal(size=(4, 9, 9, 3)).astype("float32")


def test_masked_filters_leave_and_outputs_stay():
    model = masked_model("valid")
    whole, small = dlopt.finalize(model), dlopt.finalize(model, remove=True)
    assert small.get_layer("a").filters == 4
    assert small.get_layer("b").kernel.shape[2] == 4
    assert small.get_layer("norm").gamma.shape == (4,)
    assert relative(whole(batch()), small(batch())) < 1e-5
    assert relative(model(batch()), small(batch())) < 1e-5


@pytest.mark.advice("surgery/finalizing.py", "Fit the smaller model for some steps")
def test_constants_in_front_of_padding_change_the_border_alone():
    model = masked_model("same")
    whole = dlopt.finalize(model)
    with pytest.warns(UserWarning, match=r"padding of \['b'\]: outputs change.*Fit"):
        small = dlopt.finalize(model, remove=True)
    assert small.get_layer("a").filters == 4
    one, other = (np.array(net(batch())) for net in (whole, small))
    inside = (slice(None), slice(1, -1), slice(1, -1))
    assert relative(one[inside], other[inside]) < 1e-5
    assert relative(one, other) > 1e-3
    small.get_layer("norm").trainable = False
    small.compile(keras.optimizers.Adam(1e-3), "mse")
    small.fit(batch(), one, epochs=50, verbose=0)
    mended = np.array(small(batch()))
    assert np.square(one - mended).mean() < np.square(one - other).mean()
    assert dlopt.finalize(model, remove=False).get_layer("a").filters == 8


def test_zeros_in_front_of_padding_are_no_change():
    model = masked_model("same", center=False)
    model.model.get_layer("norm").moving_mean.assign(np.zeros(8))
    whole, small = dlopt.finalize(model), dlopt.finalize(model, remove=True)
    assert small.get_layer("a").filters == 4
    assert relative(whole(batch()), small(batch())) < 1e-5


def test_a_sum_needs_masks_on_both_sides():
    x = keras.Input((6,))
    one = L.Dense(8, name="one", use_bias=False)(x)
    two = L.Dense(8, name="two", use_bias=False)(x)
    model = randomized(keras.Model(x, L.Dense(2)(L.Add()([one, two]))))
    for name, count in (("one", 3), ("two", 5)):
        kernel = np.array(model.get_layer(name).kernel)
        kernel[:, :count] *= 1e-3  # these are masked
        model.get_layer(name).kernel.assign(kernel)
    rules = [
        (dlopt.at(f"{n}/kernel"), dlopt.Prune(s, pattern=dlopt.prune.Filters()))
        for n, s in (("one", 3 / 8), ("two", 5 / 8))
    ]
    masked = dlopt.transform(model, dlopt.Recipe(rules))
    small = dlopt.finalize(masked, remove=True)
    assert [small.get_layer(n).units for n in ("one", "two")] == [5, 5]
    x = np.random.default_rng(0).normal(size=(5, 6)).astype("float32")
    assert relative(baked(masked)(x), small(x)) < 1e-5
