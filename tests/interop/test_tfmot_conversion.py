import json
import pathlib
import shutil

import h5py
import keras
import numpy as np
import pytest

import keras_dlopt as dlopt
from keras_dlopt.errors import ConfigError, FormatError
from keras_dlopt.interop import tfmot

GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "golden" / "tfmot"


def _inputs():
    rng = np.random.default_rng(0)
    return rng.normal(size=(64, 8, 8, 2)).astype("float32")[:4]


@pytest.mark.parametrize(
    ("file", "outputs"),
    [
        ("pruned.h5", "pruned"),
        ("clustered.h5", "clustered"),
        ("quantized.h5", "quantized"),
        ("quantized_saved_model", "quantized"),
    ],
)
def test_the_converted_model_predicts_what_tfmot_did(file, outputs):
    model = tfmot.load_model(GOLDEN / file)
    assert isinstance(model, dlopt.TransformedModel)
    expected = np.load(GOLDEN / f"{outputs}_outputs.npy")
    # The same float32 arithmetic, in another order; quantized outputs are on one grid.
    ours = model.predict_on_batch(_inputs())
    np.testing.assert_allclose(ours, expected, atol=2e-5)


def test_masks_and_the_schedule_come_along():
    model = tfmot.load_model(GOLDEN / "pruned.h5")
    ((_, prune),) = model.recipe.entries
    assert prune.sparsity.final_sparsity == 0.83
    (group,) = model.groups
    assert int(group.last.value) == 15  # its step 16, counted from 1
    golden = np.load(GOLDEN / "pruning.npz")
    for slot in group.slots:
        name = slot.target.path.split("/")[0]
        np.testing.assert_array_equal(slot.arrays()["mask"], golden[f"13_{name}_mask"])
    plain = dlopt.finalize(model)
    assert np.mean(plain.get_layer("dense").kernel.numpy() == 0) > 0.8


def test_shared_values_come_along_and_train_on():
    model = tfmot.load_model(GOLDEN / "clustered.h5")
    plain = dlopt.finalize(model)
    assert len(np.unique(plain.get_layer("dense").kernel.numpy())) <= 5
    model.compile("sgd", "mse")
    model.fit(_inputs(), np.zeros((4, 5)), verbose=0)
    assert len(np.unique(dlopt.finalize(model).get_layer("dense").kernel)) <= 5


def test_ranges_are_the_trained_ones():
    golden = np.load(GOLDEN / "quantization.npz")
    model = tfmot.load_model(GOLDEN / "quantized.h5")
    state = {s.target.path: s.arrays() for g in model.groups for s in g.slots}
    assert set(state) == {
        "conv/input",
        "conv/output",
        "conv/kernel",
        "dense/output",
        "dense/kernel",
    }
    high = golden["variable:quant_conv/kernel_max:0"]
    np.testing.assert_array_equal(state["conv/kernel"]["high"].ravel(), high)
    low = golden["variable:quantize_layer/quantize_layer_min:0"]
    assert state["conv/input"]["low"] == low


@pytest.mark.parametrize("file", ["quantized.h5", "quantized_saved_model"])
def test_a_quantized_model_is_finalized_with_the_trained_ranges(file):
    model = tfmot.load_model(GOLDEN / file)
    high = np.load(GOLDEN / "quantization.npz")["variable:quant_conv/kernel_max:0"]
    kernel = dlopt.finalize(model).get_layer("conv").kernel.numpy()
    codes = kernel / (high / 127)  # TFMOT's narrow range: codes from -127 to 127
    np.testing.assert_allclose(codes, np.rint(codes), atol=1e-3)
    assert np.abs(codes).max() <= 127.001


def _copy(tmp_path, change, file="pruned.h5"):
    """A copy of a file whose model config was changed."""
    path = tmp_path / file
    shutil.copy(GOLDEN / file, path)
    with h5py.File(path, "r+") as h5:
        config = json.loads(h5.attrs["model_config"])
        change(config, h5)
        h5.attrs["model_config"] = json.dumps(config)
    return path


def test_a_functional_model_with_plain_layers(tmp_path):
    def change(config, h5):
        layers = config["config"]["layers"]
        for i, layer in enumerate(layers):
            layer["name"] = layer["config"]["name"]
            before = layers[i - 1]["config"]["name"] if i else None
            layer["inbound_nodes"] = [[[before, 0, 0, {}]]] if i else []
        ends = [layers[0]["name"], 0, 0], [layers[-1]["name"], 0, 0]
        config["config"]["input_layers"] = [ends[0]]
        config["config"]["output_layers"] = [ends[1]]
        config["class_name"] = "Functional"

    for file in ("quantized.h5", "pruned.h5"):
        model = tfmot.load_model(_copy(tmp_path, change, file))
        expected = np.load(GOLDEN / f"{file.removesuffix('.h5')}_outputs.npy")
        ours = model.predict_on_batch(_inputs())
        np.testing.assert_allclose(ours, expected, atol=2e-5)
        assert not isinstance(model.model, keras.Sequential)


def test_files_that_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="There is no file or folder"):
        tfmot.load_model(tmp_path / "nothing.h5")
    (tmp_path / "text.h5").write_text("no")
    with pytest.raises(FormatError, match="is not a Sequential or Functional model"):
        tfmot.load_model(tmp_path / "text.h5")

    def code(config, h5):
        config["config"]["layers"][1]["config"]["layer"]["class_name"] = "Lambda"

    with pytest.raises(FormatError, match="names 'Lambda', .* holds code"):
        tfmot.load_model(_copy(tmp_path, code))

    def other(config, h5):
        config["class_name"] = "Custom"

    with pytest.raises(FormatError, match="it holds a 'Custom'"):
        tfmot.load_model(_copy(tmp_path, other))

    def schedule(config, h5):
        spec = config["config"]["layers"][1]["config"]["pruning_schedule"]
        spec["class_name"] = "Mine"

    with pytest.raises(FormatError, match="a schedule of its own, 'Mine'"):
        tfmot.load_model(_copy(tmp_path, schedule))

    def linked(config, h5):
        group = h5["model_weights/prune_low_magnitude_conv"]
        del group["conv/kernel:0"]
        group["conv/kernel:0"] = h5py.ExternalLink("/etc/hostname", "/")

    with pytest.raises(FormatError, match="is not stored in it"):
        tfmot.load_model(_copy(tmp_path, linked))

    def shapes(config, h5):
        config["config"]["layers"][1]["config"]["layer"]["config"]["filters"] = 7

    with pytest.raises(ValueError, match="(?i)shape"):
        tfmot.load_model(_copy(tmp_path, shapes))


def test_a_saved_model_with_damaged_metadata_is_refused(tmp_path):
    place = tmp_path / "model"
    shutil.copytree(GOLDEN / "quantized_saved_model", place)
    file = place / "keras_metadata.pb"
    file.write_bytes(file.read_bytes()[:-7])
    with pytest.raises(FormatError, match="ValueError: keras_metadata.pb is damaged: "):
        tfmot.load_model(place)
