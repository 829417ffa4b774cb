import keras
import numpy as np
import pytest
from keras import layers

import keras_dlopt as dlopt
from keras_dlopt.errors import ConfigError
from keras_dlopt.graph.copying import copy_model
from keras_dlopt.post_training import rate_distortion, surgeon
from keras_dlopt.runtime.values import to_numpy

RNG = np.random.default_rng(0)


def related(*shape):
    """Inputs that say much about one another, as those of real layers do."""
    mix = RNG.normal(size=(shape[-1], shape[-1])) + 2
    return (RNG.normal(size=shape) @ mix).astype("float32")


def kernel_of(weight, inputs, layer=None):
    layer = layer or layers.Dense(weight.shape[-1])
    layer.build((None, *inputs.shape[1:]))
    target = dlopt.graph.targets.Target("d/kernel", "weight", layer.kernel, layer)
    moments = inputs.T.astype("float64") @ inputs / len(inputs)
    return surgeon.SeenKernel(
        target, weight, upper=surgeon.upper_of(moments[None])
    ), moments


def one_by_one(weight, moments, step):
    """Weight by weight, each rounding made up for by those that are left."""
    inverse, codes = np.linalg.inv(moments), np.zeros(weight.shape)
    weight = weight.astype("float64")
    for i in range(len(weight)):
        codes[i] = np.rint(weight[i] / step)
        wrong = (weight[i] - codes[i] * step) / inverse[i, i]
        weight = weight - np.outer(inverse[:, i], wrong)
        column = inverse[:, i : i + 1]
        inverse = inverse - column @ column.T / inverse[i, i]
    return codes


@pytest.mark.parametrize("rows", [7, 150])
def test_without_a_price_it_is_the_optimal_surgeon(rows):
    weight = RNG.normal(size=(rows, 5)).astype("float32")
    kernel, moments = kernel_of(weight, related(400, rows))
    codes, error = surgeon.rounded(kernel, 0.3, None, 0.0)
    damped = moments + surgeon.DAMPING * np.trace(moments) / rows * np.eye(rows)
    assert np.mean(codes[0] != one_by_one(weight, damped, 0.3)) < 0.01  # ties
    wrong = codes[0] * 0.3 - weight
    assert error == pytest.approx(float(np.sum(wrong * (damped @ wrong))), rel=1e-6)
    plain = np.rint(weight / 0.3) * 0.3 - weight
    assert error < 0.5 * float(np.sum(plain * (damped @ plain)))


def test_a_price_takes_the_cheapest_of_three_codes():
    weight = RNG.normal(size=(40, 6)).astype("float32")
    kernel, _ = kernel_of(weight, related(100, 40))
    kernel.upper = None  # equal inputs: each weight for itself
    before, _ = surgeon.rounded(kernel, 0.2, None, 0.0)
    bits = surgeon.Bits(before)
    codes, error = surgeon.rounded(kernel, 0.2, before, 0.01)
    for i, j in np.ndindex(weight.shape):
        near = np.rint(weight[i, j] / 0.2)

        def cost(code, i=i, j=j):
            own = bits.of(np.array([code]), np.s_[0, i, j])[0]
            return (weight[i, j] - 0.2 * code) ** 2 + 0.01 * own

        least = min(map(cost, {near, near - np.sign(near), 0.0}))
        assert cost(codes[0, i, j]) == pytest.approx(least)
    assert error == pytest.approx(float(np.square(codes[0] * 0.2 - weight).sum()))
    assert np.count_nonzero(codes) < np.count_nonzero(before)


def test_bits_are_those_of_shares_and_magnitudes():
    codes = np.zeros((1, 200, 50))
    codes[:, ::4, :20] = RNG.choice([-2, -1, 1, 3], (1, 50, 20))
    bits = surgeon.Bits(codes)
    _, counts = np.unique(codes, return_counts=True)
    order_0 = -(counts * np.log2(counts / counts.sum())).sum()
    # By row and column it takes less than by value alone.
    assert 0.2 * order_0 < bits.total(codes) < 0.8 * order_0
    far = bits.of(np.array([9.0]), np.s_[0, 0, 0])
    assert bits.of(np.array([1.0]), np.s_[0, 0, 0]) < far < 60


LAYERS = {
    "dense": lambda: layers.Dense(3),
    "dense on maps": lambda: layers.Dense(3),
    "conv": lambda: layers.Conv2D(6, 3),
    "strided": lambda: layers.Conv2D(6, (3, 2), strides=2, padding="same"),
    "dilated": lambda: layers.Conv2D(6, 2, dilation_rate=2, padding="same"),
    "grouped": lambda: layers.Conv2D(6, 3, groups=2),
    "depthwise": lambda: layers.DepthwiseConv2D(3, depth_multiplier=2),
    "line": lambda: layers.Conv1D(6, 3, strides=2, padding="same"),
    "causal": lambda: layers.Conv1D(6, 3, dilation_rate=2, padding="causal"),
}


@pytest.mark.parametrize("name", LAYERS)
def test_rows_times_kernel_are_the_outputs(name):
    layer = LAYERS[name]()
    layer.use_bias = False
    line = isinstance(layer, layers.Conv1D)
    shape = (2, 5) if name == "dense" else (2, 9, 4) if line else (2, 9, 8, 4)
    x = RNG.normal(size=shape).astype("float32")
    y = to_numpy(layer(x))
    kernel = to_numpy(layer.kernel)
    rows = surgeon.as_rows(layer, kernel)
    found = surgeon.inputs_of(layer, keras.ops.convert_to_tensor(x)) @ rows
    found = np.moveaxis(found, 0, 1).reshape(y.shape)
    np.testing.assert_allclose(found, y, atol=1e-5)
    np.testing.assert_array_equal(surgeon.from_rows(rows, kernel.shape), kernel)


def network():
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(8, 3, activation="relu"),
            layers.DepthwiseConv2D(3, use_bias=False),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Flatten(),
            layers.Dense(32, "relu"),
            layers.Dense(10),
        ]
    )


@pytest.fixture(scope="module")
def trained():
    data = dlopt.data.load("digits")
    model = network()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(3e-3), loss, metrics=["accuracy"])
    model.fit(*data.train, epochs=12, batch_size=64, verbose=0)
    return model, data


def size(model, folder):
    """Of the kernels in the file."""
    rows = dlopt.save_compressed(model, folder / "m.dlopt").rows
    bits = [row.bits for row in rows if row.path.endswith(("kernel", "embeddings"))]
    return sum(bits) // 8


def accuracy(model, data):
    return float(
        np.mean(model.predict(data.x_test, verbose=0).argmax(-1) == data.y_test)
    )


def test_it_beats_rounding_to_the_nearest_at_equal_bytes(trained, tmp_path):
    model, data = trained
    plain = copy_model(model)
    for layer in plain.layers:
        if hasattr(layer, "kernel"):
            value = to_numpy(layer.kernel)
            step = np.float32(np.abs(value).max() / 3)  # 3 bits
            layer.kernel.assign(np.rint(value / step) * step)
    goal = size(plain, tmp_path)
    before = [to_numpy(v) for v in model.variables]
    small = rate_distortion(model, data.x_train, budget=goal)
    assert 0.9 * goal < size(small, tmp_path) <= goal
    assert accuracy(small, data) > accuracy(model, data) - 0.015
    assert accuracy(small, data) > accuracy(plain, data) + 0.02
    for variable, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(to_numpy(variable), value)


def test_means_of_outputs_stay(trained, tmp_path):
    model, data = trained
    body = copy_model(keras.Sequential([keras.Input((8, 8, 1)), *model.layers[:3]]))
    whole = size(body, tmp_path)
    small = rate_distortion(body, data.x_train, budget=whole // 3, limit=None)

    def before_activation(which):
        first, depthwise, normalization = which.layers
        y = keras.ops.conv(data.x_train, first.kernel) + first.bias
        # Each is given what it takes in float.
        x = keras.ops.relu(body.layers[0](data.x_train))
        return to_numpy(y), to_numpy(normalization(depthwise(x)))

    for got, wanted in zip(*map(before_activation, (small, body)), strict=True):
        assert np.abs(got - wanted).max() > 0
        change = np.abs((got - wanted).mean((0, 1, 2)))
        assert change.max() < 0.1 * np.abs(got - wanted).mean()


def test_statistics_behind_an_activation_stay():
    keras.utils.set_random_seed(0)
    shape = keras.Input((8,))
    first = layers.Dense(6, "relu", use_bias=False)
    model = keras.Sequential([shape, first, layers.BatchNormalization()])
    small = rate_distortion(model, related(64, 8), budget=60)
    assert np.unique(to_numpy(small.layers[0].kernel)).size < 48
    assert not np.any(to_numpy(small.layers[1].moving_mean))


def test_models_of_other_makes(tmp_path):
    class Inner(layers.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.embed = layers.Embedding(20, 8)
            self.line = layers.Conv1D(8, 3, padding="causal")
            self.out = layers.EinsumDense("abc,cd->abd", output_shape=(None, 4))

        def build(self, shape):
            self.embed.build(shape)
            self.line.build((None, None, 8))
            self.out.build((None, None, 8))

        def call(self, x):
            return self.out(self.line(self.embed(x)))

    inputs = keras.Input((6,), dtype="int32")
    model = keras.Model(inputs, layers.GlobalAveragePooling1D()(Inner()(inputs)))
    x = RNG.integers(0, 20, (50, 6))
    whole = size(model, tmp_path)
    small = rate_distortion(model, x, budget=whole // 3)
    assert size(small, tmp_path) <= whole // 3
    y = model.predict(x, verbose=0)
    error = np.square(small.predict(x, verbose=0) - y).sum()
    assert error < 0.01 * np.square(y - y.mean(axis=0)).sum()


def test_half_precision_and_shared_layers(tmp_path):
    inputs = keras.Input((12,), dtype="bfloat16")
    shared = layers.Dense(12, "relu", dtype="bfloat16")
    outputs = layers.Dense(3, dtype="bfloat16")(shared(shared(inputs)))
    model = keras.Model(inputs, outputs)
    small = rate_distortion(model, related(64, 12), budget=120)
    assert size(small, tmp_path) <= 120
    assert small.layers[1].kernel.dtype == "bfloat16"


@pytest.mark.advice("post_training/rate_distortion.py", "Allow more.")
@pytest.mark.advice("post_training/rate_distortion.py", "Pass finalize(model).")
@pytest.mark.advice("post_training/rate_distortion.py", "Give a model without them.")
def test_what_is_refused(trained, tmp_path):
    model, data = trained
    with pytest.raises(ConfigError, match="Kernels of zeros alone take more"):
        rate_distortion(model, data.x_train, budget=10)
    bits = dlopt.Recipe([(dlopt.named("kernel"), dlopt.transforms.FakeQuant(bits=8))])
    made = dlopt.transform(model, bits)
    with pytest.raises(ConfigError, match="holds transforms, which would round"):
        rate_distortion(made, data.x_train, budget=99)
    assert rate_distortion(dlopt.finalize(made), data.x_train, budget=99)
    broken = copy_model(model)
    broken.layers[-1].kernel.assign(np.full((32, 10), np.nan))
    with pytest.raises(ConfigError, match="dense_1/kernel has values that are not"):
        rate_distortion(broken, data.x_train, budget=99)
    assert size(rate_distortion(model, data.x_train, budget=99), tmp_path) <= 99
    flat = keras.Sequential([keras.Input((3,)), layers.Rescaling(2.0)])
    with pytest.raises(ConfigError, match="has no kernels to round"):
        rate_distortion(flat, np.ones((2, 3)), budget=900)
    with pytest.raises(ConfigError, match="budget must be"):
        rate_distortion(model, data.x_train, budget=0)
