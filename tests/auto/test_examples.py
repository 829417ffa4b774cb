"""Data sets as a given model takes them."""

import re

import keras
import numpy as np
import pytest

import keras_dlopt as dlopt
from keras_dlopt.auto import examples_for
from keras_dlopt.errors import DataError

L = keras.layers
CLASSES = 4


def _net(shape, *inside, units=CLASSES):
    """Names the place of the brightest of 4 pixels, of numbers from 0 to 1."""
    net = keras.Sequential([keras.Input(shape), *inside, L.Flatten(), L.Dense(units)])
    # A bias that numbers 255 times too small, or too large, do not overcome.
    net.layers[-1].set_weights(
        [8 * np.eye(4)[:, :units], np.array([3, 0, 0, 0][:units])]
    )
    return net


@pytest.fixture
def bytes_file(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 80, (200, 2, 2)).astype(np.uint8)
    y = np.arange(200) % CLASSES
    x.reshape(200, 4)[np.arange(200), y] += 170
    np.savez(tmp_path / "own.npz", x=x, y=y)
    return tmp_path / "own.npz"


def test_pixels_go_from_0_to_255_into_what_rescales(bytes_file):
    plain = examples_for(_net((2, 2, 1)), bytes_file)
    assert 0.9 < plain.x_train.max() <= 1
    assert plain.notes == ()
    inside = examples_for(_net((2, 2), L.Rescaling(1 / 255)), bytes_file)
    np.testing.assert_array_equal(inside.x_test, np.rint(plain.x_test * 255))
    assert inside.notes == ()
    adapted = L.Normalization(axis=None, mean=127.0, variance=100.0)
    assert examples_for(_net((2, 2, 1), adapted), bytes_file).x_train.max() > 200
    # Numbers of small size are no sign of bytes.
    small = L.Normalization(axis=None, mean=0.5, variance=0.1)
    assert examples_for(_net((2, 2, 1), small), bytes_file).x_train.max() <= 1


def test_pixels_are_as_the_model_is_right(bytes_file):
    """One that divides in a way that nobody sees from outside."""
    net = _net((2, 2, 1))
    hidden = L.Dense(4, "relu6")  # large numbers are all alike to it
    deep = keras.Sequential(
        [keras.Input((2, 2, 1)), L.Flatten(), hidden, net.layers[-1]]
    )
    hidden.set_weights([np.eye(4) / 255, np.zeros(4)])
    found = examples_for(deep, bytes_file)
    assert found.x_train.max() > 200
    assert re.fullmatch(
        "The pictures are given as numbers from 0 to 255, with which the model is "
        r"right on \d+% of 16 examples, not as 0 to 1 \(\d+%\)\.",
        *found.notes,
    )
    hidden.set_weights([np.eye(4) / 2, np.ones(4) / 2])
    centered = examples_for(deep, bytes_file)
    assert centered.x_train.min() == pytest.approx(-1, abs=0.05)


def test_a_model_that_is_right_by_chance_is_told(bytes_file):
    net = _net((2, 2, 1))
    net.layers[-1].set_weights([np.zeros((4, 4)), np.array([1.0, 0, 0, 0])])
    (note,) = examples_for(net, bytes_file).notes
    assert "always naming the same class" in note
    assert "If it is trained, these are not prepared as in its training" in note


def test_one_output_and_targets(tmp_path):
    x = np.linspace(0, 1, 60, dtype="float32")[:, None]
    net = keras.Sequential([keras.Input((1,)), L.Dense(1, "sigmoid")])
    net.layers[-1].set_weights([np.array([[9.0]]), np.array([-4.5])])
    np.savez(tmp_path / "two.npz", x=x, y=(x[:, 0] > 0.5).astype(int))
    assert examples_for(net, tmp_path / "two.npz").notes == ()
    np.savez(tmp_path / "price.npz", x=x, y=x[:, 0] * 3.3)
    assert examples_for(net, tmp_path / "price.npz").classes == 0


def test_pictures_get_the_size_and_form_of_the_input(tmp_path):
    from PIL import Image

    for name, level in (("dark", 20), ("light", 220)):
        (tmp_path / name).mkdir()
        for i in range(10):
            Image.new("L", (6 + i, 8), level).save(tmp_path / name / f"{i}.png")
    size = keras.Sequential([keras.Input((4, 4, 1)), L.Flatten(), L.Dense(2)])
    assert examples_for(size, tmp_path).input_shape == (4, 4, 1)
    digits = dlopt.data.load("digits")
    flat = keras.Sequential([keras.Input((64,)), L.Dense(10)])
    np.testing.assert_array_equal(
        examples_for(flat, "digits").x_test, digits.x_test.reshape(-1, 64)
    )


@pytest.mark.advice("auto/fitting.py", "Give a dict or a list of arrays as x; on the")
def test_what_does_not_fit_is_refused(bytes_file):
    with pytest.raises(
        DataError, match=r"of shape \(5,\), and the data has \(2, 2, 1\)"
    ):
        examples_for(keras.Sequential([keras.Input((5,)), L.Dense(4)]), bytes_file)
    one, two = keras.Input((2, 2)), keras.Input((2, 2))
    both = keras.Model([one, two], L.Dense(4)(L.Flatten()(L.Add()([one, two]))))
    with pytest.raises(DataError, match="takes 2 inputs, and the data has one"):
        examples_for(both, bytes_file)
    x, y = np.zeros((3, 2, 2)), np.zeros(3, int)
    dlopt.auto.check_fits(both, ([x, x], y))
