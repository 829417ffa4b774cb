"""What transfer advises, followed."""

import keras
import numpy as np
import pytest

from keras_dlopt import (
    FakeQuant,
    HashedWeights,
    Prune,
    Recipe,
    Share,
    adapt,
    at,
    finalize,
    hashed_layers,
    load_compressed,
    matching,
    named,
    optimizers,
    save_compressed,
    shared_layers,
    shared_recipe,
    transform,
)
from keras_dlopt.errors import FormatError, ModelError
from keras_dlopt.graph.rebuilding import rebuilt

advice = pytest.mark.advice
L = keras.layers
X = np.random.default_rng(0).normal(size=(8, 6)).astype("float32")
Y = np.arange(8) % 2
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def net(width=6):
    return keras.Sequential(
        [keras.Input((6,)), L.Dense(width, name="a"), L.Dense(2, name="c")]
    )


def images():
    inputs = keras.Input((6, 6, 1))
    x = L.Conv2D(2, 3, name="conv")(inputs)
    return keras.Model(inputs, L.Dense(2, name="c")(L.Flatten(name="flat")(x)))


def fit(model, *callbacks, optimizer="sgd", epochs=1):
    if optimizer is not None:
        model.compile(optimizer, LOSS)
    model.fit(X, Y, epochs=epochs, verbose=0, callbacks=[*callbacks])


@advice("adapt/head.py", "Put the head on finalize(model), or on the model before")
def test_a_head_on_a_transformed_model(told):
    half = Recipe([(named("kernel"), Prune(0.5))])
    small = transform(net(), half)
    with told():
        adapt.new_head(small, 3)
    small.update_transforms(0)
    assert adapt.new_head(finalize(small), 3).output_shape == (None, 3)
    transform(adapt.new_head(net(), 3), half)


@advice("adapt/head.py", "Give at=, the name of one or the path of a layer.")
@advice("adapt/head.py", "Give at= a layer with one.")
def test_a_head_on_several_outputs(told):
    inputs = keras.Input((6,))
    x = L.Dense(3, name="d")(inputs)
    both = L.LSTM(3, return_state=True, name="rnn")(L.Reshape((3, 1), name="r")(x))
    model = keras.Model(inputs, {"a": both[0], "b": L.Dense(2)(both[1])})
    with told():
        adapt.new_head(model, 3)
    for place in ("a", "d"):
        assert adapt.new_head(model, 3, at=place).output_shape == (None, 3)
    with told():
        adapt.new_head(model, 3, at="rnn")
    assert adapt.new_head(model, 3, at="r").output_shape == (None, 3)


@advice("adapt/head.py", "Give at= the layer itself or one before it.")
def test_a_head_inside_of_a_layer(told):
    class Block(keras.layers.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.inner = L.Dense(3, name="inner")

        def build(self, input_shape=None):
            self.inner.build(input_shape)

        def call(self, x):
            return self.inner(x)

    with keras.saving.custom_object_scope({"Block": Block}):
        inputs = keras.Input((6,))
        model = keras.Model(inputs, L.Dense(2)(Block(name="block")(inputs)))
        with told():
            adapt.new_head(model, 3, at="block/inner")
        assert adapt.new_head(model, 3, at="block").output_shape == (None, 3)


@advice("adapt/head.py", "Give a number of classes, or another layer at=.")
def test_a_head_that_does_not_take_the_features(told):
    with told():
        adapt.new_head(images(), L.Conv2D(3, 3))
    adapt.new_head(images(), 3)
    adapt.new_head(images(), L.Conv2D(3, 3), at="conv")


@advice("graph/symbolic.py", "Write the branch as a layer that looks at training")
def test_a_model_that_branches_on_training(told):
    class Twice(keras.layers.Layer):
        def build(self, input_shape=None):
            pass

        def call(self, x, training=None):
            return 2 * x if training else x

    class Branching(keras.Model):
        def __init__(self, twice=False, **kwargs):
            super().__init__(**kwargs)
            self.twice, self.a, self.c = twice, L.Dense(3), L.Dense(2)
            self.layer = Twice()

        def build(self, input_shape=None):
            self.a.build(input_shape)
            self.c.build((None, 3))

        def call(self, x, training=False):
            x = self.a(x)
            if self.twice:
                return self.c(self.layer(x))
            return self.c(2 * x if training else x)

        def get_config(self):
            return {"twice": self.twice}

    model, mended = Branching(), Branching(twice=True)
    model(X), mended(X)
    with told():
        adapt.new_head(model, 3)
    tuned = adapt.new_head(mended, 3)
    assert np.any(np.asarray(tuned(X, training=True)) != tuned(X, training=False))


@advice("adapt/labels.py", "Make the head with new_head(model, Labels(y)), and encode")
@advice("adapt/labels.py", "Leave these examples out, or make Labels of all labels and")
@advice("adapt/labels.py", "Make the head with new_head(model, labels).")
def test_labels_beyond_the_head(told):
    y = np.array([3, 5, 9])
    with told():
        adapt.check_labels(net(), y)
    labels = adapt.Labels(y)
    model = adapt.new_head(net(), labels)
    adapt.check_labels(model, labels.encode(y))
    with told():
        adapt.Labels(y[:2]).encode(y)
    assert adapt.Labels(y[:2]).encode(y[y != 9]).tolist() == [0, 1]
    assert labels.encode(y).tolist() == [0, 1, 2]
    with told():
        labels.decode(net()(X))
    assert set(labels.decode(model(X))) <= {3, 5, 9}


@advice("adapt/labels.py", "Make the head with new_head(model, {}).")
@advice("adapt/labels.py", "Check the labels of each output by themselves.")
def test_labels_of_another_width(told):
    with told():
        adapt.check_labels(net(), np.eye(4))
    adapt.check_labels(adapt.new_head(net(), 4), np.eye(4))
    inputs = keras.Input((6,))
    many = keras.Model(inputs, [L.Dense(2)(inputs), L.Dense(3)(inputs)])
    with told():
        adapt.check_labels(many, Y)
    adapt.check_labels(keras.Model(inputs, many.outputs[0]), Y)


@advice("adapt/lora.py", "Lower the rank, or train these weights as they are.")
@advice("adapt/lora.py", "Use transform(model, lora_recipe(model, rank)), which")
def test_lora_where_it_does_not_serve(told):
    with told():
        adapt.lora_recipe(net(), 3)
    adapt.lora_recipe(net(), 2)
    assert transform(net(), Recipe()).trainable_variables
    depthwise = keras.Sequential(
        [keras.Input((9, 9, 8)), L.SeparableConv2D(8, 3), L.Flatten(), L.Dense(2)]
    )
    with told():
        adapt.enable_lora(depthwise, 1, select=named("pointwise_kernel"))
    recipe = adapt.lora_recipe(depthwise, 1, select=named("pointwise_kernel"))
    assert transform(depthwise, recipe).trainable_variables


@advice("adapt/moved.py", "Compare a model with the one that it was made of.")
@advice("adapt/normalization.py", "Give more inputs of the new data.")
@advice("adapt/places.py", "Give the weights by selectors.")
@advice("adapt/rates.py", "Leave groups out for a group a kernel.")
def test_models_that_cannot_be_compared_or_ordered(told):
    with told():
        adapt.moved(images(), keras.Sequential([keras.Input((6,)), L.Dense(2)]))
    adapt.moved(net(), adapt.new_head(net(), 3))
    flat = keras.Sequential([keras.Input((6,)), L.BatchNormalization(name="n")])
    with told():
        adapt.adapt_statistics(flat, X[:1])
    adapt.adapt_statistics(flat, X)
    with told():
        adapt.layer_rates(flat)
    assert (
        len(adapt.layer_rates(flat, 0.5, groups=[named("beta"), named("gamma")])) == 1
    )
    with told():
        adapt.layer_rates(net(), groups=[])
    adapt.layer_rates(net())


@advice("adapt/places.py", "Write for example keras_dlopt.named('kernel').")
@advice("adapt/unfreezing.py", "Write for example keras_dlopt.matching('block2/.*').")
@advice("transforms/low_rank_delta.py", "Select kernels only: named('kernel').")
def test_selectors(told):
    with told():
        adapt.lora_recipe(net(), 1, select="kernel")
    adapt.lora_recipe(net(), 1, select=named("kernel"))
    with told():
        adapt.GradualUnfreezing([(1, "a/kernel")])
    adapt.GradualUnfreezing([(1, matching("block2/.*"))])
    with told():
        transform(net(), Recipe([(named("bias"), adapt.LowRankDelta(1))]))
    transform(net(), Recipe([(named("kernel"), adapt.LowRankDelta(1))]))
    adapt.Frozen() >> FakeQuant(bits=8)


@advice("adapt/unfreezing.py", "Set trainable = True on them, compile again, and leave")
@advice("adapt/unfreezing.py", "Freeze layers yourself and call compile and fit once a")
@advice("adapt/unfreezing.py", "Use keras_dlopt.optimizers.{}, which counts")
def test_stages(told, monkeypatch):
    unfreezing = adapt.GradualUnfreezing([(1, matching("a/.*"))])
    model = net()
    model.layers[0].trainable = False
    with told():
        fit(model, unfreezing)
    model.layers[0].trainable = True
    fit(model, unfreezing, optimizer=optimizers.Adam(), epochs=2)
    with told():
        fit(net(), unfreezing, optimizer=keras.optimizers.Adam(), epochs=2)
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with told():
        unfreezing.on_train_begin()
    monkeypatch.undo()
    for trainable in (False, True):
        model.layers[0].trainable = trainable
        fit(model)


def tied(*names):
    model = keras.Sequential(
        [keras.Input((6,)), L.Dense(6, name="b1"), L.Dense(6, name="b2"), L.Dense(2)]
    )
    paths = [f"{name}/kernel" for name in names]
    return model, transform(model, Recipe([(at(*paths), Share())]))


@advice("surgery/sharing.py", "Give the paths of the blocks to tie.")
@advice("transforms/share.py", "Write for example keras_dlopt.at('logits/kernel').")
def test_blocks_that_are_one(told):
    model, kernels = tied("b1", "b2")
    with told():
        shared_recipe(model, ["b1"])
    with pytest.raises(ModelError, match="Tie their biases as well"):
        shared_layers(kernels)
    finalize(kernels)
    whole = transform(model, shared_recipe(model, ["b1", "b2"]))
    assert shared_layers(whole).count_params() == whole.count_params()
    with told():
        Share(transposed="logits/kernel")
    Share(transposed=at("logits/kernel"))


class Beside(keras.layers.Layer):
    """Holds another layer, and multiplies by its kernel."""

    def __init__(self, of, **kwargs):
        super().__init__(**kwargs)
        self.of = of

    def build(self, input_shape=None):
        pass

    def call(self, x):
        return keras.ops.matmul(x, self.of.kernel)


@advice("graph/rebuilding.py", "Call one layer at both places, or give each its own")
def test_layers_of_one_variable(told):
    inputs = keras.Input((6,))
    one = L.Dense(6, name="one")
    recipe = Recipe([(at("one/kernel"), HashedWeights(0.5))])
    model = keras.Model(inputs, Beside(one)(one(inputs)))
    with told():
        rebuilt(model, {})
    twice = keras.Model(inputs, one(one(inputs)))
    assert hashed_layers(transform(twice, recipe)).count_params() == 18 + 6
    _, shared = tied("b1", "b2")
    assert shared.count_params() < finalize(shared).count_params()


def test_a_file_whose_repeats_take_memory(tmp_path):
    _, shared = tied("b1", "b2")
    save_compressed(finalize(shared), tmp_path / "m.dlopt")
    size = sum(v.numpy().nbytes for v in shared.model.weights)
    with pytest.raises(FormatError, match="pass a larger max_bytes"):
        load_compressed(tmp_path / "m.dlopt", max_bytes=size - 100)
    load_compressed(tmp_path / "m.dlopt", max_bytes=1 << 20)
