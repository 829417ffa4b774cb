"""TFMOT's names and files: what refused models are told to do."""

import json
import pathlib
import shutil

import h5py
import keras
import numpy as np
import pytest
from keras import Input, layers

import keras_dlopt as dlopt
from keras_dlopt import FakeQuant, Prune
from keras_dlopt.int8 import int8_recipe
from keras_dlopt.interop import tfmot

advice = pytest.mark.advice
GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "tfmot"
X = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")


def net():
    keras.utils.set_random_seed(0)
    return keras.Sequential([Input((4,)), layers.Dense(4, name="d")], name="m")


def changed(folder, change):
    """A copy of a pruned model's file with another config."""
    path = shutil.copy(GOLDEN / "pruned.h5", folder / "changed.h5")
    with h5py.File(path, "r+") as file:
        config = json.loads(file.attrs["model_config"])
        change(config["config"]["layers"])
        file.attrs["model_config"] = json.dumps(config)
    return path


def shapeless(found):
    del found[0]
    for layer in found:
        layer["config"].pop("batch_input_shape", None)
        layer["config"].get("layer", {"config": {}})["config"].pop(
            "batch_input_shape", None
        )


def own_schedule(found):
    found[1]["config"]["pruning_schedule"]["class_name"] = "Mine"


def code(found):
    found[1]["config"]["layer"]["class_name"] = "Lambda"


@advice(
    "interop/tfmot/files.py", "Give a tf_keras model's .h5 file or SavedModel folde"
)
@advice("interop/tfmot/files.py", "Save it again with model.save('model.h5').")
@advice("interop/tfmot/files.py", "Strip the model to its weights first.")
@advice(
    "interop/tfmot/conversion.py", "Call the model once in tf_keras and save it aga"
)
@advice("interop/tfmot/conversion.py", "Strip the model in TFMOT, or prune it anew.")
@advice(
    "interop/tfmot/legacy.py", "Build the model in Keras 3 by hand and load its wei"
)
def test_files(told, tmp_path, monkeypatch):
    with told():
        tfmot.load_model(tmp_path / "absent.h5")
    with told():
        tfmot.load_model(shutil.copy(__file__, tmp_path / "text.h5"))
    for change in (shapeless, own_schedule, code):
        with told():
            tfmot.load_model(changed(tmp_path, change))
    with monkeypatch.context() as patched, told():
        patched.setattr("keras_dlopt.interop.tfmot.files.MAX_BYTES", 9)
        tfmot.load_model(GOLDEN / "pruned.h5")
    # As tf_keras saved them, called once; a stripped file has fewer arrays.
    for name in ("pruned.h5", "quantized_saved_model"):
        loaded = tfmot.load_model(GOLDEN / name)
        assert loaded.built
    size = sum(v.nbytes for v in dlopt.finalize(loaded).get_weights())
    assert size < 2**31
    by_hand = net()
    by_hand.set_weights([np.ones((4, 4)), np.zeros(4)])
    again = tfmot.prune_low_magnitude(by_hand, tfmot.ConstantSparsity(0.5, 1))
    again.update_transforms(0)
    assert np.isfinite(tfmot.strip_pruning(again)(X)).all()


class Own(layers.Layer, tfmot.PrunableLayer):
    def build(self, shape):
        self.kernel = self.add_weight(shape=(4, 4), name="kernel")
        self.built = True

    def call(self, x):
        return keras.ops.matmul(x, self.kernel)

    def get_prunable_weights(self):
        return [self.kernel]


class OnlyDense(tfmot.PruningPolicy):
    def allow_pruning(self, layer):
        return isinstance(layer, layers.Dense)

    def ensure_model_supports_pruning(self, model):
        pass


HALF = {"pruning_schedule": tfmot.ConstantSparsity(0.5, 1)}


@advice("interop/tfmot/pruning.py", "Build it, or prune the model that it is in.")
@advice(
    "interop/tfmot/pruning.py", "Wrap only the layers that are to be pruned instead."
)
@advice("interop/tfmot/pruning.py", "Give one of them.")
@advice(
    "interop/tfmot/summaries.py", "Give them to a keras.callbacks.TensorBoard beside"
)
def test_pruning(told, tmp_path):
    def zeros(model):
        model.compile("sgd", "mse")
        model.fit(X, X, verbose=0, callbacks=[tfmot.UpdatePruningStep()])
        (kernel,) = (
            v for v in tfmot.strip_pruning(model).weights if v.name == "kernel"
        )
        return float(np.mean(kernel.numpy() == 0))

    def alone(layer):
        return keras.Sequential([Input((4,)), layer])

    with told():
        tfmot.prune_low_magnitude(Own(), **HALF)
    built = Own()
    built.build((None, 4))
    assert zeros(alone(tfmot.prune_low_magnitude(built, **HALF))) == 0.5
    assert zeros(tfmot.prune_low_magnitude(alone(Own()), **HALF)) == 0.5
    policy = {**HALF, "pruning_policy": OnlyDense()}
    with told():
        tfmot.prune_low_magnitude(layers.Dense(4), **policy)
    assert zeros(alone(tfmot.prune_low_magnitude(layers.Dense(4), **HALF))) == 0.5
    blocks, groups = {"block_size": (2, 2)}, {"sparsity_m_by_n": (2, 4)}
    with told():
        tfmot.prune_low_magnitude(net(), **HALF, **blocks, **groups)
    for one in (blocks, groups):
        assert zeros(tfmot.prune_low_magnitude(net(), **HALF, **one)) == 0.5
    with told():
        tfmot.PruningSummaries(tmp_path, histogram_freq=1)
    small = tfmot.prune_low_magnitude(net(), **HALF)
    small.compile("sgd", "mse")
    small.fit(X, X, verbose=0, callbacks=[tfmot.PruningSummaries(tmp_path / "a")])
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    # It needs the package tensorboard to write, and takes the option.
    beside = keras.callbacks.TensorBoard(tmp_path / "b", histogram_freq=1)
    assert beside.histogram_freq == 1


@advice(
    "interop/tfmot/quantization.py", "Strip it first (strip_pruning, strip_clusteri"
)
@advice(
    "interop/tfmot/quantization.py", "Write it as a recipe for keras_dlopt.transfor"
)
@advice(
    "interop/tfmot/quantization.py", "Annotate them with quantize_annotate_layer or"
)
def test_quantizing(told):
    pruned = tfmot.prune_low_magnitude(net(), **HALF)
    pruned.update_transforms(0)
    with told():
        tfmot.quantize_model(pruned)
    stripped = tfmot.strip_pruning(pruned)
    assert tfmot.quantize_model(stripped).built
    recipe = int8_recipe(stripped, weights=Prune(0.8) >> FakeQuant(bits=8))
    one = dlopt.transform(stripped, recipe)
    assert one(X).shape == (8, 4)
    with told():
        tfmot.quantize_apply(tfmot.quantize_annotate_model(net()), scheme="mine")
    with told():
        tfmot.quantize_apply(net())
    one_layer = keras.Sequential(
        [Input((4,)), tfmot.quantize_annotate_layer(layers.Dense(4, name="d"))]
    )
    for made in (
        tfmot.quantize_apply(tfmot.quantize_annotate_model(net())),
        tfmot.quantize_apply(one_layer),
        tfmot.quantize_model(net()),
    ):
        assert made(X).shape == (8, 4)
