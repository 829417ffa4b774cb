"""Saved train steps."""

import json
import zipfile

import keras
import numpy as np
import pytest

import keras_dlopt as dlopt
from keras_dlopt import tpu
from keras_dlopt.errors import ConfigError, FormatError, ModelError

pytest.importorskip("jax")


def _model():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.compile(dlopt.optimizers.Adam(0.1), "mse")
    return model


def test_a_saved_step_trains_as_the_model_does(tmp_path):
    model = _model()
    x, y = np.ones((4, 3), "float32"), np.zeros((4, 2), "float32")
    tpu.save_step(model, tmp_path / "step.zip", batch=4)
    saved = tpu.load_step(tmp_path / "step.zip")
    assert saved.batch == 4
    assert saved.inputs == [((4, 3), "float32"), ((4, 2), "float32")]
    state = saved.state
    for _ in range(3):
        wanted = model.train_on_batch(x, y)
        loss, state = saved(state, x, y)
        np.testing.assert_allclose(float(loss), wanted, rtol=1e-5)
    for value, variable in zip(state.trainable, model.trainable_variables, strict=True):
        np.testing.assert_allclose(np.asarray(value), variable.numpy(), atol=1e-6)


@pytest.mark.parametrize("batch", [0, -1, 2.0, True])
def test_batches(batch, tmp_path):
    with pytest.raises(ConfigError, match="batch must be a whole number, 1 or greater"):
        tpu.save_step(_model(), tmp_path / "s", batch=batch)


def test_an_uncompiled_model(tmp_path):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    with pytest.raises(ModelError, match="not compiled, so there is no loss"):
        tpu.save_step(model, tmp_path / "s", batch=4)


def test_files_that_hold_no_step(tmp_path):
    with pytest.raises(FormatError, match="holds no train step"):
        tpu.load_step(tmp_path / "none")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(FormatError, match=r"Write it with tpu\.save_step\(\)"):
        tpu.load_step(tmp_path / "text")
    with zipfile.ZipFile(tmp_path / "new", "w") as file:
        for name in ("step.bin", "state.npz"):
            file.writestr(name, b"")
        file.writestr("step.json", json.dumps({"version": 9}))
    with pytest.raises(FormatError, match="is of version 9, this reads 1"):
        tpu.load_step(tmp_path / "new")


def test_programs_of_unusual_models():
    from keras_dlopt.tpu import programs

    net = keras.Sequential([keras.Input((None, 3)), keras.layers.Dense(2)])
    with pytest.raises(ModelError, match="A TPU program has fixed shapes"):
        programs.input_specs(net, 4)
    with pytest.raises(ConfigError, match="No model 'nothing': give a .keras file"):
        programs.load_model("nothing")
    with pytest.raises(ConfigError, match="could not be imported"):
        programs.load_model("no_such_module:build")
    with pytest.raises(ModelError, match="gave dict, not a keras.Model"):
        programs.load_model("builtins:dict")
    model = _model()

    def picky(y, predicted):
        raise ValueError("never")

    model.compile("sgd", picky)
    with pytest.raises(ModelError, match="takes neither targets like the outputs"):
        programs.target_specs(model, programs.input_specs(model, 4))


def test_losses_of_several_outputs_in_a_list_or_dictionary():
    from keras_dlopt.tpu import programs

    inputs = keras.Input((3,))
    outputs = [keras.layers.Dense(n, name=f"out{n}")(inputs) for n in (4, 2)]
    sparse = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    for made, losses in (
        (outputs, [sparse, "mse"]),
        (outputs, {"out4": sparse, "out2": "mse"}),
        ({"a": outputs[0], "b": outputs[1]}, {"a": sparse, "b": "mse"}),
    ):
        net = keras.Model(inputs, made)
        net.compile("sgd", losses)
        found = programs.target_specs(net, programs.input_specs(net, 8))
        shapes = [spec.shape for spec in keras.tree.flatten(found)]
        assert shapes == [(8,), (8, 2)]


def unbuilt():
    return keras.Sequential([keras.layers.Dense(2)])


def test_what_is_no_model_is_named(tmp_path, monkeypatch):
    from keras_dlopt.tpu import programs

    (tmp_path / "text.keras").write_text("hello")
    with pytest.raises(ConfigError, match="is no model file: a .keras file is a zip"):
        programs.load_model(str(tmp_path / "text.keras"))
    monkeypatch.setattr(programs, "_builder", lambda source: unbuilt)
    with pytest.raises(ModelError, match="'here:unbuilt' is not built, so it has no"):
        programs.load_model("here:unbuilt")


def test_code_in_a_file_runs_if_the_user_says_so(tmp_path):
    from keras_dlopt.tpu import programs

    path = str(tmp_path / "m.keras")
    layers = [keras.layers.Lambda(lambda x: 2 * x), keras.layers.Dense(2)]
    keras.Sequential([keras.Input((3,)), *layers]).save(path)
    with pytest.raises(ValueError, match="safe_mode"):
        programs.load_model(path)
    assert programs.load_model(path, safe_mode=False).output_shape == (None, 2)


def test_policy_is_for_models_built_by_name(tmp_path):
    from keras_dlopt.tpu import programs

    _model().save(tmp_path / "m.keras")
    with pytest.raises(ConfigError, match="is for models built by name"):
        programs.load_model(str(tmp_path / "m.keras"), policy="mixed_bfloat16")
    assert "checked with Adam" in programs.compile_if_needed(
        keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    )
