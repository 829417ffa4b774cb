"""Random states, malformed recipes and TFMOT's starts in `.keras` files."""

import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import layers

import keras_dlopt as dlopt
from keras_dlopt.errors import ConfigError


@keras.saving.register_keras_serializable("random_states")
class Inside(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense, self.drop = layers.Dense(3), layers.Dropout(0.5, seed=3)

    def build(self, input_shape=None):
        self.dense.build(input_shape)

    def call(self, x, training=False):
        return self.drop(self.dense(x), training=training)


def sequential():
    return keras.Sequential(
        [keras.Input((4,)), layers.Dense(3), layers.Dropout(0.5, seed=3)]
    )


def recipe():
    return dlopt.Recipe([(dlopt.named("kernel"), dlopt.Prune(0.5))])


@pytest.mark.parametrize("make", [sequential, Inside])
def test_the_next_draw_is_the_same(make, tmp_path):
    model, x = make(), np.ones((2, 4), "float32")
    model(x)
    small = dlopt.transform(model, recipe())
    for _ in range(3):
        small(x, training=True)
    small.compile("sgd", "mse", metrics=["mae"])
    small.fit(x, np.ones((2, 3)), verbose=0)
    small.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    expected, found = (np.asarray(m(x, training=True)) for m in (small, loaded))
    assert expected.tobytes() == found.tobytes()


def test_a_transformed_layer_keeps_them_too(tmp_path):
    inner = layers.Bidirectional(layers.LSTM(2, dropout=0.5, seed=1))
    inputs = keras.Input((5, 3))
    model = keras.Model(inputs, dlopt.TransformedLayer(inner, recipe())(inputs))
    x = np.ones((2, 5, 3), "float32")
    model(x, training=True)
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    expected, found = (np.asarray(m(x, training=True)) for m in (model, loaded))
    assert expected.tobytes() == found.tobytes()


def test_recipes_with_starts_of_tfmot_load_where_only_the_package_is_imported(tmp_path):
    from keras_dlopt.interop import tfmot

    model = sequential()
    start = tfmot.TensorFlowKMeansPlusPlus()
    entry = (dlopt.named("kernel"), dlopt.Cluster(3, initial=start))
    dlopt.transform(model, dlopt.Recipe([entry])).save(tmp_path / "m.keras")
    code = (
        "import keras, keras_dlopt\n"
        f"keras.saving.load_model({str(tmp_path / 'm.keras')!r})\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_recipes_of_any_depth_and_type_are_refused_by_name():
    deep = []
    for _ in range(3_000):
        deep = [deep]
    good = recipe().to_dict()[0]
    for data in (deep, [deep], [good | {"transform": deep}], [good | {"select": deep}]):
        with pytest.raises(ConfigError, match="recipe"):
            dlopt.Recipe.from_dict(data)
    for text in (None, 5, b"\xff", "9" * 5_000, '[{"a":' + "9" * 5_000 + "}]"):
        with pytest.raises(
            ConfigError, match="The recipe (cannot be read|is not valid JSON)"
        ):
            dlopt.Recipe.from_json(text)
