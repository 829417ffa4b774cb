"""Which matrix products a layer has, by its class and equation."""

import keras
import numpy as np
import pytest
from keras import layers as L

from keras_dlopt.tpu.padding import Product
from keras_dlopt.tpu.watching import Watched


@pytest.mark.parametrize(
    ("layer", "shape", "products"),
    [
        (L.Dense(3, name="a"), (5,), [(5, 3, 30.0)]),
        (L.Conv2D(3, 2, name="a"), (4, 4, 5), [(20, 3, 2.0 * 20 * 3 * 9)]),
        (L.Conv2DTranspose(3, 2, name="a"), (2, 2, 5), [(20, 3, 2.0 * 20 * 3 * 9)]),
        (L.DepthwiseConv2D(2, name="a"), (4, 4, 5), []),
        (L.SeparableConv2D(3, 2, name="a"), (4, 4, 5), [(5, 3, 2.0 * 5 * 3 * 9)]),
        (
            L.EinsumDense("abc,cde->abde", (None, 2, 3), name="a"),
            (4, 5),
            [(5, 6, 2.0 * 5 * 6 * 4)],
        ),
        (L.EinsumDense("...x,xy->...y", 3, name="a"), (5,), [(5, 3, 30.0)]),
    ],
)
def test_products(layer, shape, products):
    net = keras.Sequential([keras.Input(shape), layer])
    watched = Watched(net)
    net(np.zeros((1, *shape), "float32"))
    assert watched.products() == [Product("a", *found) for found in products]


def test_the_layer_that_fails_is_named():
    class Broken(L.Layer):
        def call(self, x):
            if getattr(self, "breaks", False):
                raise ValueError("broken")
            return x

    broken = Broken(name="b")
    inner = keras.Sequential([keras.Input((2,)), broken], name="inner")
    net = keras.Sequential([keras.Input((2,)), inner])
    watched, broken.breaks = Watched(net), True
    with pytest.raises(ValueError, match="broken"):
        net(np.zeros((1, 2), "float32"))
    assert watched.failed == "inner/b"
