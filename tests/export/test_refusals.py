"""What cannot work is refused with a text that says what to do, and leaves no file."""

import os

import keras
import numpy as np
import pytest
from keras import layers

import keras_dlopt as dlopt
from keras_dlopt import FakeQuant, FakeQuantActivation, export
from keras_dlopt.errors import (
    ConfigError,
    DataError,
    ExportError,
    FormatError,
    MissingDependencyError,
    ModelError,
)
from keras_dlopt.export.twin import Kernel, Range
from keras_dlopt.int8 import int8_recipe
from keras_dlopt.transforms import Transform, TransformedLayer

ENDS = ("c/input", "c/output", "d/output")


def net():
    return keras.Sequential(
        [
            keras.Input((4, 4, 2)),
            layers.Conv2D(3, 3, name="c"),
            layers.Flatten(name="flat"),
            layers.Dense(2, name="d"),
        ]
    )


def trained(paths=ENDS, *, quantizer=None, weights=None, more=(), model=None):
    entries = [
        *more,
        (dlopt.at(*paths), quantizer or FakeQuantActivation()),
        (dlopt.named("kernel"), weights or FakeQuant(bits=8)),
    ]
    small = dlopt.transform(model or net(), dlopt.Recipe(entries))
    x = np.random.default_rng(0).normal(size=(16, 4, 4, 2)).astype("float32")
    small(x, training=True)
    return small


def refused(error, text, model, path, **kwargs):
    with pytest.raises(error, match=text):
        export.litert(model, path, **kwargs)
    assert os.listdir(os.path.dirname(path)) == []


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.tflite"


@pytest.mark.parametrize("bits", [4, 7])
def test_activations_of_other_widths(path, bits):
    model = trained(quantizer=FakeQuantActivation(bits=bits))
    refused(
        ConfigError,
        rf"8 or 16 bits.*has {bits}.*FakeQuantActivation\(bits=8\)",
        model,
        path,
    )


def test_other_transforms_of_activations(path):
    class Double(Transform):
        kind = "activation"

        def apply(self, weight, state, context):
            return 2 * weight

    refused(
        ConfigError,
        "knows FakeQuantActivation.*Double",
        trained(quantizer=Double()),
        path,
    )


def test_ranges_that_were_never_trained(path):
    model = net()
    small = dlopt.transform(model, int8_recipe(model))
    refused(ExportError, r"ranges of \['c/input'.*never set.*fit\(\)", small, path)


@pytest.mark.parametrize(
    ("paths", "layer"),
    [
        (("c/input", "d/output"), "CONV_2D from 'c': what it makes has no quantizer"),
        (ENDS[:2], "FULLY_CONNECTED from 'd': what it makes has no quantizer"),
        (ENDS[1:], "CONV_2D from 'c': what it takes has no quantizer"),
    ],
)
def test_operations_that_stay_in_float(path, paths, layer):
    refused(
        ExportError,
        f"stay in float: .*{layer}.*'<layer>/output'",
        trained(paths),
        path,
        full_integer=True,
    )


def test_a_kernel_that_is_on_no_grid_stays_in_float(path):
    model = trained(weights=dlopt.Prune(0.5))
    model.update_transforms(0)
    refused(
        ExportError,
        "CONV_2D from 'c': its kernel is not on an int8 grid",
        model,
        path,
        full_integer=True,
    )


@pytest.mark.parametrize(("paths", "what"), [(ENDS[1:], "input"), (ENDS[:2], "output")])
def test_int8_ends_without_a_quantizer(path, paths, what):
    text = f"io='int8' needs a quantizer at every {what}.*int8_recipe"
    refused(ConfigError, text, trained(paths), path, io="int8")


def test_quantizers_inside_transformed_layers(path):
    block = keras.Sequential([keras.Input((4,)), layers.Dense(3, name="d")])
    layer = TransformedLayer(
        block, dlopt.Recipe([(dlopt.at("d/output"), FakeQuantActivation())])
    )
    model = keras.Sequential([keras.Input((4,)), layer])
    refused(ConfigError, r"keras_dlopt.transform\(model, recipe\)", model, path)


def test_files_that_hold_something_else(path):
    small = trained()
    export.litert(small, path)
    plain = dlopt.finalize(small)
    from keras_dlopt.export.verify import check

    wrong = Kernel("c/kernel", np.ones((3, 18), "int32"), np.ones(3, "float32"))
    with pytest.raises(ExportError, match="codes and scales of 'c/kernel' are not in"):
        check(path, plain, [], [wrong])
    lost = Range("c/output", np.float32(-1), np.float32(1))
    with pytest.raises(ExportError, match=r"ranges of \['c/output'\] are not in"):
        check(path, plain, [lost], [])


def test_failure_and_interruption_keep_the_old_file(path, monkeypatch):
    path.write_bytes(b"old")
    model = net()
    for error, expected in (
        (KeyboardInterrupt(), KeyboardInterrupt),
        (ValueError("no such op"), ExportError),
    ):

        def fail(*args, error=error):
            raise error

        monkeypatch.setattr("keras_dlopt.export.floating._converted", fail)
        with pytest.raises(expected, match=None if error.args == () else "no such op"):
            export.litert(model, path)
        assert os.listdir(path.parent) == ["model.tflite"]
        assert path.read_bytes() == b"old"


def test_a_disk_that_is_full_keeps_the_old_file(path, monkeypatch):
    path.write_bytes(b"old")

    def fail(self, path, **kwargs):
        with open(path, "wb") as file:
            file.write(b"half")
        raise OSError("no space left")

    monkeypatch.setattr("keras_dlopt.export.flat.Flat.write", fail)
    with pytest.raises(OSError, match="no space left"):
        export.litert(net(), path)
    assert os.listdir(path.parent) == ["model.tflite"]
    assert path.read_bytes() == b"old"


def test_arguments(path):
    model = net()
    for error, text, kwargs in (
        (ConfigError, "io must be 'float', 'int8' or 'int16'", {"io": "int4"}),
        (ConfigError, "io='int8' needs a quantized model", {"io": "int8"}),
        (ConfigError, "full_integer=True needs a qu", {"full_integer": True}),
        (ConfigError, "only with verify=True", {"data": np.ones(3), "verify": False}),
    ):
        refused(error, text, model, path, **kwargs)
    with pytest.raises(ConfigError, match=r"must end in '.tflite'"):
        export.litert(model, path.with_suffix(".bin"))
    with pytest.raises(ConfigError, match="does not exist or is not writable"):
        export.litert(model, path / "no" / "model.tflite")
    with pytest.raises(ModelError, match="must be a built keras.Model"):
        export.litert(keras.Sequential([layers.Dense(2)]), path)


def test_other_backends(path, monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "torch")
    refused(ConfigError, "'torch'.*KERAS_BACKEND=tensorflow", net(), path)


def test_without_the_runtime(path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ai_edge_litert.interpreter", None)
    text = r"ai-edge-litert.*keras-dlopt\[litert\]"
    refused(MissingDependencyError, text, trained(), path)
    report = export.litert(net(), path)
    assert not report.verified
    assert path.stat().st_size > 0


def test_running_wrong_files_and_wrong_data(path):
    with pytest.raises(FileNotFoundError, match="There is no file"):
        export.run_litert(path, np.ones((1, 4)))
    path.write_bytes(b"not a model at all")
    with pytest.raises(FormatError, match="is not a LiteRT model"):
        export.run_litert(path, np.ones((1, 4)))
    export.litert(keras.Sequential([keras.Input((4,)), layers.Dense(2)]), path)
    with pytest.raises(DataError, match=r"shape \[\(4,\)\].*\[\(2, 5\)\]"):
        export.run_litert(path, np.ones((2, 5)))
