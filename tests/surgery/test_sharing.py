"""Tied blocks: counted once, stored once, one layer or plain again."""

import keras
import numpy as np
import pytest

import keras_dlopt as dlopt
from keras_dlopt.errors import ConfigError, ModelError
from keras_dlopt.graph.copying import copy_model
from keras_dlopt.graph.rebuilding import rebuilt

L = keras.layers
X = np.random.default_rng(0).normal(size=(4, 8)).astype("float32")


def blocks(nested=False, last=8):
    """A stem, three blocks of two dense layers around which it goes, and a head."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8,))
    x = L.Dense(8, name="stem")(inputs)
    for k in range(3):
        width = last if k == 2 else 8
        up = L.Dense(32, activation="relu", name="up" if nested else f"b{k}_up")
        down = L.Dense(width, name="down" if nested else f"b{k}_down")
        if nested:
            part = keras.Input((8,))
            x = keras.Model(part, down(up(part)), name=f"b{k}")(x)
        else:
            x = down(up(x))
    return keras.Model(inputs, L.Dense(2, name="out")(x))


NAMES = ["b0", "b1", "b2"]


def tied(model, **kwargs):
    return dlopt.transform(model, dlopt.shared_recipe(model, NAMES, **kwargs))


@pytest.mark.parametrize("nested", [False, True])
def test_blocks_are_one_in_training_counting_and_files(nested, tmp_path):
    model = blocks(nested)
    one = tied(model, start="first")
    block = 8 * 32 + 32 + 32 * 8 + 8
    assert model.count_params() == 72 + 3 * block + 18
    assert one.count_params() == 72 + block + 18
    trained = sum(int(np.prod(v.shape)) for v in one.trainable_variables)
    assert trained == one.count_params()
    lines = []
    one.summary(print_fn=lambda line, **_: lines.append(line))
    assert lines[-1] == (
        f" In place of {3 * block:,} of these parameters: {block} of transforms. In "
        f"all {one.count_params()}, trained {one.count_params()}."
    )
    one.compile("sgd", "mse")
    one.fit(X, np.ones((4, 2)), verbose=0)
    plain, shared = dlopt.finalize(one), dlopt.shared_layers(one)
    assert plain.count_params() == model.count_params()
    assert all(v.trainable for v in plain.weights)
    assert shared.count_params() == one.count_params()
    np.testing.assert_array_equal(shared(X), one(X))
    np.testing.assert_array_equal(plain(X), one(X))
    sizes = {}
    for name, net in (("apart", model), ("plain", plain), ("shared", shared)):
        net.save(tmp_path / "m.keras")
        ledger = dlopt.save_compressed(net, tmp_path / "m.dlopt")
        again = dlopt.load_compressed(tmp_path / "m.dlopt")
        np.testing.assert_array_equal(again(X), net(X))
        np.testing.assert_array_equal(
            keras.saving.load_model(tmp_path / "m.keras")(X), net(X)
        )
        values = sum(row.bits for row in ledger.rows) / 8
        sizes[name] = (tmp_path / "m.keras").stat().st_size, values
    assert sizes["apart"][0] - sizes["shared"][0] > 2 * 4 * block
    # Two of three blocks are not in the file: nine tenths of their entropy at least.
    for name in ("plain", "shared"):
        assert sizes["apart"][1] - sizes[name][1] > 0.75 * 2 * 4 * (block - 40)
    rows = {row.path: row for row in ledger.rows}
    assert all(row.bits > 0 for row in rows.values())
    shared.compile("sgd", "mse")
    shared.fit(X, np.ones((4, 2)), verbose=0)


def test_embedding_and_logits_are_one_matrix_turned_round(tmp_path):
    inputs = keras.Input((5,), dtype="int32")
    x = L.Embedding(30, 8, name="words")(inputs)
    x = L.Dense(8, name="square")(x)
    model = keras.Model(inputs, L.Dense(30, use_bias=False, name="logits")(x))
    both = dlopt.at("words/embeddings", "logits/kernel")
    one = dlopt.transform(model, dlopt.Recipe([(both, dlopt.Share(start="first"))]))
    assert one.count_params() == 30 * 8 + 72
    one.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    words = np.random.default_rng(0).integers(0, 30, (4, 5))
    one.fit(words, words, verbose=0)
    plain = dlopt.finalize(one)
    table = np.asarray(plain.get_layer("words").embeddings)
    np.testing.assert_array_equal(plain.get_layer("logits").kernel, table.T)
    ledger = dlopt.save_compressed(plain, tmp_path / "m.dlopt")
    methods = {row.path: (row.method, row.bits) for row in ledger.rows}
    assert methods["logits/kernel"] == ("transpose of words/embeddings", 0)
    again = dlopt.load_compressed(tmp_path / "m.dlopt")
    np.testing.assert_array_equal(again(words), plain(words))


def test_the_gradient_of_a_transpose_comes_back_turned():
    import tensorflow as tf

    square = [np.arange(4.0, dtype="float32").reshape(2, 2) for _ in range(2)]
    share = dlopt.Share(transposed=dlopt.named("b"), start="first")
    assert dlopt.Share.from_config(share.get_config()) == share
    from keras_dlopt.graph.targets import Target
    from keras_dlopt.transforms import Context

    targets = [Target("a"), Target("b")]
    states = share.init_group(targets, square)
    value = tf.constant(states[0]["shared"].value)
    slopes = [tf.constant([[1.0, 2.0], [3.0, 4.0]])] * 2
    with tf.GradientTape() as tape:
        tape.watch(value)
        loss = sum(
            tf.reduce_sum(
                share.apply(tf.constant(w), {"shared": value}, Context(t)) * s
            )
            for t, w, s in zip(targets, square, slopes, strict=True)
        )
    expected = slopes[0] + tf.transpose(slopes[1])
    np.testing.assert_array_equal(tape.gradient(loss, value), expected)


def test_regularizers_and_flags_of_replaced_weights():
    model = keras.Sequential(
        [
            keras.Input((8,)),
            L.Dense(8, kernel_regularizer=keras.regularizers.L2(0.5), name="a"),
            L.Dense(8, kernel_regularizer=keras.regularizers.L2(0.25), name="b"),
        ]
    )
    recipe = dlopt.Recipe([(dlopt.named("kernel"), dlopt.Share(start="first"))])
    one = dlopt.transform(model, recipe)
    kernel = np.asarray(model.layers[0].kernel)
    assert float(sum(one.losses)) == pytest.approx(0.75 * np.sum(kernel**2), rel=1e-5)
    one.compile(keras.optimizers.SGD(0.1), lambda y, p: 0.0 * keras.ops.sum(p))
    one.fit(X, np.ones((4, 8)), batch_size=4, verbose=0)
    after = np.asarray(dlopt.finalize(one).layers[1].kernel)
    np.testing.assert_allclose(after, kernel * (1 - 0.1 * 2 * 0.75), rtol=1e-5)
    twin = copy_model(one)
    assert [v.trainable for v in twin.variables] == [v.trainable for v in one.variables]
    inner = one.model
    assert not inner.layers[0].kernel.trainable
    back = dlopt.finalize(one, copy=False)
    assert back.layers[0].kernel.trainable
    assert len(back.trainable_variables) == 4


@keras.saving.register_keras_serializable("tests")
class Follows(L.Layer):
    """Multiplies by the transpose of another layer's kernel."""

    def __init__(self, of, **kwargs):
        super().__init__(**kwargs)
        self.of = of

    def build(self, input_shape=None):
        pass

    def call(self, x):
        return keras.ops.matmul(x, keras.ops.transpose(self.of.kernel))

    def get_config(self):
        of = keras.saving.serialize_keras_object(self.of)
        return {**super().get_config(), "of": of}

    @classmethod
    def from_config(cls, config):
        return cls(keras.saving.deserialize_keras_object(config.pop("of")), **config)


def test_layers_that_hold_one_variable_are_refused_by_name(tmp_path):
    inputs = keras.Input((4,))
    a = L.Dense(4, name="a")
    model = keras.Model(inputs, Follows(a, name="b")(a(inputs)))
    assert model.count_params() == 20
    small = dlopt.hashed_recipe(model, 0.5)
    with pytest.raises(ModelError, match="The layers 'a' and 'b' .* hold one variable"):
        rebuilt(model, {})
    with pytest.raises(ModelError):
        dlopt.transform(model, small)
    with pytest.raises(ModelError, match="so nothing was written"):
        dlopt.save_compressed(model, tmp_path / "m.dlopt")


def test_what_is_refused():
    model = blocks()
    with pytest.raises(ConfigError, match="no trained weight in a block 'c0'.* Near"):
        dlopt.shared_recipe(model, ["b0", "c0"])
    with pytest.raises(ConfigError, match="blocks must be two or more different ones"):
        dlopt.shared_recipe(model, ["b0", "b0"])
    with pytest.raises(ConfigError, match=r"blocks.1. must be a path. Received: 1"):
        dlopt.shared_recipe(model, ["b0", 1])
    with pytest.raises(ConfigError, match="'b0' and 'b2' differ in 'down/ker"):
        dlopt.shared_recipe(blocks(last=5), NAMES)
    kernels = dlopt.Recipe([(dlopt.matching("b._up/kernel"), dlopt.Share())])
    with pytest.raises(ModelError, match="No two layers of .* are tied as a whole"):
        dlopt.shared_layers(dlopt.transform(model, kernels))
    with pytest.raises(ModelError, match="shared_layers takes a Sequential"):
        dlopt.shared_layers(model)
    with pytest.raises(ConfigError, match="start must be 'mean' or 'first'"):
        dlopt.Share(start="last")
    with pytest.raises(ConfigError, match="transposed must be a selector"):
        dlopt.Share(transposed="logits")
