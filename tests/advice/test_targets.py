"""Files for NPUs and microcontrollers: what one is told to do where it cannot be."""

import subprocess
import warnings

import keras
import numpy as np
import pytest
from keras import layers

import keras_dlopt as dlopt
from keras_dlopt import export
from keras_dlopt.export import micro

advice = pytest.mark.advice
X = np.random.default_rng(0).normal(size=(16, 4)).astype("float32")

pytest.importorskip("ai_edge_litert")


def quantized(*parts):
    model = keras.Sequential([keras.Input((4,)), *parts])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return dlopt.post_training.quantize(model, X)


@advice("export/targets.py", "Leave io out, or pass io='int8'.")
@advice("export/targets.py", "Pass a batch_size, such as 1.")
def test_options_of_targets(told, tmp_path):
    small, path = quantized(layers.Dense(2)), tmp_path / "a.tflite"
    for wrong in ({"io": "float"}, {"batch_size": None}):
        with told():
            export.litert(small, path, target="edgetpu", **wrong)
    for right in ({}, {"io": "int8"}, {"batch_size": 1}):
        assert export.litert(small, path, target="edgetpu", **right).io == "int8"


@advice("export/targets.py", "Replace these layers. Or write it without target,")
def test_operators_that_a_target_lacks(told, tmp_path):
    path = tmp_path / "a.tflite"
    small = quantized(layers.Dense(2, activation="gelu"))
    with told():
        export.litert(small, path, target="edgetpu")
    assert export.litert(small, path, data=X).agreement.largest_lsb <= 1
    other = quantized(layers.Dense(2, activation="relu"))
    assert export.litert(other, path, target="edgetpu").verified


@advice(
    "export/litert.py",
    "Start from int8_recipe(model) or post_training.quantize, or write the file "
    "without target.",
)
def test_floats_where_there_are_none(told, tmp_path):
    path = tmp_path / "a.tflite"
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3), layers.Dense(2)])
    recipe = dlopt.int8.int8_recipe(model)
    ends = [model.layers[0].name + "/input", model.layers[1].name + "/output"]
    partly = dlopt.Recipe(
        [(dlopt.at(*ends), dlopt.FakeQuantActivation()), recipe.entries[-1]]
    )
    for entries, works in ((partly, False), (recipe, True)):
        small = dlopt.transform(model, entries)
        small(X, training=True)
        if works:
            assert export.litert(small, path, target="edgetpu").islands == ()
        else:
            with told():
                export.litert(small, path, target="edgetpu")
            assert export.litert(small, path).islands
    assert export.litert(quantized(layers.Dense(2)), path, target="edgetpu").verified


@advice("export/micro.py", "Give fewer examples as data, or leave data out.")
def test_an_interpreter_that_takes_long(told, tmp_path, monkeypatch):
    pytest.importorskip("tflite_micro")
    small, path, run = quantized(layers.Dense(2)), tmp_path / "a.tflite", subprocess.run

    def slow(command, **options):
        with np.load(f"{command[-2]}/inputs.npz") as given:
            if given["counts"][0] > 10:
                raise subprocess.TimeoutExpired(command, 1)
        return run(command, **options)

    monkeypatch.setattr(micro.subprocess, "run", slow)
    with told():
        export.litert(small, path, target="tflm", data=X)
    for data in (X[:4], None):
        assert export.litert(small, path, target="tflm", data=data).remarks


@advice("export/targets.py", "Leave storage out: codes of 4 bits are in int8 then.")
@advice("export/storage.py", "Train or quantize with FakeQuant(bits=4), or leave")
def test_weights_of_four_bits(told, tmp_path):
    path, model = tmp_path / "a.tflite", keras.Sequential([keras.Input((4,))])
    model.add(layers.Dense(2))
    four = dlopt.post_training.quantize(model, X, weights=dlopt.FakeQuant(bits=4))
    with told():
        export.litert(four, path, target="edgetpu", storage="int4")
    assert export.litert(four, path, target="edgetpu").codes == 8
    eight = dlopt.post_training.quantize(model, X)
    with told():
        export.litert(eight, path, storage="int4")
    assert export.litert(four, path, storage="int4").codes == 8
    assert export.litert(eight, path).codes == 8


@advice("export/storage.py", "Leave storage out.")
@advice("export/storage.py", "Start from post_training.dynamic_range(model).")
def test_weights_of_half_floats_and_dynamic_ranges(told, tmp_path):
    path, model = tmp_path / "a.tflite", keras.Sequential([keras.Input((4,))])
    model.add(layers.Dense(2))
    for storage in ("float16", "dynamic"):
        with told():
            export.litert(model, path, storage=storage)
    large = keras.Sequential([keras.Input((4,)), layers.Dense(32)])
    large.layers[0].kernel.assign(large.layers[0].kernel + 1e5)
    with told():
        export.litert(large, path, storage="float16")
    assert export.litert(large, path, data=X).verified
    packed = dlopt.post_training.dynamic_range(model)
    assert export.litert(packed, path, storage="dynamic", data=X).codes == 8


@advice("post_training/float_parts.py", "Raise max_error.")
def test_an_error_that_only_floats_have(told):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(2, name="d")])
    for error, works in ((1e-12, False), (0.1, True)):
        options = {"mixed": "auto", "max_error": error}
        if works:
            assert dlopt.post_training.quantize(model, X, **options).groups
        else:
            with told():
                dlopt.post_training.quantize(model, X, **options)


@advice("int8/partly.py", "Name some of ")
def test_parts_in_float(told):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(2, name="d")])
    with told():
        dlopt.post_training.quantize(model, X, keep_float=dlopt.at("e/kernel"))
    small = dlopt.post_training.quantize(model, X, keep_float=dlopt.at("d/kernel"))
    assert [g.transform.kind for g in small.groups] == ["activation"] * 2


@advice("export/twin.py", "Give all FakeQuantActivation the same bits.")
@advice("export/twin.py", "Train with FakeQuantActivation(bits=16, symmetric=True).")
@advice("export/litert.py", "Pass io=")
def test_activations_of_sixteen_bits(told, tmp_path):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(2, name="d")])
    wide, path = (
        dlopt.FakeQuantActivation(bits=16, symmetric=True),
        tmp_path / "a.tflite",
    )

    def trained(first, last):
        entries = [(dlopt.at("d/input"), first), (dlopt.at("d/output"), last)]
        entries.append((dlopt.named("kernel"), dlopt.FakeQuant(bits=8)))
        small = dlopt.transform(model, dlopt.Recipe(entries))
        small(X, training=True)
        small.update_transforms(0)
        return small

    for wrong in (dlopt.FakeQuantActivation(), dlopt.FakeQuantActivation(bits=16)):
        with told():
            export.litert(trained(wide, wrong), path)
    small = trained(wide, wide)
    with told():
        export.litert(small, path, io="int8")
    for io in ("float", "int16"):
        assert export.litert(small, path, io=io, data=X).layers.levels <= 1


@advice("export/targets.py", "Pass target='tflm', or leave storage out.")
@advice("export/lookup.py", "Train with Cluster(16) >> FakeQuant(bits=8, per_channel=")
@advice("export/lookup.py", "Leave storage out, and report it")
def test_kernels_as_tables(told, tmp_path, monkeypatch):
    pytest.importorskip("tflite_micro")
    model = keras.Sequential([keras.Input((4,)), layers.Dense(256), layers.Dense(8)])
    one, path = dlopt.FakeQuant(bits=8, per_channel=False), tmp_path / "a.tflite"
    eight = dlopt.post_training.quantize(model, X, weights=one)
    options = {"target": "tflm", "storage": "lookup"}
    with told():
        export.litert(eight, path, storage="lookup")
    with told():
        export.litert(eight, path, **options)
    assert export.litert(eight, path).verified
    weights = dlopt.Cluster(16) >> one
    few = dlopt.post_training.quantize(model, X, weights=weights)
    assert "as tables" in export.litert(few, path, **options).remarks[0]
    outputs = micro.outputs
    calls = []

    def wrong(*arguments):
        calls.append(arguments)
        made = outputs(*arguments)
        made[0][0] = made[0][0] ^ len(calls)
        return made

    monkeypatch.setattr(micro, "outputs", wrong)
    with told():
        export.litert(few, path, **options)
    assert export.litert(few, path, target="tflm").verified
