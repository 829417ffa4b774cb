"""The pure train step changes exactly what `train_on_batch` changes."""

import concurrent.futures
import threading

import keras
import numpy as np
import pytest

import keras_dlopt as dlopt
from catalogue import cases_of
from contracts.building import BATCH, trial
from keras_dlopt import runtime
from keras_dlopt.errors import ModelError
from keras_dlopt.model_parallel import FunctionalStep

NOT_PURE = ("SAM", "ASAM")  # two gradients a step, in a fit of their own
CASES = [
    case
    for module in ("optimizers", "transforms", "layers")
    for case in cases_of(module)
    if case.name not in NOT_PURE and not case.random
]
FAST = ("Adam", "SOAP", "Adam_accumulating", "Lookahead", "Chain", "BatchNormalization")


def _array(variable):
    return np.asarray(keras.ops.convert_to_numpy(variable))


def _same(case):
    import tensorflow as tf

    plain, other = trial(case), trial(case)
    for left, right in zip(plain.model.variables, other.model.variables, strict=True):
        right.assign(left)
    step = FunctionalStep(other.model)
    function = tf.function(step, autograph=False)
    state = step.state()
    for i in range(4):
        x, y = (a[i * BATCH : (i + 1) * BATCH] for a in (plain.x, plain.y))
        if case.kind == "transform":
            plain.model.update_transforms(i)
            step.assign(state)
            other.model.update_transforms(i)
            state = step.state()
        wanted = plain.model.train_on_batch(x, y)
        loss, state = function(state, tf.constant(x), tf.constant(y))
        if i == 0:
            # A layer's own metrics come after the loss.
            wanted = np.ravel(wanted)[0]
            np.testing.assert_allclose(float(loss), wanted, rtol=1e-5)
    step.assign(state)
    step.store_optimizer()
    pairs = [
        *zip(plain.model.variables, other.model.variables, strict=True),
        *zip(
            plain.model.optimizer.variables,
            other.model.optimizer.variables,
            strict=True,
        ),
    ]
    for left, right in pairs:
        # One slab or one kernel against one tensor at a time: rounding, no more.
        np.testing.assert_allclose(_array(right), _array(left), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "case", [c for c in CASES if c.name in FAST], ids=lambda case: case.name
)
def test_equal_to_training_in_place(case):
    _same(case)


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", [c for c in CASES if c.name not in FAST], ids=lambda case: case.name
)
def test_equal_to_training_in_place_for_the_rest(case):
    _same(case)


def _compiled(optimizer):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(optimizer, "mse")
    return model


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "Lion", "Nadam", "Lamb"])
def test_optimizers_of_keras(name):
    x, y = np.ones((4, 2), "float32"), np.zeros((4, 1), "float32")
    make = getattr(keras.optimizers, name)
    plain, other = (_compiled(make(0.1, global_clipnorm=0.5)) for _ in range(2))
    other.set_weights(plain.get_weights())
    step = FunctionalStep(other)
    state = step.state()
    for _ in range(3):
        plain.train_on_batch(x, y)
        _, state = step(state, x, y)
    step.assign(state)
    for left, right in zip(plain.variables, other.variables, strict=True):
        np.testing.assert_allclose(_array(right), _array(left), atol=1e-6)


def test_losses_of_layers_count_once():
    inputs = keras.Input((2,))
    penalty = keras.regularizers.L2(3.0)
    layer = keras.layers.Dense(1, kernel_regularizer=penalty, kernel_initializer="ones")
    hidden = keras.layers.ActivityRegularization(l1=1.0)(layer(inputs))
    model = keras.Model(inputs, hidden)
    model.compile(keras.optimizers.SGD(0.0), "mse")
    x, y = np.ones((1, 2), "float32"), np.zeros((1, 1), "float32")
    loss, _ = FunctionalStep(model)(FunctionalStep(model).state(), x, y)
    assert float(loss) == pytest.approx(2.0**2 + 3.0 * 2 + 2.0)


def test_branches_of_keras_optimizers_are_refused_with_the_way_out():
    import tensorflow as tf

    model = _compiled(keras.optimizers.Adam(0.1, gradient_accumulation_steps=2))
    step = FunctionalStep(model)
    x, y = np.ones((4, 2), "float32"), np.zeros((4, 1), "float32")
    with pytest.raises(ModelError) as error:
        tf.function(step, autograph=False)(step.state(), tf.constant(x), tf.constant(y))
    assert "is assigned in a branch" in str(error.value)
    assert "use those of keras_dlopt.optimizers" in str(error.value)


def test_a_write_to_a_foreign_variable_is_refused():
    model = _compiled(dlopt.optimizers.SGD(0.1))
    step = FunctionalStep(model)
    other = keras.Variable(1.0, name="foreign")
    step.optimizer.apply = lambda *_: other.assign(2.0)
    with pytest.raises(ModelError, match="which is none of its variables"):
        step.update(step.state(), [], [])


def test_unbuilt_and_uncompiled_models():
    with pytest.raises(ModelError, match="not built, so it has no variables to pass"):
        FunctionalStep(keras.Sequential([keras.layers.Dense(2)]))
    with pytest.raises(ModelError, match="not compiled, so there is no loss"):
        FunctionalStep(keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)]))


def test_a_pure_step_in_one_thread_and_a_fused_one_in_another_are_both_right():
    import tensorflow as tf

    rng = np.random.default_rng(0)
    shapes = [(90, 100), (3,), (4,), (5,), (6,)]  # a large one, and a slab
    grads = [tf.constant(rng.normal(size=s).astype("float32")) for s in shapes]
    together, fused_in = threading.Barrier(2), set()

    class Watched(dlopt.optimizers.Adam):
        def fused(self, *arguments):
            fused_in.add(threading.get_ident())
            super().fused(*arguments)

    def made():
        weights = [keras.Variable(np.ones(s, "float32")) for s in shapes]
        return Watched(0.1, gradient_accumulation_steps=2), weights

    def in_place():
        adam, weights = made()
        together.wait()
        for _ in range(20):
            adam.apply(grads, weights)
        return threading.get_ident(), [w.numpy() for w in weights]

    def pure():
        adam, weights = made()
        with runtime.pure():
            adam.build(weights)
        held = [*weights, *adam.variables]
        values = [tf.convert_to_tensor(v.value) for v in held]
        together.wait()
        for _ in range(20):
            pairs = list(zip(held, values, strict=True))
            values = runtime.pure_call(lambda: adam.apply(grads, weights), pairs)
        assert all(np.all(w.numpy() == 1.0) for w in weights)
        return [v.numpy() for v in values[: len(weights)]]

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        ours, theirs = pool.submit(in_place), pool.submit(pure)
        (thread, weights), others = ours.result(), theirs.result()
    assert fused_in == {thread}
    for left, right in zip(weights, others, strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-6)


def test_a_thread_is_pure_for_itself_alone():
    def elsewhere():
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            return pool.submit(runtime.kernels).result()

    with runtime.pure():
        with runtime.pure():
            pass
        assert not runtime.kernels()
        assert elsewhere()
    assert runtime.kernels()
