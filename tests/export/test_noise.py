"""The outputs of a file are judged by the difference of the runtime's own kernels."""

import importlib.metadata

import keras
import numpy as np
import pytest
from keras import layers

import keras_dlopt as dlopt
from keras_dlopt import export
from keras_dlopt.errors import ExportError, FormatError
from keras_dlopt.export.noise import judge
from keras_dlopt.export.runtime import KERNELS, LiteRT
from keras_dlopt.export.twin import Twin


def data(shape=(32, 8, 8, 2), seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def net(end=None):
    keras.utils.set_random_seed(0)
    parts = [
        layers.Conv2D(4, 3, name="c"),
        layers.ReLU(),
        layers.Flatten(),
        layers.Dense(5, name="d"),
        *([] if end is None else [layers.Activation(end, name="end")]),
    ]
    return keras.Sequential([keras.Input((8, 8, 2)), *parts])


def doubled(monkeypatch):
    """The converted model has other outputs than the one that was trained."""
    call = Twin.call

    def wrong(self, inputs):
        return {name: 0.5 * made for name, made in call(self, inputs).items()}

    monkeypatch.setattr(Twin, "call", wrong)


def test_the_report_names_runtime_kernels_and_noise(tmp_path):
    small = dlopt.post_training.quantize(net(), data())
    report = export.litert(small, tmp_path / "m.tflite", data=data())
    assert report.noise.levels <= report.noise.allowed
    assert report.noise.examples == 32
    assert report.noise.kernels[:2] == ("XNNPACK", "built-in")
    version = importlib.metadata.version("ai-edge-litert")
    assert report.runtime == f"ai-edge-litert {version}"
    text = str(report)
    assert f"measured with ai-edge-litert {version}" in text
    assert "XNNPACK and built-in kernels differ by" in text
    assert f"{report.size:,} bytes, int8, float ends" in text
    unchecked = export.litert(small, tmp_path / "m.tflite", verify=False)
    assert unchecked.runtime == ""
    assert str(unchecked).endswith("; not verified")


@pytest.mark.parametrize("kind", ["int8", "float"])
@pytest.mark.parametrize("end", [None, "softmax", "sigmoid"])
def test_a_file_that_computes_something_else_is_refused(
    tmp_path, monkeypatch, kind, end
):
    model = net(end)
    if kind == "int8":
        model = dlopt.post_training.quantize(model, data())
    right = export.litert(model, tmp_path / "m.tflite", data=data())
    assert right.noise.levels <= 2
    doubled(monkeypatch)
    text = r"computes something else than the model: .* levels apart, while the kernels"
    with pytest.raises(ExportError, match=text):
        export.litert(model, tmp_path / "wrong.tflite", data=data())
    assert [p.name for p in tmp_path.iterdir()] == ["m.tflite"]


def test_a_softmax_is_left_out_of_the_judgement(tmp_path):
    """One level of the logits is many of the probabilities."""
    model = net("softmax")
    steep = model.get_layer("d")
    steep.kernel.assign(steep.kernel * 40)
    small = dlopt.post_training.quantize(model, data())
    report = export.litert(small, tmp_path / "m.tflite", data=data())
    assert report.noise.levels <= 2
    logits = dlopt.post_training.quantize(
        keras.Model(model.inputs[0], steep.output), data()
    )
    alone = export.litert(logits, tmp_path / "l.tflite", data=data())
    assert report.noise.levels == alone.noise.levels


def float_file(tmp_path):
    model = net()
    path = tmp_path / "m.tflite"
    export.litert(model, path)
    return str(path), np.asarray(model(data()))


def test_what_is_allowed_is_the_noise_with_a_margin_and_the_rounding(
    tmp_path, monkeypatch
):
    path, expected = float_file(tmp_path)
    level = np.ptp(expected) / 255
    exact = judge(path, [data()], [expected])
    assert (exact.levels, exact.own, exact.allowed) == (0, 0, 1)
    assert judge(path, [data()], [expected], rounding=2.2).allowed == 4
    run, noise = LiteRT.run, {"XNNPACK": 0, "built-in": 4, "reference": -3}
    made = LiteRT.__init__

    def init(self, *args, kernels="XNNPACK", **kwargs):
        made(self, *args, kernels=kernels, **kwargs)
        self.off = noise[kernels] * level

    def noisy(self, arrays):
        return [a + np.float32(self.off) for a in run(self, arrays)]

    monkeypatch.setattr(LiteRT, "__init__", init)
    monkeypatch.setattr(LiteRT, "run", noisy)

    def found(off):
        one = judge(path, [data()], [expected * (1 + 1e-7) + off * level])
        return one.levels, one.own, one.allowed, one.kernels

    assert found(7) == (7, 4, 7, ("XNNPACK", "built-in"))
    # The third kernels are only asked where the second explain too little.
    assert found(8) == (8, 7, 11, tuple(KERNELS))
    assert found(11) == (11, 7, 11, tuple(KERNELS))
    text = (
        r"12 levels apart.* differ by 7 .*\(XNNPACK, built-in, reference\).*explains 1"
    )
    with pytest.raises(ExportError, match=text):
        found(12)


@pytest.mark.slow
def test_untrained_networks_whose_rounding_grows_through_depth_are_exported(tmp_path):
    """The noise of LiteRT itself is dozens of levels there, and so is ours."""
    keras.utils.set_random_seed(1)
    model = keras.applications.MobileNetV2(
        input_shape=(96, 96, 3), weights=None, classes=10
    )
    x = np.random.default_rng(0).random((16, 96, 96, 3)).astype("float32")
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.momentum = 0.3
    for _ in range(8):
        model(x, training=True)
    small = dlopt.post_training.quantize(model, x)
    report = export.litert(small, tmp_path / "m.tflite", data=x)
    assert report.noise.own > 5
    assert report.layers.levels == 1


def test_kernels_that_lack_an_operator_are_left_out(tmp_path, monkeypatch):
    path, expected = float_file(tmp_path)
    made = LiteRT.__init__

    def init(self, *args, kernels="XNNPACK", **kwargs):
        if kernels == "built-in":
            raise FormatError("no such operator")
        made(self, *args, kernels=kernels, **kwargs)

    monkeypatch.setattr(LiteRT, "__init__", init)
    found = judge(path, [data()], [expected])
    assert found.kernels == ("XNNPACK", "reference")
