"""Which models are known to be the same without running them."""

import keras
import numpy as np
import pytest
from keras import layers

from keras_dlopt.errors import ModelError
from keras_dlopt.storage import load_compressed, probe, save_compressed
from keras_dlopt.storage.alike import alike


@pytest.fixture
def runs(monkeypatch):
    """Counts the runs that compare predictions."""
    counted, check = [], probe.check
    monkeypatch.setattr(
        probe, "check", lambda *models: (counted.append(models), check(*models))
    )
    return counted


def net():
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, activation="relu")(inputs)
    x = layers.BatchNormalization()(x)
    x = layers.Add()([x, layers.Conv2D(4, 1)(x)])
    x = keras.ops.relu(layers.Dropout(0.5)(x))
    return keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x)))


def test_models_of_keras_own_layers_are_not_run(runs, tmp_path):
    model = net()
    save_compressed(model, tmp_path / "m.dlopt")
    model.compile("sgd", "mse")
    model.train_on_batch(np.ones((2, 8, 8, 3)), np.ones((2, 3)))
    save_compressed(model, tmp_path / "m.dlopt")
    assert not runs
    x = np.ones((2, 8, 8, 3), "float32")
    assert np.array_equal(load_compressed(tmp_path / "m.dlopt")(x), model(x))


def test_a_method_of_one_layer_is_found(runs, tmp_path):
    model = net()
    last = model.layers[-1]
    plain = last.call
    last.call = lambda *args, **more: 2 * plain(*args, **more)
    with pytest.raises(ModelError, match="predictions would differ by 0.5 of the larg"):
        save_compressed(model, tmp_path / "m.dlopt")
    assert runs


def test_what_is_put_on_a_layer_has_the_model_run(runs, tmp_path):
    for value in (1, np.ones(3), {"a": [1, "b"]}, print):
        model = net()
        model.layers[-1].own = value
        save_compressed(model, tmp_path / "m.dlopt")
        assert len(runs) == 1
        runs.clear()


def test_values_beside_the_variables_are_compared(tmp_path):
    norm = layers.Normalization()
    norm.adapt(np.random.default_rng(0).normal(2, 3, (50, 4)))
    model = keras.Sequential([keras.Input((4,)), norm, layers.Dense(2)])
    save_compressed(model, tmp_path / "m.dlopt")
    norm.mean = norm.mean + 1
    with pytest.raises(ModelError, match="predictions would differ"):
        save_compressed(model, tmp_path / "m.dlopt")


@keras.saving.register_keras_serializable("storage_alike")
class Twice(layers.Layer):
    def call(self, x):
        return 2 * x


def test_classes_of_ones_own_are_run(runs, tmp_path):
    model = keras.Sequential([keras.Input((4,)), Twice(), layers.Dense(2)])
    save_compressed(model, tmp_path / "m.dlopt")
    assert len(runs) == 1


class Own:
    pass


def scaled(factor):
    return lambda x: factor * x


def test_what_others_made_is_not_taken_for_equal():
    def dense():
        made = layers.Dense(2, name="d")
        return made, keras.Sequential([keras.Input((4,), name="x"), made], name="m")

    for values in ((Own(), Own()), (scaled(1), scaled(2))):
        (one, model), (other, loaded) = dense(), dense()
        assert alike(model, loaded)
        one.own, other.own = values
        assert not alike(model, loaded)
        other.own = one.own
        assert alike(model, loaded)
