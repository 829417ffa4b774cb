import subprocess
import sys
import textwrap
import types

import keras
import numpy as np
import pytest
from keras import layers

import keras_dlopt as dlopt
from keras_dlopt.codecs import Codebook
from keras_dlopt.errors import ConfigError, FormatError, ModelError
from keras_dlopt.storage import ledger_of, load_compressed, save_compressed


def batch(shape, seed=0):
    return np.random.default_rng(seed).normal(size=(4, *shape)).astype("float32")


def same_state(one, other):
    pairs = zip(one.variables, other.variables, strict=True)
    for a, b in pairs:
        a, b = (keras.ops.convert_to_numpy(v.value) for v in (a, b))
        assert a.dtype == b.dtype
        assert a.tobytes() == b.tobytes()


def round_trip(model, path, x, **kwargs):
    save_compressed(model, path)
    loaded = load_compressed(path, **kwargs)
    same_state(model, loaded)
    expected, found = model(x), loaded(x)
    for a, b in zip(
        keras.tree.flatten(expected), keras.tree.flatten(found), strict=True
    ):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
    return loaded


def sequential():
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(4, 3, activation="relu", kernel_regularizer="l2"),
            layers.BatchNormalization(),
            layers.Dropout(0.5),
            layers.Flatten(),
            layers.Dense(3, activation="softmax"),
        ]
    )


def functional():
    inputs = keras.Input((8, 8, 1))
    x = layers.Conv2D(4, 3, padding="same", kernel_initializer="he_normal")(inputs)
    y = keras.ops.relu(x) * 2
    y = layers.Concatenate()([x, y])
    shared = layers.Dense(3)
    y = shared(layers.GlobalAveragePooling2D()(y)) + shared(y[:, 0, 0, :])
    return keras.Model(inputs, [y, layers.Softmax()(y)])


def nested():
    body = keras.Sequential([layers.Dense(5, "relu"), layers.LayerNormalization()])
    inputs = keras.Input((6,))
    return keras.Model(inputs, layers.Dense(2)(body(inputs)))


def recurrent():
    return keras.Sequential(
        [
            keras.Input((5, 3)),
            layers.Bidirectional(layers.LSTM(4, return_sequences=True)),
            layers.TimeDistributed(layers.Dense(4)),
            layers.GRU(3, kernel_constraint=keras.constraints.MaxNorm(2)),
        ]
    )


@pytest.mark.parametrize(
    "make", [sequential, functional, nested, recurrent], ids=lambda f: f.__name__
)
def test_round_trip(make, tmp_path):
    model = make()
    round_trip(model, tmp_path / "m.dlopt", batch(model.input_shape[1:]))


def test_layers_of_this_package(tmp_path):
    from keras_dlopt.layers import BasicBlock

    inputs = keras.Input((8, 8, 1))
    model = keras.Model(inputs, layers.Flatten()(BasicBlock(4)(inputs)))
    round_trip(model, tmp_path / "m.dlopt", batch((8, 8, 1)))


def test_trained_state_is_kept(tmp_path):
    model = sequential()
    model.compile("adam", "mse", metrics=["mae"])
    model.fit(batch((8, 8, 1)), np.ones((4, 3)), verbose=0)
    loaded = round_trip(model, tmp_path / "m.dlopt", batch((8, 8, 1), seed=1))
    assert not loaded.compiled
    statistics = [v for v in loaded.weights if "moving" in v.path]
    assert any(np.asarray(v.value).any() for v in statistics)
    # The dropout seed too: the first random draw after loading is the same.
    x = batch((8, 8, 1))
    expected = np.asarray(model(x, training=True))
    assert np.array_equal(expected, np.asarray(loaded(x, training=True)))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "mixed_bfloat16", "float64"])
def test_dtypes(dtype, tmp_path):
    model = keras.Sequential(
        [keras.Input((4,)), layers.Dense(3, dtype=dtype), layers.Dense(2, dtype=dtype)]
    )
    round_trip(model, tmp_path / "m.dlopt", batch((4,)))


class Doubling(keras.Model):
    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.inner = keras.Sequential([layers.Dense(units), layers.Dropout(0.1)])

    def build(self, input_shape=None):
        self.inner.build(input_shape)

    def call(self, x, training=False):
        return 2 * self.inner(x, training=training)

    def get_config(self):
        return {**super().get_config(), "units": self.units}


def test_subclassed_model(tmp_path):
    model = Doubling(3)
    model(batch((4,)))
    path = tmp_path / "m.dlopt"
    loaded = round_trip(model, path, batch((4,)), custom_objects={"Doubling": Doubling})
    assert type(loaded) is Doubling
    with pytest.raises(FormatError, match=r"'Doubling'.*custom_objects={'Doubling'"):
        load_compressed(path)


def test_a_class_that_changed_is_reported(tmp_path):
    model = Doubling(3)
    model(batch((4,)))
    save_compressed(model, tmp_path / "m.dlopt")

    class Other(Doubling):
        def __init__(self, units, **kwargs):
            super().__init__(units + 1, **kwargs)

    with pytest.raises(FormatError, match=r"other variables .*float32\[4, 4\]"):
        load_compressed(tmp_path / "m.dlopt", custom_objects={"Doubling": Other})


def test_registered_class(tmp_path):
    @keras.saving.register_keras_serializable("storage_test")
    class Shift(layers.Layer):
        def build(self, input_shape):
            self.shift = self.add_weight(shape=input_shape[-1:], initializer="ones")

        def call(self, x):
            return x + self.shift

    model = keras.Sequential([keras.Input((4,)), Shift(), layers.Dense(2)])
    round_trip(model, tmp_path / "m.dlopt", batch((4,)))


def test_registered_activation_function(tmp_path):
    @keras.saving.register_keras_serializable("storage_test")
    def wave(x):
        return keras.ops.sin(x)

    model = keras.Sequential([keras.Input((4,)), layers.Dense(2, activation=wave)])
    round_trip(model, tmp_path / "m.dlopt", batch((4,)))


def test_fresh_process_predicts_the_same(tmp_path):
    model = functional()
    x = batch((8, 8, 1))
    save_compressed(model, tmp_path / "m.dlopt")
    np.save(tmp_path / "x.npy", x)
    code = """
        import sys, numpy as np
        from keras_dlopt.storage import load_compressed
        model = load_compressed(sys.argv[1] + "/m.dlopt")
        y, _ = model(np.load(sys.argv[1] + "/x.npy"))
        np.save(sys.argv[1] + "/y.npy", np.asarray(y))
    """
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)],
        check=True,
        timeout=120,
        capture_output=True,
    )
    expected, _ = model(x)
    assert np.load(tmp_path / "y.npy").tobytes() == np.asarray(expected).tobytes()


def test_transformed_model_is_finalized(tmp_path):
    inputs = keras.Input((20,))
    model = keras.Model(inputs, layers.Dense(30)(layers.Dense(40, "relu")(inputs)))
    recipe = dlopt.Recipe(
        [(dlopt.named("kernel"), dlopt.Prune(0.8) >> dlopt.Cluster(8))]
    )
    small = dlopt.transform(model, recipe)
    small.update_transforms(0)
    ledger = save_compressed(small, tmp_path / "m.dlopt")
    plain = dlopt.finalize(small)
    loaded = load_compressed(tmp_path / "m.dlopt")
    assert type(loaded) is type(plain)
    x = batch((20,))
    assert np.asarray(loaded(x)).tobytes() == np.asarray(plain(x)).tobytes()
    assert [r.method for r in ledger.rows if "kernel" in r.path] == 2 * [
        "sparse codebook"
    ]


def test_hints_are_checked_and_used(tmp_path):
    model = keras.Sequential([keras.Input((30,)), layers.Dense(20, use_bias=False)])
    index = np.random.default_rng(0).integers(0, 4, (30, 20))
    values = np.array([-1, 0, 0.5, 2], "float32")
    model.set_weights([values[index]])
    plain = save_compressed(model, tmp_path / "a.dlopt")
    hints = {0: Codebook(index, values)}
    assert save_compressed(model, tmp_path / "a.dlopt", hints=hints) == plain
    wrong = {0: Codebook(index, values + 1)}
    assert save_compressed(model, tmp_path / "a.dlopt", hints=wrong) == plain


def test_ledger_adds_up_and_reads_back(tmp_path):
    model = sequential()
    path = tmp_path / "m.dlopt"
    ledger = save_compressed(model, path)
    assert ledger.file_bytes == path.stat().st_size
    parts = ledger.architecture_bytes + ledger.container_bytes
    assert sum(row.bits for row in ledger.rows) + 8 * parts == 8 * ledger.file_bytes
    # Magic 4, version 1, two section heads of 2 or 3, number of variables, checksum 8.
    assert 18 <= ledger.container_bytes <= 20
    assert ledger_of(path) == ledger
    assert [row.path for row in ledger.rows][:2] == [
        model.weights[0].path,
        model.weights[1].path,
    ]
    figures = ledger.to_dict()
    assert figures["rows"][0]["shape"] == [3, 3, 1, 4]
    assert figures["ratio"] == ledger.plain_bytes / ledger.file_bytes
    sizes = [np.asarray(v.value).nbytes for v in model.variables]
    assert ledger.plain_bytes == sum(sizes)


@pytest.mark.parametrize("make", [functional, recurrent])
def test_no_byte_of_a_file_is_counted_twice_or_not_at_all(make, tmp_path):
    ledger = save_compressed(make(), tmp_path / "m.dlopt")
    parts = ledger.to_dict()
    tensors = sum(row["bits"] for row in parts["rows"]) / 8
    rest = parts["file_bytes"] - parts["architecture_bytes"] - tensors
    assert parts["container_bytes"] == rest


def test_the_description_of_a_small_model_takes_few_bytes(tmp_path):
    model = keras.Sequential([keras.Input((784,))])
    for units in (300, 100):
        model.add(layers.Dense(units, activation="relu"))
    model.add(layers.Dense(10))
    for v in model.weights:
        v.assign(keras.ops.zeros_like(v))
    ledger = save_compressed(model, tmp_path / "m.dlopt")
    assert ledger.architecture_bytes < 100
    assert ledger.file_bytes < 200


class Projecting(layers.Layer):
    """Random numbers from a seed, in a variable that no model knows of."""

    def build(self, input_shape=None):
        start = keras.initializers.RandomNormal(seed=3)
        shape = (input_shape[-1], 5)
        self.hidden = types.SimpleNamespace(v=keras.Variable(start, shape=shape))

    def call(self, x):
        return keras.ops.matmul(x, self.hidden.v)


def test_random_numbers_that_are_in_no_file_are_drawn(tmp_path):
    model = keras.Sequential([keras.Input((4,)), Projecting(), layers.Dense(2)])
    save_compressed(model, tmp_path / "m.dlopt")
    known = {"Projecting": Projecting}
    loaded = load_compressed(tmp_path / "m.dlopt", custom_objects=known)
    x = batch((4,))
    assert np.any(model(x))
    assert np.asarray(loaded(x)).tobytes() == np.asarray(model(x)).tobytes()


def test_refusals(tmp_path):
    path = tmp_path / "m.dlopt"
    unbuilt = keras.Sequential([layers.Dense(2)], name="small")
    with pytest.raises(ModelError, match=r"'small' is not built.*model.build\(input_"):
        save_compressed(unbuilt, path)
    with pytest.raises(ConfigError, match=r"expects a keras.Model. Received: Dense"):
        save_compressed(layers.Dense(2), path)
    coded = keras.Sequential([keras.Input((2,)), layers.Lambda(lambda x: x)])
    with pytest.raises(ModelError, match=r"described as data .*'Lambda'.*Python code"):
        save_compressed(coded, path)
    ops = keras.Sequential([keras.Input((2,)), layers.Dense(2, activation=lambda x: x)])
    with pytest.raises(ModelError, match="cannot be described as data"):
        save_compressed(ops, path)
    assert not path.exists()


def test_a_model_that_cannot_come_back_is_not_written(tmp_path):
    class Forgetful(Doubling):
        def get_config(self):
            return keras.Model.get_config(self)

    model = Forgetful(3)
    model(batch((4,)))
    with pytest.raises(ModelError, match="could not be loaded again, so nothing was"):
        save_compressed(model, tmp_path / "m.dlopt")
    assert list(tmp_path.iterdir()) == []
