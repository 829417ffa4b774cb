"""Structures, precisions, masks, functions: models that are put together unusually."""

import keras
import numpy as np
import pytest
from keras import layers as L
from keras import ops

import keras_dlopt as dlopt
from keras_dlopt.errors import ModelError
from keras_dlopt.surgery import dependencies, remove_dead
from keras_dlopt.surgery.removal import without
from support.machine import needs_channels_first
from support.removing import drawn, masked, randomized, relative


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def tokens(*shape):
    return np.random.default_rng(0).integers(0, 9, size=shape)


def check(model, x, free, tolerance=1e-5):
    """Half of the free groups leave; the rest computes as with zeros in place."""
    randomized(model)
    found = dependencies(model)
    assert len(found.free) == free
    gone = drawn(found, 0.5, np.random.default_rng(0))
    small = without(found, gone)
    assert relative(masked(model, found, gone)(x), small(x)) < tolerance
    assert small.count_params() < model.count_params()
    return small


def test_inputs_and_outputs_by_name():
    a, b = keras.Input((5,), name="a"), keras.Input((4,), name="b")
    h = L.Concatenate()([L.Dense(6)(a), L.Dense(3)(b)])
    outputs = {"u": L.Dense(2)(h), "v": L.Dense(1)(ops.relu(h))}
    model = keras.Model({"a": a, "b": b}, outputs)
    small = check(model, {"a": numbers(3, 5), "b": numbers(3, 4)}, free=9)
    assert sorted(small.output) == ["u", "v"]


def test_a_nested_model_with_several_inputs_and_outputs():
    p, q = keras.Input((5,)), keras.Input((6,))
    inner = keras.Model([p, q], [L.Dense(4)(p), ops.relu(q)], name="inner")
    x = keras.Input((5,))
    h = L.Dense(6)(x)
    both = L.Concatenate()(inner([L.Dense(5)(x), h]))
    small = check(keras.Model(x, L.Dense(2)(both)), numbers(3, 5), free=15)
    assert small.get_layer("inner").inputs[0].shape != (None, 5)


def test_channels_first():
    needs_channels_first()
    first = {"data_format": "channels_first"}
    model = keras.Sequential(
        [
            keras.Input((3, 6, 6)),
            L.Conv2D(6, 3, activation="relu", **first),
            L.BatchNormalization(axis=1),
            L.MaxPooling2D(**first),
            L.DepthwiseConv2D(2, **first),
            L.Flatten(**first),
            L.Dense(2),
        ]
    )
    check(model, numbers(3, 3, 6, 6), free=6)


def test_mixed_precision():
    half = keras.DTypePolicy("mixed_float16")
    model = keras.Sequential(
        [
            keras.Input((6, 6, 3)),
            L.Conv2D(6, 3, activation="relu", dtype=half),
            L.BatchNormalization(dtype=half),
            L.Conv2D(4, 3, dtype=half),
            L.Flatten(dtype=half),
            L.Dense(2, dtype="float32"),
        ]
    )
    small = check(model, numbers(3, 6, 6, 3), free=10, tolerance=5e-3)
    assert small.layers[0].dtype_policy.name == "mixed_float16"


def test_what_was_set_on_layers_stays():
    model = keras.Sequential(
        [
            keras.Input((6,)),
            L.Dense(6, name="a", kernel_regularizer=keras.regularizers.L2(0.3)),
            L.Dense(2, name="b", bias_constraint="non_neg"),
        ]
    )
    model.get_layer("a").trainable = False
    model.get_layer("b").bias.trainable = False
    small = check(model, numbers(3, 6), free=6)
    assert not small.get_layer("a").trainable
    assert [v.name for v in small.trainable_variables] == ["kernel"]
    assert small.get_layer("a").kernel_regularizer.l2 == 0.3
    assert small.get_layer("b").bias_constraint is not None


def test_masks_are_no_channels():
    x = keras.Input((7,), dtype="int32")
    y = L.Embedding(9, 6, mask_zero=True)(x)
    y = L.MultiHeadAttention(3, 2)(y, y, use_causal_mask=True)
    y = L.LSTM(5)(y)
    check(keras.Model(x, L.Dense(2)(y)), tokens(3, 7), free=6 + 3 + 6 + 5)


def test_states_that_are_not_the_units_hold_them():
    x, given = keras.Input((7, 4)), keras.Input((5,))
    y = L.LSTM(5)(x, initial_state=[given, L.Dense(5)(given)])
    found = dependencies(keras.Model([x, given], L.Dense(2)(y)))
    assert found.free == ()  # one of the states is an input of the model
    inner = L.TimeDistributed(keras.Sequential([keras.Input((4,)), L.Dense(3)]))
    found = dependencies(keras.Model(x, L.Dense(2)(inner(L.Dense(4)(x)))))
    assert found.free == ()
    assert any("no rule for Sequential" in pin.reason for pin in found.pinned)


def moments(y, axis, epsilon):
    mean, variance = y.mean(axis, keepdims=True), y.var(axis, keepdims=True)
    return (y - mean) / np.sqrt(variance + epsilon)


def in_two_groups(y):
    return moments(y.reshape(len(y), 2, -1), 2, 1e-3).reshape(len(y), -1)


TOGETHER = {
    "LayerNormalization": (L.LayerNormalization(), lambda y: moments(y, 1, 1e-3), 8),
    "RMSNormalization": (
        L.RMSNormalization(),
        lambda y: y / np.sqrt((y**2).mean(1, keepdims=True) + 1e-6),
        8,
    ),
    "UnitNormalization": (
        L.UnitNormalization(),
        lambda y: y / np.sqrt((y**2).sum(1, keepdims=True)),
        8,
    ),
    "GroupNormalization": (L.GroupNormalization(2), in_two_groups, 4),
}


@pytest.mark.parametrize("kind", TOGETHER)
def test_channels_that_are_normalized_together(kind):
    layer, formula, free = TOGETHER[kind]
    layer = type(layer).from_config(layer.get_config() | {"name": "norm"})
    model = randomized(
        keras.Sequential([keras.Input((5,)), L.Dense(8, name="a"), layer, L.Dense(2)])
    )
    assert dependencies(model).free == ()
    found = dependencies(model, normalized=True)
    assert len(found.free) == free
    gone = drawn(found, 0.5, np.random.default_rng(1))
    small = without(found, gone)
    left = found.stays(found.survey.made["a"], gone)
    assert left.sum() == 4
    kernel, bias, *scales, last, end = (
        w.numpy().astype("float64") for w in model.weights
    )
    x = numbers(3, 5)
    y = formula((x @ kernel + bias)[:, left])
    for weight, combine in zip(scales, (np.multiply, np.add), strict=False):
        y = combine(y, weight[left])
    assert relative(y @ last[left] + end, small(x)) < 1e-5


def test_prune_channels_takes_them_only_when_asked():
    x = keras.Input((6, 8))
    y = L.Dense(16, name="stream")(x)
    z = L.LayerNormalization()(y)
    y = y + L.MultiHeadAttention(2, 4)(z, z)
    y = y + L.Dense(16)(L.Dense(32, activation="gelu")(L.LayerNormalization()(y)))
    model = keras.Model(x, L.Dense(2)(L.GlobalAveragePooling1D()(y)))
    with pytest.raises(dlopt.errors.ConfigError, match="cannot be met"):
        dlopt.prune_channels(model, parameters=0.4)
    small, report = dlopt.prune_channels(model, parameters=0.4, normalized=True)
    assert small.get_layer("stream").units == 8
    assert small.count_params() == report.parameters_after
    assert np.isfinite(small(numbers(3, 6, 8))).all()


def test_functions_of_this_process_stay_themselves():
    model = keras.Sequential(
        [
            keras.Input((6,)),
            L.Dense(6, name="a"),
            L.Lambda(lambda t: 2 * t, name="twice"),
            L.Dense(5, name="b"),
            L.Dense(2),
        ]
    )
    small = check(model, numbers(3, 6), free=5)
    twice = model.get_layer("twice").function
    assert small.get_layer("twice").function is twice


def test_a_frozen_network_inside_another():
    base = keras.applications.MobileNetV2(
        weights=None,
        include_top=False,
        input_shape=(32, 32, 3),
        pooling="avg",
        alpha=0.35,
    )
    base.trainable = False
    model = keras.Sequential(
        [keras.Input((32, 32, 3)), L.Rescaling(1 / 127.5, -1), base, L.Dense(2)]
    )
    small = check(model, numbers(2, 32, 32, 3), free=4144)
    assert not small.layers[1].trainable
    assert len(small.trainable_variables) == 2


def test_weights_of_other_forms_hold_their_channels():
    model = keras.Sequential([keras.Input((6,)), L.Dense(6, name="a"), L.Dense(2)])
    model.get_layer("a").enable_lora(2)
    assert dependencies(model).free == ()
    x = keras.Input((4, 6))
    y = L.SpectralNormalization(L.Dense(5))(L.Dense(6)(x))
    found = dependencies(keras.Model(x, L.Dense(2)(y)))
    assert "no rule for SpectralNormalization" in {pin.reason for pin in found.pinned}


def test_a_model_without_layers():
    x = keras.Input((5,))
    model = keras.Model(x, x * 2.0)
    small, report = remove_dead(model)
    np.testing.assert_array_equal(small(numbers(2, 5)), model(numbers(2, 5)))
    assert report.removed == ()


@pytest.mark.advice("surgery/dependencies.py", "Take finalize(model), or finalize")
def test_transformed_models_are_finalized_first():
    model = keras.Sequential([keras.Input((6,)), L.Dense(6, name="a"), L.Dense(2)])
    rule = dlopt.Prune(0.5, pattern=dlopt.prune.Filters())
    small = dlopt.transform(model, dlopt.Recipe([(dlopt.at("a/kernel"), rule)]))
    with pytest.raises(ModelError, match="is transformed: its weights.*Take finalize"):
        remove_dead(small)
    assert remove_dead(dlopt.finalize(small))[0].get_layer("a").units == 3
    assert dlopt.finalize(small, remove=True).get_layer("a").units == 3
