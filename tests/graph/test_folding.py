"""Folding: the same function with fewer layers, whatever stands beside."""

import keras
import numpy as np
import pytest
from keras import layers as L
from keras import ops

from keras_dlopt.errors import ModelError
from keras_dlopt.graph.folding import Fold, InputScaling, fold, foldable
from keras_dlopt.graph.walk import layers_below
from support.generated import Holder, drawn


def scrambled(model, seed=0):
    """The model with other weights; statistics far from 0 and 1."""
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        if keras.backend.is_float_dtype(weight.dtype):
            value = rng.normal(size=weight.shape)
            if weight.name == "moving_variance":
                value = np.abs(value) + 0.05
            weight.assign(value)
    return model


def close(model, folded, x, tolerance=1e-5):
    for one, two in zip(
        keras.tree.flatten(model(x)), keras.tree.flatten(folded(x)), strict=True
    ):
        largest = max(float(np.abs(one).max()), 1.0)
        np.testing.assert_allclose(one, two, rtol=0, atol=tolerance * largest)


def kinds(model):
    found = [type(layer).__name__ for layer in layers_below(model)]
    return [kind for kind in found if kind not in ("InputLayer", "Functional")]


def chain(shape, *parts):
    x = given = keras.Input(shape)
    for part in parts:
        x = part(x)
    return scrambled(keras.Model(given, x))


def data(model, seed=1):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(3, *model.inputs[0].shape[1:])).astype("float32")


BEFORE = {
    "dense": ((4, 6), lambda: L.Dense(5)),
    "valid": ((8, 8, 4), lambda: L.Conv2D(6, 3, strides=2)),
    "groups": ((8, 8, 4), lambda: L.Conv2D(6, 3, groups=2, use_bias=False)),
    "groups of a line": ((8, 6), lambda: L.Conv1D(6, 3, groups=3)),
    "dilated": ((9, 3), lambda: L.Conv1D(4, 3, dilation_rate=2)),
    "cubes": ((4, 4, 4, 2), lambda: L.Conv3D(3, 2)),
    "one by one": ((8, 8, 4), lambda: L.Conv2D(6, 1, strides=2, padding="same")),
    "depthwise": ((8, 8, 3), lambda: L.DepthwiseConv2D(3, depth_multiplier=2)),
    "depthwise 1": ((8, 3), lambda: L.DepthwiseConv1D(3)),
}
PADS = {
    "same": ((8, 8, 4), lambda: L.Conv2D(6, 3, padding="same")),
    "causal": ((8, 4), lambda: L.Conv1D(6, 3, padding="causal")),
    "depthwise": ((8, 8, 4), lambda: L.DepthwiseConv2D(3, padding="same")),
    "transposed": ((5, 5, 3), lambda: L.Conv2DTranspose(4, 3)),
}


@pytest.mark.parametrize("name", BEFORE)
def test_a_normalization_goes_into_the_layer_after_it(name):
    shape, layer = BEFORE[name]
    model = chain(shape, L.BatchNormalization(), layer(), L.ReLU())
    folded = fold(model)
    assert "BatchNormalization" not in kinds(folded)
    close(model, folded, data(model))


@pytest.mark.parametrize("name", PADS)
def test_before_padding_only_a_factor_can_go(name):
    shape, layer = PADS[name]
    with_offset = chain(shape, L.BatchNormalization(), layer(), L.ReLU())
    assert foldable(with_offset).folds == ()
    close(with_offset, fold(with_offset), data(with_offset), 0)
    factor = chain(shape, L.Rescaling(0.25), layer(), L.ReLU())
    assert "Rescaling" not in kinds(fold(factor))
    close(factor, fold(factor), data(factor))


@pytest.mark.parametrize("name", [*BEFORE, *(f"pads {n}" for n in PADS)])
def test_after_a_layer_everything_can_go(name):
    shape, layer = {**BEFORE, **{f"pads {n}": v for n, v in PADS.items()}}[name]
    stack = [L.BatchNormalization(), L.Rescaling(0.5, 0.25), L.ReLU()]
    model = chain(shape, layer(), *stack)
    folded = fold(model)
    assert kinds(folded) == [type(layer()).__name__, "ReLU"]
    close(model, folded, data(model))


def test_arithmetic_between_layers_goes():
    model = chain(
        (6, 6, 3),
        lambda x: x / 127.5 - 1.0,
        lambda x: 2.0 - x * np.array([1.0, 2.0, 3.0], "float32"),
        lambda x: -x,
        L.Conv2D(4, 3),
        lambda x: x * 3.0 + 1.0,
        L.ReLU(),
    )
    folded = fold(model)
    assert len(folded.operations) == 3  # input, convolution, ReLU
    close(model, folded, 100 * data(model))


def test_what_is_no_function_of_a_channel_stays():
    rows = np.arange(6, dtype="float32").reshape(6, 1)
    model = chain((6, 3), lambda x: x + rows, lambda x: 1.0 / (x * x + 1), L.Dense(4))
    assert foldable(model).folds == ()
    close(model, fold(model), data(model), 0)


def test_fronts_with_statistics():
    values = np.random.default_rng(0).normal(3, 2, (50, 4)).astype("float32")
    for invert in (False, True):
        front = L.Normalization(invert=invert)
        front.adapt(values)
        given = keras.Input((4,))
        model = keras.Model(given, L.Dense(3)(front(given)))
        assert kinds(fold(model)) == ["Dense"]
        close(model, fold(model), values)


def test_a_front_that_stays_is_told():
    given = keras.Input((6, 6, 3))
    x = L.Rescaling(1 / 127.5, offset=-1.0, name="front")(given)
    model = keras.Model(given, L.Conv2D(4, 3, padding="same")(x * 2.0))
    found = foldable(model)
    assert [f.into for f in found.folds] == ["conv2d"]  # the factor between
    (scaling,) = found.scalings
    assert scaling.paths == ("front",)
    assert scaling.range(0, 255) == pytest.approx((-1, 1))
    (kept,) = foldable(fold(model)).scalings
    assert isinstance(kept, InputScaling)


def test_plans_are_told():
    model = chain((6, 6, 3), L.Conv2D(4, 3, name="c"), L.BatchNormalization(name="b"))
    assert foldable(model).folds == (Fold("b", "c", before=False),)


def test_idle_layers_go_and_the_end_stays():
    stack = [L.Dropout(0.5), L.GaussianNoise(1.0), L.Activation("linear"), L.Flatten()]
    model = chain((6,), *stack, L.Reshape((6,)), L.Dense(3), L.Dropout(0.5, name="end"))
    folded = fold(model)
    assert kinds(folded) == ["Dense", "Dropout"]
    assert folded.output_names == model.output_names
    close(model, folded, data(model))


def test_nested_models_that_are_called_twice():
    given = keras.Input((6,))
    inside = keras.Input((6,))
    x = L.BatchNormalization()(L.Dense(6)(L.Dropout(0.3)(inside)))
    inner = keras.Model(inside, x, name="inner")
    empty = keras.Sequential([keras.Input((6,)), L.Dropout(0.5)], name="empty")
    model = scrambled(keras.Model(given, L.Dense(2)(inner(empty(inner(given))))))
    folded = fold(model)
    assert "BatchNormalization" not in kinds(folded)
    close(model, folded, data(model))


def test_what_others_take_too_stays():
    given = keras.Input((6,))
    x = L.Dense(6, name="one")(given)
    y = L.BatchNormalization(name="bn")(x)
    model = scrambled(keras.Model(given, [L.ReLU()(x), L.Add()([x, y]), L.Dense(2)(y)]))
    assert foldable(model).folds == ()
    shared = L.BatchNormalization()
    a, b = L.Dense(4)(given), L.Dense(4)(given)
    model = scrambled(keras.Model(given, [shared(a), shared(b)]))
    assert foldable(model).folds == ()
    layer = L.Dense(4)
    twice = layer(L.Rescaling(2.0)(given)), layer(given)
    assert foldable(keras.Model(given, twice)).folds == ()
    same = L.Dense(6)
    seen = [same(given), same(L.BatchNormalization()(same(given)))]
    assert foldable(scrambled(keras.Model(given, seen))).folds == ()


@keras.saving.register_keras_serializable("dlopt_tests")
class Block(L.Layer):
    """Adds what a normalization takes, in its own code."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.norm = L.BatchNormalization()

    def build(self, input_shape):
        self.norm.build(input_shape)

    def call(self, inputs):
        return inputs + self.norm(inputs)


def test_layers_written_as_classes_are_left_alone():
    model = chain((6,), L.Dense(6), Block(), L.Rescaling(2.0), L.Dense(2))
    folded = fold(model)
    assert kinds(folded).count("BatchNormalization") == 1
    assert "Rescaling" not in kinds(folded)
    close(model, folded, data(model))


@keras.saving.register_keras_serializable("dlopt_tests")
class Twice(L.Dense):
    """Not what a dense layer computes."""

    def call(self, inputs):
        return super().call(inputs) ** 2


def test_a_class_with_a_call_of_its_own_is_not_taken_for_its_parent():
    model = chain((6,), Twice(6), L.BatchNormalization(), Twice(3))
    assert foldable(model).folds == ()
    close(model, fold(model), data(model), 0)


def test_masks_go_where_they_went():
    given = keras.Input((5,), dtype="int32")
    x = L.Embedding(7, 4, mask_zero=True)(given)
    x = x * 2.0  # which drops the mask
    x = L.Dense(4)(x)
    x = L.Dropout(0.5)(x)
    model = scrambled(keras.Model(given, L.LSTM(3)(x)))
    x = np.array([[1, 2, 0, 0, 0], [3, 4, 5, 0, 0]])
    close(model, fold(model), x)


def test_whole_numbers_are_not_given_to_kernels():
    given = keras.Input((6, 6, 3), dtype="uint8")
    x = L.Conv2D(4, 3)(L.Rescaling(1 / 255)(given))
    model = keras.Model(given, x)
    assert foldable(model).folds == ()
    assert fold(model)(np.full((1, 6, 6, 3), 9, "uint8")).shape == (1, 4, 4, 4)


def test_other_axes_stay():
    model = chain((4, 6), L.BatchNormalization(axis=1), L.Dense(3))
    assert foldable(model).folds == ()


def test_a_factor_that_overflows_stays():
    model = chain((4,), L.Dense(3), L.BatchNormalization(epsilon=1e-30, name="bn"))
    bn = model.get_layer("bn")
    bn.moving_variance.assign(np.zeros(3))
    bn.gamma.assign(np.full(3, 1e30))
    assert foldable(model).folds == ()


def test_subclassed_models_are_refused():
    model = Holder(chain((4,), L.Dense(3)))
    model(np.zeros((1, 4), "float32"))
    with pytest.raises(ModelError, match="takes built Sequential and Functional"):
        fold(model)
    with pytest.raises(ModelError, match="takes built Sequential and Functional"):
        foldable(model)


@pytest.mark.parametrize(
    ("network", "size"),
    [("MobileNetV2", 32), ("DenseNet121", 32), ("EfficientNetB0", 32)],
)
def test_networks(network, size):
    build = getattr(keras.applications, network)
    model = build(weights=None, input_shape=(size, size, 3), classes=10)
    rng = np.random.default_rng(0)
    for layer in layers_below(model, L.BatchNormalization):
        for weight, low in ((layer.moving_variance, 0.5), (layer.gamma, 0.8)):
            weight.assign(rng.uniform(low, 1.2, weight.shape))
        layer.moving_mean.assign(rng.normal(0, 0.1, layer.moving_mean.shape))
    folded = fold(model)
    left = len(layers_below(folded, L.BatchNormalization))
    assert left < 0.75 * len(layers_below(model, L.BatchNormalization))
    assert len(layers_below(folded)) < len(layers_below(model))
    x = rng.uniform(0, 255 if network == "EfficientNetB0" else 1, (2, size, size, 3))
    close(model, folded, x.astype("float32"), 1e-5)


@pytest.mark.filterwarnings("ignore:(?s).*softmax over axis")
@pytest.mark.parametrize("start", range(0, 60, 20))
def test_any_model(start):
    for seed in range(start, start + 20):
        made = drawn(seed)
        model = made.model.core if isinstance(made.model, Holder) else made.model
        folded = fold(model)
        outputs = [keras.tree.flatten(m(made.x)) for m in (model, folded)]
        for one, two in zip(*outputs, strict=True):
            one, two = ops.convert_to_numpy(one), ops.convert_to_numpy(two)
            largest = max(float(np.abs(one).max(initial=0)), 1.0)
            np.testing.assert_allclose(
                one, two, rtol=0, atol=1e-4 * largest, err_msg=f"{seed}: {made.notes}"
            )
        assert foldable(folded).folds == ()
