import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from matplotlib.figure import Figure

import keras_dlopt as dlopt
from keras_dlopt.auto import Sensitivity
from keras_dlopt.errors import ConfigError, DataError, FormatError, ModelError
from reference.transforms import prune_mask, symmetric_quant

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def _net():
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(8, activation="relu", name="a"),
            keras.layers.Dense(3, name="b"),
        ]
    )


def _data():
    rng = np.random.default_rng(0)
    return rng.normal(size=(50, 6)).astype("float32"), rng.integers(0, 3, 50)


def _twin(weights, x, y):
    """Loss and accuracy in float64."""
    k1, b1, k2, b2 = (np.asarray(w, "float64") for w in weights)
    logits = np.maximum(x @ k1 + b1, 0) @ k2 + b2
    logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return -logs[np.arange(len(y)), y].mean(), (logits.argmax(-1) == y).mean()


def test_each_row_is_the_model_with_one_weight_changed():
    model, (x, y) = _net(), _data()
    before = model.get_weights()
    found = dlopt.sensitivity(
        model, (x, y), loss=LOSS, sparsities=(0.5, 0.9), bits=(4, 2), batch_size=16
    )
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert found.loss == pytest.approx(_twin(before, x, y)[0], rel=1e-5)
    assert len(found.rows) == 8
    for row in found.rows:
        weights = [w.astype("float64") for w in before]
        place = {"a/kernel": 0, "b/kernel": 2}[row.path]
        if row.kind == "sparsity":
            weights[place] *= prune_mask(before[place], row.level)
        else:
            weights[place] = symmetric_quant(before[place], row.level, (1,))[1]
        loss, accuracy = _twin(weights, x, y)
        assert row.loss == pytest.approx(loss, rel=1e-5)
        assert row.accuracy == pytest.approx(accuracy)


def test_data_sets_and_models_of_any_kind():
    x, y = _data()
    model = _net()
    model.compile("sgd", LOSS)
    batches = tf.data.Dataset.from_tensor_slices((x, y)).batch(20)
    options = {"sparsities": (0.5,), "bits": ()}
    whole = dlopt.sensitivity(model, (x, y), **options)
    parts = dlopt.sensitivity(model, batches, **options)
    assert parts.rows[0].loss == pytest.approx(whole.rows[0].loss, rel=1e-6)

    class Sub(keras.Model):
        def __init__(self):
            super().__init__()
            self.inner = model

        def call(self, inputs):
            return self.inner(inputs)

    sub = Sub()
    sub(x[:1])
    found = dlopt.sensitivity(sub, (x, y), loss=LOSS, **options)
    assert found.rows[0].loss == pytest.approx(whole.rows[0].loss, rel=1e-6)
    one_hot = np.eye(3, dtype="float32")[y]
    found = dlopt.sensitivity(model, (x, one_hot), loss="mse", **options)
    assert found.accuracy == whole.accuracy
    found = dlopt.sensitivity(model, (x, one_hot * 2.5), loss="mse", **options)
    assert found.accuracy is None
    with pytest.raises(ConfigError, match="There is no accuracy"):
        found.curves("accuracy")


def test_the_cache_is_kept_extended_and_resumed(tmp_path, monkeypatch):
    path = tmp_path / "cache.json"
    model, data = _net(), _data()
    first = dlopt.sensitivity(
        model, data, loss=LOSS, sparsities=(0.5,), bits=(), cache=path
    )
    calls = []
    predict = model.predict_on_batch
    monkeypatch.setattr(
        model, "predict_on_batch", lambda x: calls.append(1) or predict(x)
    )
    again = dlopt.sensitivity(
        model, data, loss=LOSS, sparsities=(0.5,), bits=(), cache=path
    )
    assert again == first
    assert not calls
    more = dlopt.sensitivity(
        model, data, loss=LOSS, sparsities=(0.5,), bits=(4,), cache=path
    )
    assert len(calls) == 2
    assert {r.kind for r in more.rows} == {"sparsity", "bits"}

    # Stopped in the middle: what was measured is in the file, the weight is back.
    path.unlink()
    before = model.get_weights()

    def stop(x):
        calls.append(1)
        if len(calls) == 7:
            raise KeyboardInterrupt
        return predict(x)

    monkeypatch.setattr(model, "predict_on_batch", stop)
    with pytest.raises(KeyboardInterrupt):
        dlopt.sensitivity(
            model, data, loss=LOSS, sparsities=(0.5, 0.6, 0.7), bits=(), cache=path
        )
    np.testing.assert_array_equal(before[2], model.get_weights()[2])
    assert len(json.loads(path.read_text())["rows"]) == 3
    done = dlopt.sensitivity(
        model, data, loss=LOSS, sparsities=(0.5, 0.6, 0.7), bits=(), cache=path
    )
    assert len(calls) == 7 + 3
    assert done.rows[0] == first.rows[0]

    # Other weights are another key.
    model.layers[0].kernel.assign(model.layers[0].kernel * 2)
    other = dlopt.sensitivity(
        model, data, loss=LOSS, sparsities=(0.5,), bits=(), cache=path
    )
    assert other.key != done.key
    path.write_text("{")
    with pytest.raises(FormatError, match="is damaged"):
        dlopt.sensitivity(model, data, loss=LOSS, cache=path)


def _found():
    rows = []
    for path, slope in (("a/kernel", 0.1), ("b/kernel", 1.0)):
        for level in (0.5, 0.9):
            loss = 1.0 + slope * level - (0.2 if level == 0.5 else 0)
            rows.append([path, "sparsity", level, loss, 0.9 - 0.1 * slope * level])
        for level in (8, 2):
            rows.append([path, "bits", level, 1 + slope / level, 0.9 - slope / level])
    names = ("path", "kind", "level", "loss", "accuracy")
    return Sensitivity.from_dict(
        {
            "loss": 1.0,
            "accuracy": 0.9,
            "rows": [dict(zip(names, row, strict=True)) for row in rows],
            "sizes": {"a/kernel": 48, "b/kernel": 24},
            "key": "k",
        }
    )


def test_what_the_result_says():
    found = _found()
    assert Sensitivity.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    assert found.levels("bits") == [8, 2]
    curves = found.curves()
    assert curves["a/kernel"][0] == (0.0, 0.0)
    assert curves["a/kernel"][1] == (0.5, 0.0)  # better than before: no loss
    assert curves["b/kernel"][2] == (0.9, pytest.approx(0.9))
    dlopt.Prune(0.5, distribution=dlopt.prune.BySensitivity(curves))
    assert found.within("bits", cost=0.051) == {"a/kernel": 2, "b/kernel": None}
    assert found.within("sparsity", cost=0.06)["b/kernel"] == 0.5
    lines = found.table().splitlines()
    assert lines[0].split() == ["weight", "50", "%", "90", "%", "8", "bit", "2", "bit"]
    assert lines[2].split()[-1] == "0.5000"
    assert "0.5000" in found.table("accuracy")
    with pytest.raises(ConfigError, match="kind is 'sparsity' or 'bits'"):
        found.costs("rank")
    with pytest.raises(ConfigError, match="not a sensitivity analysis"):
        Sensitivity.from_dict({"rows": []})


def test_the_plot_is_written(tmp_path):
    figure = _found().plot(tmp_path / "map.png", quality="accuracy")
    assert isinstance(figure, Figure)
    assert (tmp_path / "map.png").read_bytes()[:4] == b"\x89PNG"
    assert len(figure.axes) == 3  # two maps and the scale
    assert "before: 0.9000" in figure.axes[2].get_ylabel()


def test_what_is_refused():
    model, data = _net(), _data()
    with pytest.raises(ModelError, match="takes a built keras.Model"):
        dlopt.sensitivity(keras.Sequential(), data)
    recipe = dlopt.Recipe([(dlopt.named("kernel"), dlopt.Prune(0.5))])
    with pytest.raises(ModelError, match="is transformed, so that a changed weight"):
        dlopt.sensitivity(dlopt.transform(model, recipe), data, loss=LOSS)
    with pytest.raises(ConfigError, match="needs one loss"):
        dlopt.sensitivity(model, data)
    with pytest.raises(ConfigError, match="The selector finds no weight"):
        dlopt.sensitivity(model, data, loss=LOSS, select=dlopt.named("gamma"))
    with pytest.raises(DataError, match=r"data must be \(x, y\)"):
        dlopt.sensitivity(model, (data[0],), loss=LOSS)
    with pytest.raises(DataError, match=r"must be \(inputs, labels\)"):
        dlopt.sensitivity(model, iter([1]), loss=LOSS)
    with pytest.raises(DataError, match="hold no examples"):
        dlopt.sensitivity(model, (data[0][:0], data[1][:0]), loss=LOSS)
