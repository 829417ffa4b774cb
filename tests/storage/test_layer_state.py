"""What layers keep comes back: every class of Keras, and hooks of one's own."""

import json

import keras
import numpy as np
import pytest
from keras import layers

from keras_dlopt.codecs.container import (
    HEADER,
    TENSORS,
    read_container,
    read_json,
    version_of,
    write_container,
    write_json,
)
from keras_dlopt.errors import FormatError, ModelError
from keras_dlopt.storage import ledger_of, load_compressed, save_compressed
from keras_dlopt.storage.dictionary import DICTIONARY

from . import every_layer


def outputs(model, x):
    return [
        np.asarray(keras.ops.convert_to_numpy(y))
        for y in keras.tree.flatten(model(x, training=False))
    ]


def same(one, other):
    return all(
        a.dtype == b.dtype and a.tobytes() == b.tobytes()
        for a, b in zip(one, other, strict=True)
    )


def through_file(model, path, **kwargs):
    save_compressed(model, path)
    return load_compressed(path, **kwargs)


@pytest.mark.parametrize("name", every_layer.NAMES)
def test_every_class_of_keras(name, tmp_path):
    model, x = every_layer.model_of(name)
    expected = outputs(model, x)
    loaded = through_file(model, tmp_path / "m.dlopt")
    assert same(expected, outputs(loaded, x))
    text = every_layer.OPTIONS.get(name, ((), ()))[1]
    if not model.weights or "string" in text:
        model.save(tmp_path / "m.keras")
        again = keras.saving.load_model(tmp_path / "m.keras")
        assert same(outputs(again, x), outputs(loaded, x))


QUANTIZED = ("Dense", "EinsumDense", "Embedding", "ReversibleEmbedding")


@pytest.mark.filterwarnings("ignore:Layer InputLayer does not have a `quantize`")
@pytest.mark.parametrize("mode", ["int8", "int4", "float8", "lora", "lora int8"])
@pytest.mark.parametrize("name", QUANTIZED)
def test_models_that_keras_quantized(name, mode, tmp_path):
    if mode == "float8" and "Embedding" in name:
        pytest.skip("Keras has no float8 for embeddings")
    model, x = every_layer.model_of(name)
    for part in mode.split():
        if part == "lora":
            model.layers[-1].enable_lora(2)
            model.layers[-1].lora_kernel_b.assign(
                np.ones(model.layers[-1].lora_kernel_b.shape)
            ) if "Dense" in name else None
        else:
            model.quantize(part)
    loaded = through_file(model, tmp_path / "m.dlopt")
    assert same(outputs(model, x), outputs(loaded, x))


@keras.saving.register_keras_serializable("storage_state")
class Remembers(layers.Layer):
    """Its offset is no variable, and its words are in a file of its own."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.offset, self.words = np.zeros(3, "float32"), []

    def build(self, input_shape):
        self.built = True

    def call(self, x):
        return x + self.offset + len(self.words)

    def save_own_variables(self, store):
        store["offset"] = self.offset

    def load_own_variables(self, store):
        self.offset = np.array(store["offset"])

    def save_assets(self, dir_path):
        with open(f"{dir_path}/words.json", "w") as file:
            json.dump(self.words, file)

    def load_assets(self, dir_path):
        with open(f"{dir_path}/words.json") as file:
            self.words = json.load(file)


class Around(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.first, self.second = layers.Dense(3), [Remembers(), Remembers()]

    def call(self, x):
        for layer in (self.first, *self.second):
            x = layer(x)
        return x


def remembering():
    model = Around()
    model(np.ones((2, 4)))
    for i, layer in enumerate(model.second):
        layer.offset, layer.words = np.arange(3, dtype="float32") + i, ["a"] * (2 + i)
    return model


def test_state_outside_of_variables(tmp_path):
    model, x = remembering(), np.ones((2, 4), "float32")
    path = tmp_path / "m.dlopt"
    loaded = through_file(model, path, custom_objects={"Around": Around})
    assert version_of(path.read_bytes()) == 3
    assert [layer.words for layer in loaded.second] == [["a"] * 2, ["a"] * 3]
    assert same(outputs(model, x), outputs(loaded, x))
    rows = [row.path for row in ledger_of(path).rows]
    assert rows[:2] == [v.path for v in model.weights]
    assert any(row.endswith("words.json") for row in rows[2:])


def test_the_offset_of_a_layer_that_was_copied(tmp_path):
    inputs = keras.Input((3,))
    model = keras.Model(inputs, Remembers(name="own")(inputs))
    model.get_layer("own").offset = np.full(3, 7, "float32")
    loaded = through_file(model, tmp_path / "m.dlopt")
    assert loaded.get_layer("own").offset.tolist() == [7, 7, 7]


@keras.saving.register_keras_serializable("storage_state")
class Hidden(Remembers):
    """Its offset is nowhere to be saved."""

    def save_own_variables(self, store):
        pass

    def load_own_variables(self, store):
        pass


def test_predictions_are_compared_before_the_file_appears(tmp_path):
    inputs = keras.Input((3,))
    model = keras.Model(inputs, Hidden(name="own")(inputs))
    save_compressed(model, tmp_path / "m.dlopt")
    model.get_layer("own").offset = np.full(3, 7, "float32")
    with pytest.raises(
        ModelError, match=r"predictions would differ by 0\.\d+ of the .*g"
    ):
        save_compressed(model, tmp_path / "new.dlopt")
    assert [p.name for p in tmp_path.iterdir()] == ["m.dlopt"]


@keras.saving.register_keras_serializable("storage_state")
class Fragile(Hidden):
    def call(self, x):
        if self.offset is None:
            raise RuntimeError("never adapted")
        return x

    def compute_output_shape(self, input_shape):
        return input_shape

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.offset = None


def test_a_loaded_model_that_fails_is_told(tmp_path):
    layer = Fragile()
    layer.offset = np.ones(3, "float32")
    model = keras.Sequential([keras.Input((3,)), layer])
    with pytest.raises(ModelError, match=r"(?s)fails on inputs that .*never adapted"):
        save_compressed(model, tmp_path / "m.dlopt")


def test_hooks_that_fail_or_store_no_numbers(tmp_path):
    model = keras.Sequential([keras.Input((3,)), Remembers(name="own")])
    model.layers[-1].offset = np.array(["text"])
    with pytest.raises(ModelError, match=r"layer 'own' cannot store .* of dtype <U4"):
        save_compressed(model, tmp_path / "m.dlopt")


@keras.saving.register_keras_serializable("storage_state")
class Wanders(Remembers):
    """What it stores is another thing each time that it is loaded."""

    def load_own_variables(self, store):
        self.offset = np.array(store["offset"]) + 1


def test_state_that_changes_is_told(tmp_path):
    model = keras.Sequential([keras.Input((3,)), Wanders(name="own")])
    with pytest.raises(ModelError, match="hooks store would change: 'offset' of .*own"):
        save_compressed(model, tmp_path / "m.dlopt")


def test_saving_does_not_touch_the_model(tmp_path):
    model = keras.Sequential(
        [keras.Input((3,)), layers.Dropout(0.5, seed=1), layers.BatchNormalization()]
    )
    model(np.ones((2, 3)), training=True)
    before = [np.array(v.value) for v in model.variables]
    save_compressed(model, tmp_path / "m.dlopt")
    for old, v in zip(before, model.variables, strict=True):
        assert old.tobytes() == np.asarray(v.value).tobytes()


def test_a_vocabulary_from_a_path_is_stored_as_data(tmp_path):
    words = tmp_path / "words.txt"
    words.write_text("one\ntwo")
    layer = layers.StringLookup(vocabulary=str(words))
    model = keras.Sequential([keras.Input((1,), dtype="string"), layer])
    save_compressed(model, tmp_path / "m.dlopt")
    words.unlink()
    loaded = load_compressed(tmp_path / "m.dlopt")
    assert loaded.layers[-1].get_vocabulary() == ["[UNK]", "one", "two"]


@pytest.fixture
def hooked(tmp_path):
    path = tmp_path / "hooked.dlopt"
    save_compressed(remembering(), path)
    return read_container(path.read_bytes())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"variables": [2]}, "impossible numbers of weights and variables"),
        ({"variables": [True, 2]}, "impossible numbers of weights and variables"),
        ({"variables": [2, 1]}, "impossible numbers of weights and variables"),
        ({"variables": [2, 99]}, "impossible numbers of weights and variables"),
        ({"layers": []}, "impossible places of the layers"),
        ({"layers": {"first": [0]}}, "impossible places of the layers"),
        ({"layers": {"first": {"0": -1}}}, "impossible places of the layers"),
        ({"layers": {"first": {"0": 0.5}}}, "impossible places of the layers"),
        ({"layers": {"none": {"0": 0}}}, "layer 'none' that its model does not have"),
        ({"layers": {"first": {"9": 0}}}, r"cannot be given to its model \(\w+Error"),
        ({"assets": {"second": {"../x": 2}}}, "'../x' is no name of a file inside"),
        ({"assets": {"second": {"/etc/x": 2}}}, "no name of a file inside"),
        ({"assets": {"second": {"": 2}}}, "no name of a file inside"),
        ({"assets": {"second": {"a//b": 2}}}, "no name of a file inside"),
        ({"assets": {"second": {"a\\b": 2}}}, "no name of a file inside"),
        ({"assets": {"second": {"a": 0}}}, "impossible bytes of files"),
        ({"more": 1}, "its header has other keys"),
    ],
)
def test_altered_state(change, message, hooked, tmp_path):
    header = read_json(hooked[HEADER], dictionary=DICTIONARY) | change
    section = write_json(header, dictionary=DICTIONARY)
    path = tmp_path / "bad.dlopt"
    path.write_bytes(
        write_container({HEADER: section, TENSORS: hooked[TENSORS]}, version=2)
    )
    with pytest.raises(FormatError, match=message):
        load_compressed(path, custom_objects={"Around": Around})


def test_layers_of_applications_that_have_no_public_name(tmp_path):
    from keras.src.applications.convnext import LayerScale, StochasticDepth

    inputs = keras.Input((4, 4, 3))
    scale = LayerScale(0.5, 3)
    model = keras.Model(inputs, StochasticDepth(0.1)(scale(inputs)))
    scale.gamma.assign([1.0, 2.0, 3.0])
    x = np.random.default_rng(0).normal(size=(2, 4, 4, 3)).astype("float32")
    assert same(
        outputs(model, x), outputs(through_file(model, tmp_path / "m.dlopt"), x)
    )
