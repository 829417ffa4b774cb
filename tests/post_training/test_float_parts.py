"""Parts that stay in float: the file computes what was chosen, with its figures."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_dlopt as dlopt
from keras_dlopt import at, export, named
from keras_dlopt.errors import ConfigError
from keras_dlopt.export.contents import read
from keras_dlopt.int8 import int8_recipe, without
from keras_dlopt.post_training import FloatParts, quantize

X = np.random.default_rng(0).normal(size=(96, 8, 8, 3)).astype("float32")


def net():
    """One kernel has values far out in every channel, which its codes are lost to."""
    keras.utils.set_random_seed(0)
    parts = [keras.Input(X.shape[1:])]
    for name in "abc":
        parts += [layers.Conv2D(8, 3, name=name), layers.ReLU(name=f"r{name}")]
    model = keras.Sequential([*parts, layers.Flatten(), layers.Dense(5, name="d")])
    kernel = model.get_layer("b").kernel.numpy()
    kernel[0, 0, 0] *= 300
    model.get_layer("b").kernel.assign(kernel)
    return model


def off(model, got):
    wanted = model.predict(X, verbose=0).astype("float64")
    return ((got - wanted) ** 2).sum() / ((wanted - wanted.mean(0)) ** 2).sum()


def in_int8(path):
    contents = read(path)
    return {
        op.name
        for op in contents.operators
        if {contents.tensors[i].dtype for i in op.outputs} == {"INT8"}
    }


def test_what_hurts_most_is_left_in_float_and_the_file_has_the_error(tmp_path):
    pytest.importorskip("ai_edge_litert")
    model = net()
    small = quantize(model, X, mixed="auto", max_error=6e-4)
    found = small.float_parts
    assert list(found.parts) == ["b/kernel"]
    assert found.before > 6e-4 > found.after
    assert found.parts["b/kernel"] == found.after
    assert str(found).splitlines()[1].startswith("  b/kernel: 0.000")
    # The figure is the file's own, by another way.
    report = export.litert(small, tmp_path / "a.tflite", data=X)
    assert off(model, export.Predictor(report.path)(X)) == pytest.approx(
        found.after, rel=0.02
    )
    assert report.islands == ("CONV_2D from 'b': its kernel is not on an int8 grid",)
    whole = quantize(model, X)
    assert off(model, whole.predict(X, verbose=0)) == pytest.approx(
        found.before, rel=0.02
    )
    # By hand the same.
    chosen = quantize(model, X, keep_float=found.selector())
    np.testing.assert_array_equal(
        chosen.predict(X, verbose=0), small.predict(X, verbose=0)
    )


def test_activations_can_be_what_hurts():
    found = quantize(net(), X, mixed="auto", max_error=1e-4).float_parts
    assert {"b/kernel", "a/input"} <= found.parts.keys()
    assert found.after <= 1e-4
    errors = list(found.parts.values())
    assert errors == sorted(errors)
    with pytest.raises(ConfigError, match="leaves nothing of .* Raise max_error."):
        quantize(net(), X, mixed="auto", max_error=1e-12)


def test_a_model_that_is_near_enough_is_left_whole():
    small = quantize(net(), X, mixed="auto", max_error=0.5)
    assert small.float_parts == FloatParts(
        small.float_parts.before, small.float_parts.before, {}
    )
    assert quantize(net(), X).float_parts is None


def test_weights_alone():
    recipe = dlopt.Recipe([(named("kernel"), dlopt.FakeQuant(bits=8))])
    found = quantize(net(), X, recipe=recipe, mixed="auto", max_error=1e-4).float_parts
    assert next(iter(found.parts)) == "b/kernel"


def test_trained_in_parts(tmp_path):
    pytest.importorskip("ai_edge_litert")
    model = net()
    recipe = without(model, int8_recipe(model), at("b/kernel") | at("ra/output"))
    small = dlopt.transform(model, recipe)
    small(X, training=True)
    small.update_transforms(0)
    report = export.litert(small, tmp_path / "a.tflite", data=X)
    assert {i.split(":")[0] for i in report.islands} == {
        "CONV_2D from 'a'",
        "CONV_2D from 'b'",
    }
    assert report.agreement.largest_lsb <= 1
    assert "CONV_2D" in in_int8(report.path)


@pytest.mark.parametrize(
    ("selector", "what"),
    [(at("nowhere/kernel"), "nothing"), (dlopt.select.everything(), "everything")],
)
def test_a_selector_must_choose(selector, what):
    text = f"means {what} that would be quantized.*Name some of .*'b/kernel'"
    with pytest.raises(ConfigError, match=text):
        quantize(net(), X, keep_float=selector)


def test_wrong_arguments():
    for options, text in (
        ({"mixed": "all"}, "mixed must be None or 'auto'"),
        ({"max_error": 0}, "max_error must be"),
    ):
        with pytest.raises(ConfigError, match=text):
            quantize(net(), X, **options)
