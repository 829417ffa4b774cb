"""Layers that other tools refuse train and reload; the full table is a benchmark."""

import warnings

import keras
import numpy as np
import pytest

import keras_dlopt as dlopt

L = keras.layers


def _classifier(shape, *body, dtype="float32"):
    inputs = x = keras.Input(shape, dtype=dtype)
    for layer in body:
        x = layer(x)
    return keras.Model(inputs, L.Dense(3, name="top")(x))


def _attention():
    inputs = keras.Input((5, 4))
    x = L.MultiHeadAttention(2, 2, name="heads")(inputs, inputs)
    return keras.Model(inputs, L.Dense(3, name="top")(L.Flatten()(x)))


def _multiply():
    inputs = keras.Input((4,))
    x = L.Multiply()([L.Dense(4, name="a")(inputs), L.Dense(4, name="b")(inputs)])
    return keras.Model(inputs, L.Dense(3, name="top")(x))


@keras.saving.register_keras_serializable("kinds")
class Nested(keras.Model):
    """Subclassed, around a Sequential and a subclassed model."""

    def __init__(self, depth=1, **kwargs):
        super().__init__(**kwargs)
        self.depth = depth
        self.stem = keras.Sequential([L.Dense(4, name="stem"), L.ReLU(name="relu")])
        self.inner = Nested(depth - 1, name="inner") if depth else L.Dense(4, name="d")
        self.top = L.Dense(3, name="top")

    def call(self, inputs):
        return self.top(self.inner(self.stem(inputs)))

    def get_config(self):
        return {"depth": self.depth}


def _nested():
    model = Nested()
    model(np.zeros((1, 4), "float32"))
    return model


KINDS = {
    "LSTM": lambda: _classifier((4, 3), L.LSTM(4)),
    "Bidirectional GRU": lambda: _classifier((4, 3), L.Bidirectional(L.GRU(3))),
    "Conv1D": lambda: _classifier((6, 2), L.Conv1D(3, 3), L.Flatten()),
    "Conv3D": lambda: _classifier((4, 4, 4, 1), L.Conv3D(2, 3), L.Flatten()),
    "Embedding": lambda: _classifier((5,), L.Embedding(9, 4), L.Flatten()),
    "MultiHeadAttention": _attention,
    "LayerNormalization": lambda: _classifier((4,), L.LayerNormalization()),
    "PReLU": lambda: _classifier((4,), L.Dense(4, name="d"), L.PReLU()),
    "Multiply": _multiply,
    "nested, subclassed": _nested,
}


def _trained(model, recipe, x):
    small = dlopt.transform(model, recipe)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    small.compile("sgd", loss)
    history = small.fit(x, np.arange(4) % 3, batch_size=2, verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    return small


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_prunes_quantizes_and_reloads(kind, tmp_path):
    keras.utils.set_random_seed(0)
    model = KINDS[kind]()
    shape = (4, *(model.input_shape[1:] if kind != "nested, subclassed" else (4,)))
    rng = np.random.default_rng(0)
    x = rng.integers(0, 9, shape) if kind == "Embedding" else rng.normal(size=shape)
    x = x.astype("float32")
    schedule = dlopt.schedules.PolynomialSparsity(0.5, end=2, frequency=1)
    weights = dlopt.Prune(schedule) >> dlopt.FakeQuant(bits=8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of what LiteRT does not have
        recipe = dlopt.int8_recipe(model, weights=weights)
    if kind == "nested, subclassed":  # its automatic names differ in the copy
        recipe = dlopt.Recipe([(dlopt.named("kernel"), weights)])
    small = _trained(model, recipe, x)
    small.save(tmp_path / "m.keras")
    again = keras.saving.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(small(x), again(x))


@pytest.mark.parametrize("kind", ["Bidirectional GRU", "Embedding", "Conv3D"])
def test_each_kind_is_clustered(kind):
    keras.utils.set_random_seed(0)
    model = KINDS[kind]()
    x = np.ones((4, *model.input_shape[1:]), "float32")
    recipe = dlopt.Recipe([(dlopt.rank(2, 3, 4, 5), dlopt.Cluster(4))])
    plain = dlopt.finalize(_trained(model, recipe, x))
    big = [w for w in plain.get_weights() if w.ndim > 1]
    assert all(len(np.unique(w)) <= 4 for w in big)


class Bare(keras.layers.Layer):
    """Says nothing about shapes, as most layers that people write."""

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], 2), name="kernel")

    def call(self, x):
        return keras.ops.matmul(x, self.kernel)


def test_a_wrapped_layer_that_computes_no_shapes_stands_in_any_graph():
    def made():
        return dlopt.TransformedLayer(Bare(name="own"), recipe)

    recipe = dlopt.Recipe([(dlopt.named("kernel"), dlopt.Prune(0.5))])
    inputs = keras.Input((4,))
    for net in (
        keras.Model(inputs, made()(inputs)),
        keras.Sequential([keras.Input((4,)), made()]),
    ):
        assert net.outputs[0].shape == (None, 2)
        (kernel,) = dlopt.finalize(net).get_weights()
        assert (kernel == 0).sum() == 4
