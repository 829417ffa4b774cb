"""Blocks opened into layers: the same function, and channels that may leave."""

import typing

import keras
import numpy as np
import pytest
from keras import layers as L
from keras import ops

import keras_dlopt as dlopt
from keras_dlopt import layers as own
from keras_dlopt.errors import ModelError
from keras_dlopt.surgery import dependencies, opened, prune_channels
from keras_dlopt.surgery.removal import without
from support.removing import drawn, masked, randomized, relative


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


@keras.saving.register_keras_serializable("opening")
class Swish(L.Layer):
    """No layer inside."""

    def call(self, inputs):
        return inputs * ops.sigmoid(inputs)


@keras.saving.register_keras_serializable("opening")
class Block(L.Layer):
    """Two convolutions, a block inside, and a sum."""

    def __init__(self, filters=6, **kwargs):
        super().__init__(**kwargs)
        self.filters = filters
        self.conv = L.Conv2D(filters, 3, padding="same")
        self.norm = L.BatchNormalization()
        self.act = Swish()
        self.last = L.Conv2D(4, 1)

    def build(self, shape):
        self.conv.build(shape)
        self.norm.build((*shape[:-1], self.filters))
        self.last.build((*shape[:-1], self.filters))

    def call(self, inputs, training=None):
        y = self.act(self.norm(self.conv(inputs), training=training))
        return inputs + self.last(y)

    def get_config(self):
        return super().get_config() | {"filters": self.filters}


@keras.saving.register_keras_serializable("opening")
class Net(keras.Model):
    """A subclassed model with models inside."""

    def __init__(self, depth=1, **kwargs):
        super().__init__(**kwargs)
        self.depth = depth
        self.stem = keras.Sequential([L.Conv2D(4, 3), Block(name="block")])
        self.inner = Net(depth - 1) if depth else Block()
        self.pool = L.Conv2D(4, 1)

    def call(self, inputs, training=None):
        y = self.inner(self.stem(inputs, training=training), training=training)
        return self.pool(y)

    def get_config(self):
        return {"depth": self.depth}


@keras.saving.register_keras_serializable("opening")
class Own(L.Layer):
    """Has a weight of its own."""

    def build(self, shape):
        self.factor = self.add_weight(shape=(), initializer="ones")

    def call(self, inputs):
        return inputs * self.factor


@keras.saving.register_keras_serializable("opening")
class Noisy(L.Layer):
    """Does something else in training."""

    def call(self, inputs, training=None):
        return ops.relu(inputs) if training else inputs


@keras.saving.register_keras_serializable("opening")
class Losing(L.Layer):
    """Adds a loss."""

    def call(self, inputs):
        self.add_loss(ops.mean(inputs))
        return 2 * inputs


@keras.saving.register_keras_serializable("opening")
class Counting(L.Layer):
    """Counts its calls."""

    calls: typing.ClassVar = []

    def call(self, inputs):
        self.calls.append(1)
        return inputs * len(self.calls)


def pruned_as_masked(model, x, free):
    new = opened(model)
    assert relative(model(x), new(x)) < 1e-5
    assert new.count_params() == model.count_params()
    found = dependencies(new)
    assert len(found.free) == free
    gone = drawn(found, 0.5, np.random.default_rng(0))
    small = without(found, gone)
    assert relative(masked(new, found, gone)(x), small(x)) < 1e-5
    assert small.count_params() < new.count_params()
    return new


def test_a_block_in_a_sequential_model(tmp_path):
    model = randomized(
        keras.Sequential([keras.Input((6, 6, 4)), Block(name="a"), Block(name="b")])
    )
    before = [w.numpy() for w in model.weights]
    held = dependencies(model)
    assert held.free == ()
    advice = "no rule for Block (surgery.opened takes it apart where its call can be"
    assert any(pin.reason.startswith(advice) for pin in held.pinned)
    new = pruned_as_masked(model, numbers(2, 6, 6, 4), free=12)
    assert {"a_conv2d", "b_conv2d"} <= {la.name.rsplit("_", 1)[0] for la in new.layers}
    assert all(
        (w.numpy() == b).all() for w, b in zip(model.weights, before, strict=True)
    )
    new.save(tmp_path / "new.keras")
    again = keras.saving.load_model(tmp_path / "new.keras")
    assert relative(again(numbers(2, 6, 6, 4)), model(numbers(2, 6, 6, 4))) < 1e-5


@keras.saving.register_keras_serializable("opening")
class Plain(Block):
    """Does not take `training`."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.norm = L.Identity()

    def build(self, shape):
        self.conv.build(shape)
        self.last.build((*shape[:-1], self.filters))

    def call(self, inputs):
        return inputs + self.last(self.act(self.conv(inputs)))


@keras.saving.register_keras_serializable("opening")
class Around(L.Layer):
    """Hands `training` on all the same, as Keras allows."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.inner = Plain(name="inner")

    def build(self, shape):
        self.inner.build(shape)

    def call(self, inputs, training=None):
        return self.inner(inputs, training=training)


def test_training_is_handed_to_a_block_that_does_not_take_it():
    model = randomized(keras.Sequential([keras.Input((6, 6, 4)), Around(name="a")]))
    pruned_as_masked(model, numbers(2, 6, 6, 4), free=6)


def test_subclassed_models_in_subclassed_models():
    model = Net()
    model(numbers(1, 12, 12, 3))
    randomized(model)
    # stems of 4 with the blocks' inputs, 3 blocks of 6; the last one is the output
    pruned_as_masked(model, numbers(2, 12, 12, 3), free=4 + 4 + 3 * 6 + 4)


def test_blocks_of_this_package():
    x = keras.Input((8, 8, 3))
    y = own.BasicBlock(6, strides=2)(own.BasicBlock(6)(x))
    y = own.SqueezeExcitation()(own.BottleneckBlock(2)(y))
    y = L.Dense(3)(L.GlobalAveragePooling2D()(y))
    model = randomized(keras.Model(x, y))
    new = opened(model)
    x = numbers(2, 8, 8, 3)
    assert relative(model(x), new(x)) < 1e-5
    small, _ = prune_channels(new, parameters=0.6, multiple=2)
    assert small.count_params() <= 0.6 * model.count_params()


@pytest.mark.parametrize("kind", [Own, Noisy, Losing])
def test_what_cannot_be_opened_stays(kind):
    model = keras.Sequential([keras.Input((4,)), L.Dense(4), kind(), Swish()])
    new = opened(model)
    assert any(type(layer) is kind for layer in new.layers)
    assert not any(type(layer) is Swish for layer in new.layers)
    x = numbers(2, 4)
    assert relative(model(x, training=True), new(x, training=True)) < 1e-6
    assert len(new.losses) == len(model.losses) == (kind is Losing)


@pytest.mark.advice("surgery/opening.py", "Write it with layers and weights")
def test_a_function_that_changes_by_itself_is_refused():
    model = keras.Sequential([keras.Input((4,)), L.Dense(4), Counting()])
    with pytest.raises(ModelError, match="outputs differ by.*layers and weights"):
        opened(model)
    layers = [L.Dense(4), Own(), L.Rescaling(2.0)]
    assert len(opened(keras.Sequential([keras.Input((4,)), *layers])).layers) == 4


@pytest.mark.advice("surgery/opening.py", "Give example=, a batch of inputs.")
def test_a_model_of_unknown_size_is_compared_on_an_example():
    inputs = keras.Input((None, None, 3))
    y = L.Conv2D(4, 5)(inputs)
    model = keras.Model(inputs, L.GlobalAveragePooling2D()(Block()(y)))
    with pytest.raises(ModelError, match="does not run on random.*Give example="):
        opened(model)
    new = opened(model, example=numbers(1, 8, 8, 3))
    assert len(dependencies(new).free) == 6


@keras.saving.register_keras_serializable("opening")
class Looks(keras.Model):
    """Looks at values."""

    def __init__(self, plain=False, **kwargs):
        super().__init__(**kwargs)
        self.plain, self.dense = plain, L.Dense(2)

    def build(self, shape):
        self.dense.build(shape)

    def call(self, inputs):
        y = self.dense(inputs)
        return y if self.plain or float(ops.sum(y)) > 0 else -y

    def get_config(self):
        return {"plain": self.plain}


@pytest.mark.advice("graph/opening.py", "keras.ops only and without a branch")
def test_a_call_that_looks_at_values_is_refused():
    x = numbers(2, 3)
    for plain in (False, True):
        model = Looks(plain)
        model(x)
        if plain:
            assert relative(model(x), opened(model, example=x)(x)) < 1e-6
            continue
        with pytest.raises(ModelError, match="fails on symbolic.*keras.ops only"):
            opened(model, example=x)


def test_compiled_state_goes_over_and_it_trains():
    model = keras.Sequential([keras.Input((6, 6, 4)), Block(), L.Flatten(), L.Dense(2)])
    model.compile("sgd", "mse")
    new = opened(model)
    small, _ = dlopt.prune_channels(new, parameters=0.8, multiple=1)
    history = small.fit(numbers(4, 6, 6, 4), numbers(4, 2), verbose=0).history
    assert np.isfinite(history["loss"]).all()
