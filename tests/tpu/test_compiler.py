"""The real TPU compiler on small models. Skipped where libtpu is not installed."""

import importlib.util

import keras
import numpy as np
import pytest

import keras_dlopt as dlopt
from keras_dlopt import tpu

MISSING = [p for p in ("jax", "libtpu") if importlib.util.find_spec(p) is None]
pytestmark = [
    pytest.mark.dist,
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        bool(MISSING),
        reason=f"no TPU compiler: {MISSING} missing, pip install 'keras-dlopt[tpu]'",
    ),
]
LIMIT = 580.0


def _net():
    return keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            keras.layers.Conv2D(16, 3, use_bias=False, name="conv"),
            keras.layers.BatchNormalization(name="bn"),
            keras.layers.ReLU(),
            keras.layers.Flatten(),
            keras.layers.Dense(10, name="head"),
        ],
        name="net",
    )


def _compiled(model, optimizer=None):
    model.compile(
        optimizer or dlopt.optimizers.Adam(1e-3),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return model


@pytest.mark.parametrize("backend", ["jax", "tensorflow"])
def test_a_train_step_of_both_backends(backend):
    model = _compiled(_net())
    report = tpu.check(
        model,
        topology="v5e:2x2",
        batch=64,
        backend=backend,
        programs=("train",),
        search=False,
        time_limit=LIMIT,
    )
    step = report.step("train")
    assert step.failure is None
    assert report.ok
    # The state has to be there, and the gradients have to be summed over the chips.
    weights = 4 * model.count_params()
    assert step.parts["arguments"] > 2 * weights
    gradients = 4 * sum(int(np.prod(v.shape)) for v in model.trainable_variables)
    reduced = sum(c.bytes for c in step.collectives if c.kind == "all-reduce")
    assert reduced >= gradients
    # Forward and backward of the products; XLA may count a little more or less.
    products = 2 * 16 * (6 * 6 * (27 * 16 + 16 * 10))
    assert step.flops > products
    assert {p.path for p in report.padding} == {"conv", "head"}
    assert report.notes == ()


@pytest.mark.slow
@pytest.mark.parametrize("topology", ["v5p:2x2x1", "v6e:2x2"])
def test_transforms_compile_for_other_chips(topology):
    recipe = dlopt.Recipe(
        [(dlopt.named("kernel"), dlopt.Prune(0.5) >> dlopt.FakeQuant(bits=8))]
    )
    report = tpu.check(
        _compiled(dlopt.transform(_net(), recipe)),
        topology=topology,
        batch=64,
        backend="jax",
        search=False,
        time_limit=LIMIT,
    )
    assert report.ok
    assert [s.name for s in report.steps] == ["train", "inference"]


@pytest.mark.slow
def test_a_model_that_is_too_big_gets_the_batch_that_fits():
    report = tpu.check(
        "support.tpu_models:wide",
        topology="v5e:1x1",
        batch=2**19,
        backend="jax",
        programs=("train",),
        time_limit=LIMIT,
    )
    step = report.step("train")
    assert step.compiles
    assert not step.fits
    assert 0 < report.largest_batch < 2**19
    assert dict(report.tried)[report.largest_batch] <= 0.95 * step.available


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "operation"), [("jax", "eig"), ("tensorflow", "Eig")]
)
def test_an_unsupported_operation_is_named_with_its_layer(backend, operation):
    report = tpu.check(
        "support.tpu_models:with_eigenvalues",
        topology="v5e:2x2",
        batch=16,
        backend=backend,
        programs=("train",),
        search=False,
        time_limit=LIMIT,
    )
    failure = report.step("train").failure
    assert failure.operation == operation
    assert failure.layer == "inner/spectrum"


@pytest.mark.slow
def test_an_unknown_layout_is_refused_by_the_compiler():
    with pytest.raises(dlopt.errors.ConfigError, match="does not know the topology"):
        tpu.check("lenet5", topology="v5e:3x3", batch=9, time_limit=LIMIT)


@pytest.mark.slow
def test_a_model_with_unknown_layers_says_what_to_do(tmp_path):
    class Secret(keras.layers.Layer):
        def call(self, x):
            return x

    model = keras.Sequential([keras.Input((2,)), Secret()])
    with pytest.raises(dlopt.errors.ModelError, match="must be registered"):
        tpu.check(model, topology="v5e:1x1", batch=8, time_limit=LIMIT)
