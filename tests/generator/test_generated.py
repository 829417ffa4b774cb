"""Any legal model goes all the way, and computes the same at every stop."""

import warnings

import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import keras_dlopt as dlopt
from keras_dlopt.graph.trace import trace
from keras_dlopt.int8.placement import place
from tests.support.generated import models

RECIPES = {
    "prune": lambda model, x: [(dlopt.named("kernel"), dlopt.Prune(0.5))],
    "quantize": lambda model, x: [(dlopt.named("kernel"), dlopt.FakeQuant(bits=8))],
    "both": lambda model, x: [
        (dlopt.named("kernel"), dlopt.Prune(0.5) >> dlopt.FakeQuant(bits=4))
    ],
    "cluster": lambda model, x: [(dlopt.named("kernel"), dlopt.Cluster(4))],
    "int8": lambda model, x: list(dlopt.int8_recipe(model, example=x).entries),
}


def flat(outputs):
    return [
        np.asarray(keras.ops.convert_to_numpy(y)) for y in keras.tree.flatten(outputs)
    ]


def assert_close(a, b, tolerance):
    for one, two in zip(flat(a), flat(b), strict=True):
        assert np.isfinite(one).all()
        largest = max(float(np.abs(one).max(initial=0)), 1.0)
        np.testing.assert_allclose(one, two, rtol=0, atol=tolerance * largest)


def train(model, x):
    """Two steps, as `fit` does them."""
    y = [np.zeros_like(part) for part in flat(model(x))]
    model.compile(keras.optimizers.SGD(1e-3, clipnorm=1.0), "mse", run_eagerly=True)
    for step in range(2):
        model.update_transforms(step)
        model.train_on_batch(x, y if len(y) > 1 else y[0])
    model.check_acted()


def go_through(drawn, name, folder, exports):
    model, x = drawn.model, drawn.x
    small = dlopt.transform(model, dlopt.Recipe(RECIPES[name](model, x)))
    train(small, x)
    expected = small(x)
    plain = dlopt.finalize(small)
    if name != "int8":
        assert_close(expected, plain(x), 1e-5)
    small.save(folder / "small.keras")
    assert_close(expected, keras.models.load_model(folder / "small.keras")(x), 0)
    dlopt.save_compressed(plain, folder / "plain.dlopt")
    assert_close(plain(x), dlopt.load_compressed(folder / "plain.dlopt")(x), 0)
    fine = dlopt.post_training.quantize(
        plain,
        x,
        weights=dlopt.FakeQuant(bits=16),
        activation_bits=16,
        observer="min_max",
    )
    assert_close(plain(x), fine(x), 1e-2)
    coarse = dlopt.post_training.quantize(plain, x, observer="min_max")
    assert_close(coarse(x), coarse(x), 0)
    if len(exports) and not place(trace(coarse.model, x)).problems:
        exports.pop()
        dlopt.export.litert(coarse, folder / "coarse.tflite", data=x, example=x)


def run(count, exports, folder):
    left = list(range(exports))

    @settings(
        max_examples=count,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(models(), st.sampled_from(sorted(RECIPES)))
    def through(drawn, name):
        with warnings.catch_warnings():
            # What int8 does not have, weights without gradients behind a zero.
            warnings.simplefilter("ignore", UserWarning)
            go_through(drawn, name, folder, left)

    through()
    assert not left


@pytest.mark.slow
def test_200_models(tmp_path):
    run(200, 6, tmp_path)


@pytest.mark.slow
def test_2000_models(tmp_path):
    run(2000, 100, tmp_path)
