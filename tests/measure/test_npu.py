"""Vela's estimate; where the compiler is not installed, the error that says so."""

import importlib.util
import subprocess

import keras
import numpy as np
import pytest

import keras_dlopt as dlopt
from keras_dlopt.errors import ConfigError, ExportError, MissingDependencyError
from keras_dlopt.measure import npu

vela = pytest.mark.skipif(
    importlib.util.find_spec("ethosu") is None, reason="needs ethos-u-vela"
)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A small network as float file and as int8 file."""
    pytest.importorskip("ai_edge_litert")
    folder = tmp_path_factory.mktemp("npu")
    layers = [keras.Input((8, 8, 3)), keras.layers.Conv2D(16, 3, activation="relu")]
    layers += [keras.layers.Flatten(), keras.layers.Dense(10)]
    model = keras.Sequential(layers)
    dlopt.export.litert(model, folder / "float.tflite", verify=False)
    x = np.random.default_rng(0).normal(size=(16, 8, 8, 3)).astype("float32")
    small = dlopt.post_training.quantize(model, x)
    dlopt.export.litert(small, folder / "int8.tflite", io="int8")
    return folder


@vela
def test_an_int8_file_runs_on_the_npu(files):
    found = npu.npu_estimate(files / "int8.tflite")
    assert found.cpu == ()
    assert found.macs == 36 * 27 * 16 + 576 * 10
    assert 0 < found.seconds < 1
    # The default accelerator runs at 500 MHz.
    assert found.cycles == pytest.approx(found.seconds * 500e6, rel=1e-3)
    assert found.flash > 1000
    small = npu.npu_estimate(files / "int8.tflite", accelerator="ethos-u55-32")
    assert small.seconds > found.seconds


@vela
def test_float_operations_are_named_with_the_reason(files):
    found = npu.npu_estimate(files / "float.tflite")
    assert len(found.cpu) == found.operators
    assert all("unsupported DataType Float32" in why for *_, why in found.cpu)
    assert (found.cycles, found.flash) == (0, 0)


@vela
def test_what_is_no_model_is_refused(tmp_path):
    (tmp_path / "no.tflite").write_bytes(b"nothing")
    with pytest.raises(ExportError, match="Vela could not compile 'no.tflite'"):
        npu.npu_estimate(tmp_path / "no.tflite")


def test_without_the_compiler_the_extra_is_named(tmp_path, monkeypatch):
    (tmp_path / "a.tflite").touch()
    monkeypatch.setattr(npu.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"'keras-dlopt\[npu\]'"):
        npu.npu_estimate(tmp_path / "a.tflite")


def test_wrong_arguments(tmp_path):
    with pytest.raises(ConfigError, match="accelerator .*ethos-u55-128"):
        npu.npu_estimate(tmp_path / "a.tflite", accelerator="ethos-u55")
    with pytest.raises(ConfigError, match="There is no file .*none.tflite"):
        npu.npu_estimate(tmp_path / "none.tflite")


def test_a_compiler_that_hangs_is_told(tmp_path, monkeypatch):
    def hangs(command, **_):
        raise subprocess.TimeoutExpired(command, 1)

    (tmp_path / "a.tflite").touch()
    monkeypatch.setattr(npu.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(npu.subprocess, "run", hangs)
    with pytest.raises(ExportError, match="did not finish 'a.tflite' within 600 s"):
        npu.npu_estimate(tmp_path / "a.tflite")


SUMMARY = {
    "inference_time": "0.001",
    "cycles_total": "500000.0",
    "off_chip_flash_memory_used": "2.0",
    "on_chip_flash_memory_used": "0.0",
    "dram_memory_used": "1.0",
    "sram_memory_used": "0.5",
    "nn_macs": "77",
}
LOG = """Warning (supported operators) operator: MEAN, ofm: 'mean'
Reason: too
 large

Network summary
"""


def test_what_vela_writes_is_read():
    rows = [
        {"Original Operator": "Mean", "Target": "CPU", "Name": "mean"},
        {"Original Operator": "Gelu", "Target": "CPU", "Name": "gelu"},
        {"Original Operator": "Conv2D", "Target": "NPU", "Name": "conv"},
    ]
    found = npu._read("ethos-u55-128", "system", SUMMARY, rows, LOG)
    assert found.cpu == (
        ("MEAN", "mean", "too large"),
        ("Gelu", "gelu", "Vela gives no reason"),
    )
    assert (found.flash, found.sram, found.macs, found.cycles) == (
        3072,
        512,
        77,
        500000,
    )
    assert found.operators == 3
