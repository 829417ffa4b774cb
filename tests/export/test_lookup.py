"""TFLM's compressed files: smaller, and equal in every output code."""

import importlib.util

import keras
import numpy as np
import pytest
from keras import layers

import keras_dlopt as dlopt
from keras_dlopt import Cluster, FakeQuant, export
from keras_dlopt.errors import ConfigError, ExportError
from keras_dlopt.export import lookup, micro
from keras_dlopt.export.flat import Flat
from keras_dlopt.post_training import quantize

pytest.importorskip("ai_edge_litert")
tflm = pytest.mark.skipif(
    importlib.util.find_spec("tflite_micro") is None, reason="needs tflite-micro"
)
X = np.random.default_rng(0).normal(size=(24, 10, 10, 3)).astype("float32")
ONE_SCALE = FakeQuant(bits=8, per_channel=False)


def small(weights):
    keras.utils.set_random_seed(0)
    parts = [
        keras.Input(X.shape[1:]),
        layers.Conv2D(24, 3, activation="relu", name="c"),
        layers.DepthwiseConv2D(3, name="dw"),
        layers.Conv2D(24, 3, activation="relu", name="p"),
        layers.Flatten(),
        layers.Dense(7, name="d"),
    ]
    return quantize(keras.Sequential(parts, name="net"), X, weights=weights)


def decoders(path):
    return [op.custom for op in Flat(path).ops].count(b"TFLM_DECODE")


@tflm
@pytest.mark.parametrize(
    ("weights", "bytes_a_code"),
    [(Cluster(16) >> ONE_SCALE, 0.5), (Cluster(4) >> ONE_SCALE, 0.25)],
)
def test_one_table_a_kernel(weights, bytes_a_code, tmp_path):
    model = small(weights)
    plain = export.litert(model, tmp_path / "a.tflite", target="tflm", data=X)
    report = export.litert(
        model, tmp_path / "b.tflite", target="tflm", storage="lookup", data=X
    )
    # The depthwise kernel of 216 codes would not become smaller.
    assert report.remarks[0].startswith("3 kernels as tables")
    assert "codes of 24 batches equal" in report.remarks[0]
    assert decoders(report.path) == 3
    codes = 27 * 24 + 9 * 24 * 24 + 16 * 24 * 7
    saved = (1 - bytes_a_code) * codes
    assert saved - 900 < plain.size - report.size < saved
    rng = np.random.default_rng(1)
    codes = rng.integers(-128, 128, (5, 1, *X.shape[1:])).astype("int8")
    batches = [[one] for one in codes]
    for one, other in zip(
        micro.outputs(plain.path, batches),
        micro.outputs(report.path, batches),
        strict=True,
    ):
        np.testing.assert_array_equal(one[0], other[0])


@tflm
def test_a_table_for_each_channel_where_each_has_a_scale(tmp_path):
    model = small(FakeQuant(bits=3))
    path = tmp_path / "b.tflite"
    report = export.litert(model, path, target="tflm", storage="lookup")
    assert "kernels as tables" in report.remarks[0]
    export.litert(model, path, io="int8")
    found = lookup.tables(Flat(path))
    assert {axis for _, axis in found.values()} == {0}
    assert all(bits <= 3 for bits, _ in found.values())


def test_what_cannot_be_is_told(tmp_path, monkeypatch):
    path = tmp_path / "a.tflite"
    with pytest.raises(ConfigError, match="is for TFLM.* Pass target='tflm'"):
        export.litert(small(ONE_SCALE), path, storage="lookup")
    monkeypatch.setattr(micro, "require_package", lambda: None)
    monkeypatch.setattr(micro, "compare", lambda *_: "equal")
    pytest.importorskip("tflite_micro")
    with pytest.raises(ConfigError, match="large kernels of few values.* Train with"):
        export.litert(small(ONE_SCALE), path, target="tflm", storage="lookup")
    made = [[[np.zeros(3)]], [[np.arange(3)]]]
    monkeypatch.setattr(micro, "outputs", lambda *_: made.pop(0))
    with pytest.raises(ExportError, match="TFLM returns 2 other output codes"):
        export.litert(
            small(Cluster(16) >> ONE_SCALE), path, target="tflm", storage="lookup"
        )
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_tflm_does_not_run(tmp_path, monkeypatch):
    path = tmp_path / "a.tflite"
    export.litert(small(ONE_SCALE), path, io="int8")
    log = "Didn't find op for builtin opcode 'CONV_2D'"
    monkeypatch.setattr(micro, "_run", lambda *_: micro._Run(None, {}, log))
    with pytest.raises(ExportError, match="cannot run the file: TFLM has no such op"):
        micro.outputs(path)
    assert dlopt.export.Predictor(path)(X).shape == (24, 7)
