"""Private training over kinds of models and ways to compile: one result."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

import keras_dlopt as dlopt
from keras_dlopt import privacy
from keras_dlopt.data import augment
from keras_dlopt.errors import ModelError
from keras_dlopt.privacy import noise
from keras_dlopt.privacy.drawing import Secret

L = keras.layers
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
RNG = np.random.default_rng(0)
X = RNG.normal(size=(32, 6)).astype("float32")
Y = np.arange(32) % 3


@keras.saving.register_keras_serializable("test_privacy")
class Subclassed(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.hidden, self.out = L.Dense(5, activation="tanh"), L.Dense(3)

    def build(self, input_shape):
        self.hidden.build((None, 6))
        self.out.build((None, 5))

    def call(self, x):
        return self.out(self.hidden(x))


@keras.saving.register_keras_serializable("test_privacy")
class Nested(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.body = keras.Sequential([L.Dense(5, activation="tanh"), L.Dense(3)])

    def build(self, input_shape):
        self.body.build((None, 6))

    def call(self, x):
        return self.body(x)


def sequential():
    return keras.Sequential(
        [keras.Input((6,)), L.Dense(5, activation="tanh"), L.Dense(3)]
    )


def inside():
    inputs = keras.Input((6,))
    return keras.Model(inputs, sequential()(inputs))


KINDS = {
    "sequential": sequential,
    "inside another": inside,
    "subclassed": Subclassed,
    "nested": Nested,
}


def made(kind, method="ghost", *, sigma=None, **compiled):
    keras.utils.set_random_seed(0)
    model = KINDS[kind]()
    model.build((None, 6))
    model.set_weights([0.3 * drawn(i, w.shape) for i, w in enumerate(model.weights)])
    # XLA numbers its draws otherwise: the same seed gives another noise.
    if sigma is None:
        sigma = 0.0 if compiled.get("jit_compile") else 1.0
    given = {"noise_multiplier": sigma, "clip": 0.3, "seed": 1, "method": method}
    private = privacy.private(model, **given)
    private.compile(dlopt.optimizers.Adam(0.05), LOSS, **compiled)
    return private


def drawn(seed, shape):
    return np.random.default_rng(seed).normal(size=shape)


def trained(private, epochs=2):
    private.fit(X, Y, 8, epochs=epochs, verbose=0)
    return dlopt.finalize(private).get_weights()


@functools.cache
def plain(sigma):
    return trained(made("sequential", sigma=sigma, jit_compile=False))


def close(a, b, atol):
    for one, other in zip(a, b, strict=True):
        np.testing.assert_allclose(one, other, atol=atol)


@pytest.mark.parametrize(
    ("kind", "method", "options"),
    [
        ("nested", "ghost", {"jit_compile": True}),
        pytest.param(
            "subclassed",
            "vectorized",
            {"steps_per_execution": 3},
            marks=pytest.mark.slow,
        ),
        pytest.param("inside another", "ghost", {}, marks=pytest.mark.slow),
        pytest.param(
            "inside another",
            "vectorized",
            {"jit_compile": True, "steps_per_execution": 4},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "subclassed", "vectorized", {"jit_compile": True}, marks=pytest.mark.slow
        ),
    ],
)
def test_the_kind_of_model_and_how_steps_run_change_nothing(kind, method, options):
    expected = plain(0.0 if options.get("jit_compile") else 1.0)
    close(trained(made(kind, method, **options)), expected, 2e-6)


@pytest.mark.parametrize("jit", [False, True])
def test_noise_is_normal_and_another_in_each_step_and_weight(jit):
    def drawn(step):
        return noise.noises(Secret.of(0), step, [(40_000,), (40_000,)])

    call = tf.function(drawn, jit_compile=jit)
    found = np.array([*call(tf.constant(3)), *call(tf.constant(4))], "float64")
    assert abs(np.corrcoef(found) - np.eye(4)).max() < 0.02  # 4 deviations
    for one in found:
        assert stats.kstest(one, "norm").pvalue > 1e-3


@pytest.mark.parametrize("kind", ["nested", "subclassed"])
@pytest.mark.slow
def test_files_keep_all_of_it(kind, tmp_path):
    private = made(kind)
    trained(private, 1)
    private.save(tmp_path / "m.keras")
    again = keras.saving.load_model(tmp_path / "m.keras")
    assert type(again) is privacy.PrivateModel
    told = [one.get_config() for one in (again, private)]
    assert [config.pop("model")["class_name"] for config in told] == [
        type(private.model).__name__
    ] * 2
    assert told[0] == told[1]
    assert again.ledger == private.ledger
    np.testing.assert_array_equal(
        again.predict(X, verbose=0), private.predict(X, verbose=0)
    )
    for a, b in zip(
        again.optimizer.variables, private.optimizer.variables, strict=True
    ):
        np.testing.assert_array_equal(a, b)
    trained(again, 1)
    assert again.ledger[-1].steps == 4


@pytest.mark.parametrize("method", ["ghost", "vectorized"])
@pytest.mark.slow
def test_half_precision_trains_weights_of_float32(method):
    keras.config.set_dtype_policy("mixed_bfloat16")
    half = trained(made("nested", method))
    keras.config.set_dtype_policy("float32")
    assert {w.dtype.name for w in half} == {"float32"}
    # Adam takes steps of the rate, whatever the gradient's length.
    close(half, trained(made("nested", method)), 0.2)
    assert abs(half[0] - made("nested").get_weights()[0]).max() > 0.05


def test_a_model_that_its_first_batch_builds_is_refused():
    late = keras.Sequential([L.Dense(3)])
    with pytest.raises(
        ModelError, match="must be a built keras.Model. .* call it once"
    ):
        privacy.private(late, noise_multiplier=1.0)
    late(X)
    private = privacy.private(late, noise_multiplier=1.0, seed=0)
    private.compile("sgd", LOSS)
    private.fit(X, Y, 8, steps_per_epoch=1, verbose=0)
    assert private.ledger[0].steps == 1


@pytest.mark.parametrize("method", ["ghost", "vectorized"])
@pytest.mark.slow
def test_images_are_augmented_inside(method):
    """Each example in its own way, and none by the others of its batch."""
    model = keras.Sequential(
        [
            keras.Input((6, 6, 1)),
            augment.AugmentationLayer(seed=1),
            L.Flatten(),
            L.Dense(3),
        ]
    )
    private = privacy.private(model, noise_multiplier=0.0, seed=1, method=method)
    private.compile(keras.optimizers.SGD(0.1), LOSS)
    x = RNG.random((32, 6, 6, 1)).astype("float32")
    private.fit(x, Y, 8, epochs=2, verbose=0)
    layer = dlopt.finalize(private).layers[0]
    assert np.array(layer.state).tolist() == [1, 8]
