"""Whole residual blocks leave: which can, which do, and what is left."""

import keras
import numpy as np
import pytest
from keras import layers as L

from keras_dlopt import models
from keras_dlopt.errors import ConfigError
from keras_dlopt.surgery import remove_blocks
from support.removing import randomized, relative


def stack(scales, order=(0, 1)):
    """Blocks x + s * f(x), the shortcut first or second in the sum."""
    x = keras.Input((6,))
    y = L.Dense(5, name="stem")(x)
    for i, scale in enumerate(scales):
        inner = L.Dense(5, name=f"f{i}", activation="tanh")(y)
        pair = [y, L.Rescaling(scale, name=f"s{i}")(inner)]
        y = L.Add(name=f"sum{i}")([pair[j] for j in order])
    return randomized(keras.Model(x, L.Dense(2, name="head")(y)))


def batch(count=16, size=6):
    return np.random.default_rng(0).normal(size=(count, size)).astype("float32")


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_the_blocks_that_change_least_leave(order):
    model, x = stack([1.0, 0.01, 0.3], order), batch()
    small, blocks = remove_blocks(model, count=2, data=x)
    assert [block.name for block in blocks] == ["sum1", "sum2", "sum0"]
    assert blocks[0].layers == ("f1", "s1")
    names = [layer.name for layer in small.layers[1:]]
    assert names == ["stem", "f0", "s0", "sum0", "head"]
    stem, f, head = (model.get_layer(n) for n in ("stem", "f0", "head"))
    y = stem(x)
    assert relative(head(y + f(y)), small(x)) < 1e-6
    made = np.array(y + f(y), "float64")
    taken = np.array(y, "float64")
    cosine = (made * taken).sum(1) / np.linalg.norm(made, axis=1)
    cosine = cosine / np.linalg.norm(taken, axis=1)
    influence = {block.name: block.influence for block in blocks}
    assert influence["sum0"] == pytest.approx(1 - cosine.mean(), rel=1e-4)


def test_blocks_whose_body_is_read_elsewhere_or_changes_shape_stay():
    x = keras.Input((6,))
    inner = L.Dense(6, name="read")(x)
    y = L.Add(name="kept")([x, inner])
    y = L.Concatenate()([y, inner])  # the body is read here, too
    wide = L.Dense(4, name="project")(y)
    y = L.Add(name="changes")([wide, L.Dense(4)(y)])
    y = L.Add(name="free")([L.Dense(4)(L.ReLU()(y)), y])
    model = randomized(keras.Model(x, [L.Dense(2)(y), y]))
    small, blocks = remove_blocks(model, count=1, data=batch())
    assert [block.name for block in blocks] == ["free"]
    assert "free" not in [layer.name for layer in small.layers]


@pytest.mark.advice("surgery/blocks.py", "Lower count, or make layers smaller")
def test_there_are_only_so_many():
    model = stack([1.0])
    with pytest.raises(
        ConfigError, match="has 1 residual blocks that can leave.*Lower"
    ):
        remove_blocks(model, count=2, data=batch())
    remove_blocks(model, count=1, data=batch())
    with pytest.raises(ConfigError, match="count must be"):
        remove_blocks(model, count=0, data=batch())


def test_a_residual_network_loses_blocks_and_is_measured_anew():
    model = randomized(models.resnet(depth=14, width=4, input_shape=(8, 8, 3)))
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    x = np.random.default_rng(0).normal(size=(16, 8, 8, 3)).astype("float32")
    y = np.arange(16) % 10
    small, blocks = remove_blocks(model, count=2, data=(x, y), batch_size=16)
    assert len(blocks) == 4  # two a stage, the first of two stages changes the size
    gone = {name for block in blocks[:2] for name in block.layers}
    left = {layer.name for layer in small.layers}
    assert not gone & left
    assert small.compiled
    first = small.layers[1]
    made = np.array(first(x), "float64").reshape(-1, 4)
    np.testing.assert_allclose(
        small.layers[2].moving_mean, made.mean(axis=0), rtol=0, atol=1e-5
    )
    small.fit(x, y, verbose=0)


def test_a_network_deeper_than_pythons_stack():
    x = y = keras.Input((3,))
    scale = L.Rescaling(1e-3)
    for i in range(700):
        y = L.Add(name=f"sum{i}")([y, scale(y)])
    model = keras.Model(x, y)
    small, blocks = remove_blocks(model, count=1, data=batch(2, 3))
    assert len(blocks) == 700
    assert len(small.layers) == len(model.layers) - 1
