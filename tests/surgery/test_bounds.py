"""Interval arithmetic of channels, against the functions at many points."""

import keras
import numpy as np
import pytest

from keras_dlopt.surgery import bounds

NAMES = sorted({*bounds._MONOTONE, *bounds._VALLEYS} & set(dir(keras.activations)))
ENDS = [(-8.0, 8.0), (-2.0, 2.0), (-1.0, -0.25), (0.5, 3.0), (-0.5, 0.0)]


@pytest.mark.parametrize("name", NAMES)
def test_no_value_of_an_activation_is_out_of_its_bounds(name):
    function = getattr(keras.activations, name)
    for low, high in ENDS:
        x = np.linspace(low, high, 501, dtype="float32")
        y = keras.ops.convert_to_numpy(function(keras.ops.convert_to_tensor(x)))
        least, most = bounds.activated(function, np.array([low]), np.array([high]))
        assert least[0] <= y.min() + 1e-6
        assert most[0] >= y.max() - 1e-6


def test_a_valley_between_two_equal_ends_has_its_bottom():
    square = keras.ops.square
    least, most = bounds.through(square, np.array([-2.0]), np.array([2.0]), 0.0)
    assert (least[0], most[0]) == (0.0, 4.0)
    silu = keras.activations.silu
    least, _ = bounds.activated(silu, np.array([-9.0]), np.array([9.0]))
    assert least[0] == pytest.approx(-0.2785, abs=1e-4)
