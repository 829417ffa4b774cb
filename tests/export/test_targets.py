"""Files for NPUs, microcontrollers and the Edge TPU: what each runs, and what not."""

import importlib.util
import subprocess
import warnings

import keras
import numpy as np
import pytest
from keras import layers

import keras_dlopt as dlopt
from keras_dlopt import export
from keras_dlopt.errors import (
    ConfigError,
    ExportError,
    FormatError,
    MissingDependencyError,
)
from keras_dlopt.export import micro, targets
from keras_dlopt.export.contents import read
from keras_dlopt.export.runtime import reference_interpreter
from keras_dlopt.export.strides import factors

pytest.importorskip("ai_edge_litert")


def installed(package):
    missing = importlib.util.find_spec(package) is None
    return pytest.mark.skipif(missing, reason=f"needs {package}")


vela, tflm = installed("ethosu"), installed("tflite_micro")


def data(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def quantized(*parts, shape=(16, 16, 3)):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input(shape), *parts], name="net")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "'net' cannot run in int8 alone")
        return dlopt.post_training.quantize(model, data(32, *shape))


def pooled(pool):
    conv = layers.Conv2D(8, 3, padding="same", activation="relu")
    return quantized(conv, pool, layers.Flatten(), layers.Dense(5))


def operators(path):
    return [op.name for op in read(path).operators]


@vela
@pytest.mark.parametrize(
    ("size", "stride", "poolings"),
    [(16, 16, 0), (8, 8, 2), (4, 6, 1), (3, 3, 0)],
)
def test_pooling_of_long_strides_stays_on_the_npu(size, stride, poolings, tmp_path):
    pool = layers.AveragePooling2D(size, strides=stride)
    small, x = pooled(pool), data(16, 16, 16, 3, seed=1)
    report = export.litert(small, tmp_path / "a.tflite", target="ethos-u55", data=x)
    assert (report.target, report.io) == ("ethos-u55", "int8")
    assert report.npu.cpu == ()
    assert report.npu.cycles > 0
    assert f"{report.npu.cycles:,} cycles" in report.remarks[-1]
    assert operators(report.path).count("MAX_POOL_2D") == poolings
    plain = export.litert(small, tmp_path / "b.tflite", io="int8", data=x)
    # In equal bits, also as codes.
    ours, theirs = (export.Predictor(r.path)(x) for r in (report, plain))
    np.testing.assert_array_equal(ours, theirs)
    assert report.agreement == plain.agreement


def test_strides_are_products_of_short_ones():
    assert [factors(n) for n in (4, 8, 9, 18)] == [[2, 2], [2] * 3, [3, 3], [3, 3, 2]]
    assert [factors(n) for n in (5, 10, 22)] == [None] * 3


@vela
@pytest.mark.parametrize("target", ["ethos-u55", "ethos-u65"])
def test_what_an_npu_does_not_run_is_named(target, tmp_path):
    small = pooled(layers.AveragePooling2D(5, name="fifth"))
    text = f"{target.title()} cannot hold 'net': DEPTHWISE_CONV_2D from 'fifth': .*5, 5"
    with pytest.raises(ExportError, match=text):
        export.litert(small, tmp_path / "a.tflite", target=target)
    assert list(tmp_path.iterdir()) == []
    # The larger one has longer strides.
    report = export.litert(small, tmp_path / "a.tflite", target="ethos-u85")
    assert report.npu.accelerator == "ethos-u85-256"


@pytest.mark.parametrize("target", ["ethos-u55", "edgetpu"])
def test_floats_are_refused_where_there_are_none(target, tmp_path):
    if target == "ethos-u55":
        pytest.importorskip("ethosu")
    small = quantized(layers.Dense(8), layers.Activation("mish", name="m"), shape=(4,))
    text = f"target={target!r} has no float.* from 'm': LiteRT has it in float only"
    with pytest.raises(ExportError, match=text):
        export.litert(small, tmp_path / "a.tflite", target=target)
    assert list(tmp_path.iterdir()) == []


@tflm
def test_microcontrollers_have_the_outputs_of_the_reference_kernels(tmp_path):
    small, x = pooled(layers.MaxPooling2D(4)), data(16, 16, 16, 3, seed=1)
    report = export.litert(small, tmp_path / "a.tflite", target="tflm", data=x)
    (remark,) = report.remarks
    assert "80 of 80 output codes equal" in remark
    found = micro.compare(report.path)
    # Eight random examples where none are given.
    assert (found.codes, found.largest, found.operation) == (40, 0, 0)
    assert 16 * 16 * 8 < found.arena < 40_000
    # Batches longer than the data, or than what is left of it, are filled up.
    for examples in (3, 11):
        path = tmp_path / f"{examples}.tflite"
        report = export.litert(
            small, path, target="tflm", data=x[:examples], batch_size=8
        )
        of = -(-examples // 8) * 8 * 5
        assert f"{of} of {of} output codes equal" in report.remarks[0]
    # Parts in float run there too, and are named as islands.
    small = quantized(layers.Dense(8), layers.Activation("mish"), shape=(4,))
    report = export.litert(small, tmp_path / "b.tflite", target="tflm")
    assert {island.split()[0] for island in report.islands} >= {"EXP", "LOG"}


@tflm
def test_what_microcontrollers_lack_is_named(tmp_path):
    small = quantized(layers.Dense(8), layers.Activation("gelu", name="g"), shape=(4,))
    with pytest.raises(
        ExportError, match="TFLM cannot hold 'net': GELU from 'g': TFLM has no such op"
    ):
        export.litert(small, tmp_path / "a.tflite", target="tflm")
    assert list(tmp_path.iterdir()) == []


@tflm
def test_an_operator_that_computes_otherwise_is_named(tmp_path, monkeypatch):
    small = quantized(layers.Dense(8, name="d"), shape=(4,))
    run = micro._run

    def changed(*arguments):
        made = run(*arguments)
        made.tensors[max(made.tensors)] += 2
        return made

    monkeypatch.setattr(micro, "_run", changed)
    with pytest.raises(ExportError, match="FULLY_CONNECTED from 'd': .* by 2 levels"):
        export.litert(small, tmp_path / "a.tflite", target="tflm")


def failing(log, code=1):
    def run(command, **_):
        return subprocess.CompletedProcess(command, code, "", log)

    return run


@pytest.mark.parametrize(
    ("log", "found"),
    [
        (
            "Didn't find op for builtin opcode 'FULLY_CONNECTED'\nFailed",
            (0, "TFLM has no such operator"),
        ),
        (
            "bias->type != int32\nNode FULLY_CONNECTED (number 0f) failed to prepare "
            "with status 1\nTraceback",
            (0, "bias->type != int32"),
        ),
    ],
)
def test_what_the_interpreter_writes_is_read(log, found, tmp_path, monkeypatch):
    small = quantized(layers.Dense(8, name="d"), shape=(4,))
    path = tmp_path / "a.tflite"
    export.litert(small, path, io="int8")
    monkeypatch.setattr(micro, "require_package", lambda: None)
    monkeypatch.setattr(micro.subprocess, "run", failing(log))
    assert micro.compare(path) == found


def test_an_interpreter_that_ends_or_hangs_is_told(tmp_path, monkeypatch):
    small = quantized(layers.Dense(8, name="d"), shape=(4,))
    path = tmp_path / "a.tflite"
    export.litert(small, path, io="int8")
    monkeypatch.setattr(micro, "require_package", lambda: None)
    monkeypatch.setattr(micro.subprocess, "run", failing("Segmentation fault", -11))
    with pytest.raises(ExportError, match="named no operation: Segmentation fault"):
        micro.compare(path)

    def hangs(command, **_):
        raise subprocess.TimeoutExpired(command, 1)

    monkeypatch.setattr(micro.subprocess, "run", hangs)
    with pytest.raises(ExportError, match="did not finish .*within 600 s"):
        micro.compare(path)


@pytest.mark.parametrize(
    ("parts", "shape", "reason"),
    [
        ([layers.Activation("gelu", name="x")], (4,), "GELU from 'x': it is not in"),
        (
            [layers.Activation("softmax", name="x")],
            (3, 4),
            "SOFTMAX from 'x': .*one row",
        ),
        ([layers.Cropping1D((1, 0)), layers.Dense(2, name="x")], (5, 4), "one row"),
        ([layers.PReLU(name="x")], (3, 4), r"PRELU from 'x': .*shared_axes=\[1, 2\]"),
        (
            [layers.Conv2D(4, 3, dilation_rate=(1, 2), name="x")],
            (8, 8, 3),
            "CONV_2D from 'x': its dilation is 1 by 2",
        ),
        ([layers.UpSampling1D(2, name="x")], (4, 3), "from 'x': it is not in"),
        (
            [layers.Reshape((2, 2, 2, 2)), layers.Permute((2, 1, 3, 4), name="x")],
            (16,),
            "only the three innermost sizes",
        ),
        (
            [layers.Lambda(lambda x: x[:, ::2], name="x")],
            (4, 3),
            "it slices with steps",
        ),
    ],
)
def test_the_edge_tpus_table_is_kept(parts, shape, reason, tmp_path):
    small = quantized(*parts, shape=shape)
    with pytest.raises(ExportError, match=f"Edge TPU cannot hold 'net': .*{reason}"):
        export.litert(small, tmp_path / "a.tflite", target="edgetpu")
    assert list(tmp_path.iterdir()) == []


def test_a_file_for_the_edge_tpu_says_that_it_is_not_compiled(tmp_path):
    small = pooled(layers.GlobalAveragePooling2D())
    report = export.litert(small, tmp_path / "a.tflite", target="edgetpu")
    assert report.remarks[0].startswith("not compiled")
    assert report.io == "int8"


@pytest.mark.parametrize(
    ("target", "package", "extra"),
    [
        ("ethos-u55", "ethosu", "'ethos-u-vela'.*keras-dlopt\\[npu\\]"),
        ("tflm", "tflite_micro", "'tflite-micro'.*keras-dlopt\\[tflm\\]"),
    ],
)
def test_the_package_that_checks_is_named(
    target, package, extra, tmp_path, monkeypatch
):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n, *a: None if n == package else find(n, *a)
    )
    small = quantized(layers.Dense(2), shape=(4,))
    with pytest.raises(MissingDependencyError, match=extra):
        export.litert(small, tmp_path / "a.tflite", target=target)


def test_a_file_without_kernels_is_told(tmp_path):
    (tmp_path / "a.tflite").write_bytes(b"nothing")
    with pytest.raises(FormatError, match="can run here without XNNPACK"):
        reference_interpreter(tmp_path / "a.tflite")


def test_operators_without_reference_kernels_run_in_others(tmp_path):
    small = quantized(layers.Dense(8), layers.ELU(), shape=(4,))
    report = export.litert(small, tmp_path / "a.tflite", io="int8")
    assert "ELU" in operators(report.path)
    assert reference_interpreter(report.path).get_output_details()


def test_wrong_options(tmp_path):
    small, path = quantized(layers.Dense(2), shape=(4,)), tmp_path / "a.tflite"
    for options, text in (
        ({"target": "ethos-u56"}, "target must be one of .*Did you mean 'ethos-u"),
        ({"target": "edgetpu", "io": "float"}, "'edgetpu' has int8 inputs and outputs"),
        ({"target": "edgetpu", "batch_size": None}, "Pass a batch_size, such as 1"),
        ({"target": "edgetpu", "storage": "int4"}, "takes int8 weights, not storage="),
    ):
        with pytest.raises(ConfigError, match=text):
            export.litert(small, path, **options)
    plain = keras.Sequential([keras.Input((4,)), layers.Dense(2)])
    with pytest.raises(ConfigError, match="target='edgetpu' needs a quantized model"):
        export.litert(plain, path, target="edgetpu")
    assert targets.TARGETS[0] == "xnnpack"


@tflm
def test_a_sum_is_compared_with_the_kernel_that_is_right(tmp_path):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 8))
    made = keras.ops.sum(layers.Dense(8)(inputs), axis=1)
    model = keras.Model(inputs, layers.Dense(3)(made), name="net")
    small = dlopt.post_training.quantize(model, data(32, 6, 8))
    report = export.litert(small, tmp_path / "a.tflite", target="tflm")
    assert "SUM" in operators(report.path)
    found = micro.compare(report.path)
    assert found.largest <= 1
