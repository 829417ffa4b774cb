import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_dlopt import data, layers
from keras_dlopt.errors import ConfigError, DataError, ModelError
from keras_dlopt.measure import profile
from keras_dlopt.measure.profile import profile_fit


def _model(*, compiled=True, seed=1, extra=()):
    keras.utils.set_random_seed(seed)
    model = keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            keras.layers.Conv2D(4, 3),
            *extra,
            keras.layers.Dropout(0.5),
            keras.layers.Flatten(),
            keras.layers.Dense(3),
        ]
    )
    if compiled:
        model.compile(
            keras.optimizers.Adagrad(0.1),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
        )
    return model


X = np.random.default_rng(0).normal(size=(24, 6, 6, 2)).astype("float32")
Y = np.arange(24) % 3


def test_parts_sum_up_to_the_step_and_the_model_is_as_before():
    model, other = _model(), _model()
    before = [v.numpy() for v in model.variables]
    result = profile_fit(model, X, Y, batch_size=8, steps=6, rounds=2)
    assert tuple(result.seconds) == profile.PARTS
    assert result.batch_size == 8
    assert result.step_seconds > 0
    total = sum(result.seconds.values())
    # Parts cut at zero can only add to the sum.
    assert total >= result.step_seconds * 0.999
    for v, old in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(v, old)
    # Training goes on as if nothing had happened, optimizer and dropout included.
    keras.utils.set_random_seed(2)
    a = model.fit(X, Y, batch_size=8, shuffle=False, verbose=0).history["loss"]
    keras.utils.set_random_seed(2)
    b = other.fit(X, Y, batch_size=8, shuffle=False, verbose=0).history["loss"]
    assert a == b


class Nested(keras.Model):
    """Subclassed, with a Sequential without Input inside."""

    def __init__(self):
        super().__init__()
        self.body = _late()

    def call(self, x):
        return self.body(x)


class Coder(Nested):
    """With a train step of its own, that makes the targets of the inputs."""

    def train_step(self, data):
        x = keras.utils.unpack_x_y_sample_weight(data)[0]
        return super().train_step((x, x[:, :3, 0, 0]))


def _late():
    parts = [keras.layers.Conv2D(4, 3), keras.layers.Flatten(), keras.layers.Dense(3)]
    return keras.Sequential(parts)


@pytest.mark.parametrize("build", [_late, Nested, Coder])
def test_a_model_that_its_first_batch_builds_is_left_as_built(build):
    def made(built):
        keras.utils.set_random_seed(1)
        model = build()
        if built:
            model(X[:1])
        model.compile(keras.optimizers.Adagrad(0.1), "mse")
        return model

    y = np.eye(3, dtype="float32")[Y]
    late, early = made(False), made(True)
    result = profile_fit(late, X, y, batch_size=8, steps=2, rounds=1)
    assert result.step_seconds > 0
    for a, b in zip(late.weights, early.weights, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())
    histories = [
        m.fit(X, y, batch_size=8, shuffle=False, verbose=0).history
        for m in (late, early)
    ]
    assert histories[0] == histories[1]
    if build is Coder:  # the other way that the error advises is not ours
        with pytest.raises(ModelError, match="Coder.train_step cannot be timed apart"):
            profile_fit(late, X, batch_size=8, steps=2, rounds=1)


def test_a_slow_pipeline_shows_as_data_wait():
    def slow(x):
        return tf.numpy_function(_sleep, [x], tf.float32)

    def reshape(x, y):
        return tf.ensure_shape(x, (None, 6, 6, 2)), y

    feed = data.batches(X, Y, batch_size=8, augment=slow).map(reshape)
    result = profile_fit(_model(), feed, steps=5, rounds=1)
    assert result.seconds["data wait"] > 0.02
    assert result.advice[0].startswith("data wait takes")
    assert "keras_dlopt.data.batches" in result.advice[0]


def _sleep(x):
    import time

    time.sleep(0.05)
    return x


def test_table_and_plot(tmp_path):
    result = profile.StepProfile(
        seconds=dict.fromkeys(profile.PARTS, 0.001),
        step_seconds=0.006,
        stall_seconds=0.002,
        batch_size=32,
        advice=("eat well",),
    )
    lines = result.table().splitlines()
    assert lines[0].split() == ["part", "ms/step", "share"]
    assert lines[1].split() == ["data", "wait", "1.00", "17%"]
    assert lines[-3].split() == ["step", "6.00", "100%"]
    assert lines[-2].split() == ["end", "of", "fit", "2.00"]
    assert lines[-1] == "- eat well"
    result.plot(tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes()[:4] == b"\x89PNG"


def test_advice_names_the_remedy():
    model = _model(extra=[keras.layers.BatchNormalization()])
    seconds = dict.fromkeys(profile.PARTS, 0.2)
    texts = " ".join(profile._advice(model, seconds, 1.2, 30.0))
    for word in (
        "steps_per_execution",
        "fused optimizers",
        "use_fused(model)",
        "options.autotune.enabled = False",
        "drop metrics",
    ):
        assert word in texts
    layers.use_fused(model)
    assert "use_fused" not in " ".join(profile._advice(model, seconds, 1.2, 0.0))


def test_errors(monkeypatch):
    with pytest.raises(ModelError, match=r"must be compiled with an optimizer. Call"):
        profile_fit(_model(compiled=False), X, Y)
    with pytest.raises(DataError, match="Received 24 examples, fewer than one batch"):
        profile_fit(_model(), X, Y, batch_size=32)
    with pytest.raises(DataError, match="The data set is empty"):
        profile_fit(_model(), data.batches(X, Y).take(0))
    with pytest.raises(ConfigError, match="steps must be .* 2 or greater. Received: 1"):
        profile_fit(_model(), X, Y, steps=1)
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(ConfigError, match=r"Use jax\.profiler there"):
        profile_fit(_model(), X, Y)
