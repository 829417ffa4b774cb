"""Every method against its float64 twin, and against Keras and optax."""

import keras
import numpy as np
import pytest

from keras_dlopt import optimizers, schedules
from reference import optimizers as twins

SHAPES = [(6, 4), (3, 3, 2, 5), (5,), (4,), (7,), (3,), ()]


def _problem(steps, *, seed=0, shapes=SHAPES):
    rng = np.random.default_rng(seed)
    weights = [rng.normal(size=s).astype("float32") for s in shapes]
    # A common part keeps signs, a scale that changes tests the second moments.
    common = [rng.normal(size=s) for s in shapes]
    grads = [
        [
            (c + rng.normal(size=s)) * (1 + 0.5 * np.sin(t))
            for c, s in zip(common, shapes, strict=True)
        ]
        for t in range(steps)
    ]
    return weights, [[np.asarray(g, "float32") for g in step] for step in grads]


def _train(optimizer, weights, steps, *, graph=True, jit=False):
    variables = [keras.Variable(w, name=f"w{i}") for i, w in enumerate(weights)]
    optimizer.build(variables)
    if graph:
        import tensorflow as tf

        apply = tf.function(
            lambda grads: optimizer.apply(grads, variables), jit_compile=jit
        )
    else:
        apply = lambda grads: optimizer.apply(grads, variables)  # noqa: E731
    for step in steps:
        apply([keras.ops.convert_to_tensor(g) for g in step])
    return [v.numpy() for v in variables], optimizer


def _same(found, expected, *, rtol=2e-5, atol=2e-6):
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)


o, t = optimizers, twins
PAIRS = {
    "SGD": (lambda: o.SGD(0.01), t.sgd, {"lr": 0.01}),
    "SGD_momentum": (
        lambda: o.SGD(0.01, momentum=0.9),
        t.sgd,
        {"lr": 0.01, "momentum": 0.9},
    ),
    "SGD_nesterov": (
        lambda: o.SGD(0.01, momentum=0.9, nesterov=True),
        t.sgd,
        {"lr": 0.01, "momentum": 0.9, "nesterov": True},
    ),
    "RMSprop": (lambda: o.RMSprop(0.01), t.rmsprop, {"lr": 0.01}),
    "RMSprop_all": (
        lambda: o.RMSprop(0.01, momentum=0.8, centered=True),
        t.rmsprop,
        {"lr": 0.01, "momentum": 0.8, "centered": True},
    ),
    "Adam": (lambda: o.Adam(0.01), t.adam, {"lr": 0.01}),
    "Adam_amsgrad": (
        lambda: o.Adam(0.01, amsgrad=True),
        t.adam,
        {"lr": 0.01, "amsgrad": True},
    ),
    "AdamW": (
        lambda: o.AdamW(0.01, weight_decay=0.2),
        t.adam,
        {"lr": 0.01, "decay": 0.2},
    ),
    "Adagrad": (lambda: o.Adagrad(0.1), t.adagrad, {"lr": 0.1}),
    "Adagrad_zero": (
        lambda: o.Adagrad(0.1, initial_accumulator_value=0.0),
        t.adagrad,
        {"lr": 0.1, "start": 0.0},
    ),
    "RAdam": (lambda: o.RAdam(0.01), t.radam, {"lr": 0.01}),
    "AdaBelief": (lambda: o.AdaBelief(0.01), t.adabelief, {"lr": 0.01}),
    "Adan": (lambda: o.Adan(0.01), t.adan, {"lr": 0.01}),
    "AdEMAMix": (lambda: o.AdEMAMix(0.01), t.ademamix, {"lr": 0.01}),
    "AdEMAMix_warmup": (
        lambda: o.AdEMAMix(0.01, warmup=25),
        t.ademamix,
        {"lr": 0.01, "warmup": 25},
    ),
    "ADOPT": (lambda: o.ADOPT(0.01), t.adopt, {"lr": 0.01}),
    "MARS": (lambda: o.MARS(0.01), t.mars, {"lr": 0.01}),
    "LARS": (
        lambda: o.LARS(0.5, trust=0.01, weight_decay=0.1),
        t.lars,
        {"lr": 0.5, "trust": 0.01, "decay": 0.1},
    ),
    "SOAP": (
        lambda: o.SOAP(0.01, frequency=3),
        t.soap,
        {"lr": 0.01, "frequency": 3},
    ),
    "Lookahead": (
        lambda: o.Lookahead(o.SGD(0.01), period=4, alpha=0.3),
        t.lookahead_sgd,
        {"lr": 0.01, "period": 4, "alpha": 0.3},
    ),
}


LOOSE = {
    # r_t is a small difference of numbers near 2,000 in the first steps.
    "RAdam": {"rtol": 2e-4, "atol": 2e-5},
    # Where a gradient is as predicted, rounding decides its surprise.
    "AdaBelief": {"rtol": 2e-4, "atol": 2e-5},
    # Power iterations amplify rounding by the ratio of eigenvalues.
    "SOAP": {"rtol": 1e-3, "atol": 1e-3},
}


@pytest.mark.parametrize("name", PAIRS)
def test_equals_the_float64_twin(name):
    make, twin, settings = PAIRS[name]
    # SOAP: square weights, for the basis of a null space is arbitrary.
    shapes = [(5, 5), (2, 2, 1, 4), (6,)] if name == "SOAP" else SHAPES
    weights, steps = _problem(40, shapes=shapes)
    found, _ = _train(make(), weights, steps)
    _same(found, twin(weights, steps, **settings), **LOOSE.get(name, {}))


def test_prodigy_equals_its_twin():
    weights, _ = _problem(1)
    steps = [[2 * w * (1 + 0.1 * k) for w in weights] for k in range(30)]
    found, optimizer = _train(o.Prodigy(initial_distance=1e-3), weights, steps)
    _same(found, t.prodigy(weights, steps, d=1e-3), rtol=1e-4, atol=1e-5)
    distance = next(v for v in optimizer.variables if v.name == "distance")
    assert float(distance.numpy()) > 2e-3


def test_lbfgs_equals_the_dense_bfgs_formula():
    rng = np.random.default_rng(4)
    half = rng.normal(size=(8, 6))
    matrix, target = half.T @ half / 8 + 0.1 * np.eye(6), rng.normal(size=6)

    def gradient(w):
        return matrix @ (w - target)

    v = keras.Variable(np.zeros(6, "float32"))
    lbfgs = o.LBFGS(0.8, memory=4)
    for _ in range(12):
        lbfgs.apply([gradient(v.numpy()).astype("float32")], [v])
    expected = t.lbfgs(np.zeros(6), gradient, updates=12, lr=0.8, memory=4)
    np.testing.assert_allclose(v.numpy(), expected, atol=2e-4)
    np.testing.assert_allclose(v.numpy(), target, atol=0.05)


def test_schedule_free_trains_at_y_and_ends_at_the_average():
    weights, steps = _problem(20)
    free = o.ScheduleFree(o.SGD(0.01), beta=0.9)
    variables = [keras.Variable(w, name=f"w{i}") for i, w in enumerate(weights)]
    for step in steps:
        free.apply(step, variables)
    held = [v.numpy() for v in variables]
    expected = t.schedule_free_sgd(weights, steps, lr=0.01)
    with free.averaged_weights():
        _same([v.numpy() for v in variables], expected)
    _same([v.numpy() for v in variables], held)
    free.finalize_variable_values(variables)
    _same([v.numpy() for v in variables], expected)


@pytest.mark.parametrize("jit", [False, True], ids=["graph", "xla"])
def test_schedule_free_adam_equals_its_twin(jit):
    # A large weight for the fused kernel, small ones for the slab; a warm-up from 0.
    weights, steps = _problem(30, shapes=[(120, 100), (3, 4), (5,), (4,), (7,)])
    rate = schedules.Warmup(0.01, steps=5)
    free = o.ScheduleFree(o.Adam(rate, beta_1=0.0), beta=0.8, weight_decay=0.1)
    found, _ = _train(free, weights, steps, jit=jit)
    rates = [rate.value(k) for k in range(30)]
    pairs = t.schedule_free_adam(weights, steps, rates=rates, beta=0.8, decay=0.1)
    held, averages = zip(*pairs, strict=True)
    # A gradient near 0 at the start is divided by its own size.
    _same(found, held, rtol=1e-4, atol=2e-5)
    _same([a.numpy() for a in free.averages()], averages, rtol=1e-4, atol=2e-5)


def test_schedule_free_goes_on_after_the_averages_were_put_in_place():
    weights, steps = _problem(20, shapes=[(100, 90), (3,)])
    plain, _ = _train(o.ScheduleFree(o.SGD(0.01)), weights, steps)
    free = o.ScheduleFree(o.SGD(0.01))
    variables = [keras.Variable(w) for w in weights]
    for k, step in enumerate(steps):
        free.apply([keras.ops.convert_to_tensor(g) for g in step], variables)
        if k in (0, 9):
            free.finalize_variable_values(variables)
            free.finalize_variable_values(variables)
            _same([v.numpy() for v in variables], [a.numpy() for a in free.averages()])
    _same([v.numpy() for v in variables], plain)


def test_gradient_descent_is_the_textbook_form_for_least_squares():
    rng = np.random.default_rng(5)
    x, y = rng.normal(size=(24, 3)), rng.normal(size=24)
    v = keras.Variable(np.zeros(3, "float32"))
    descent = o.GradientDescent(0.1, batches=4)
    theta = np.zeros(3)
    for _ in range(15):
        for rows in np.split(np.arange(24), 4):
            g = x[rows].T @ (x[rows] @ v.numpy() - y[rows]) / len(rows)
            descent.apply([g.astype("float32")], [v])
        theta = theta - 0.1 / 24 * x.T @ (x @ theta - y)
        np.testing.assert_allclose(v.numpy(), theta, atol=1e-5)
    assert int(keras.ops.convert_to_numpy(descent.iterations)) == 15


CLASSICS = {
    "SGD": {"learning_rate": 0.01, "momentum": 0.9, "nesterov": True},
    "RMSprop": {"momentum": 0.5},
    "Adam": {"weight_decay": 0.01, "global_clipnorm": 1.0},
    "AdamW": {"clipnorm": 0.5},
    "Adagrad": {"learning_rate": 0.01, "clipvalue": 0.5},
}


@pytest.mark.parametrize("name", CLASSICS)
def test_200_steps_agree_with_keras(name):
    weights, steps = _problem(200, seed=2)
    ours, a = _train(getattr(o, name)(**CLASSICS[name]), weights, steps)
    theirs, b = _train(
        getattr(keras.optimizers, name)(**CLASSICS[name]), weights, steps
    )
    for x, y in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-6)
    assert [v.name for v in a.variables] == [v.name for v in b.variables]
    for x, y in zip(a.variables, b.variables, strict=True):
        assert x.shape == y.shape
        np.testing.assert_allclose(x.numpy(), y.numpy(), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("name", CLASSICS)
def test_200_steps_agree_with_keras_on_large_weights(name):
    # As Keras initializes a layer: the product that decays a weight rounds otherwise
    # than Keras' difference, by half a unit in the last place at each step.
    options = {**CLASSICS[name], "weight_decay": 0.004}
    _, steps = _problem(200, seed=2, shapes=[(300, 100)])
    weights = [np.asarray(keras.initializers.GlorotUniform(seed=1)((300, 100)))]
    ours, a = _train(getattr(o, name)(**options), weights, steps)
    theirs, b = _train(getattr(keras.optimizers, name)(**options), weights, steps)
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-6, atol=1e-6)
    for x, y in zip(a.variables, b.variables, strict=True):
        np.testing.assert_allclose(x.numpy(), y.numpy(), rtol=1e-5, atol=2e-6)


def test_decay_of_large_weights_is_as_exact_as_that_of_keras():
    # lr * decay is 67 steps of float32: a fixed rounding would be off by up to 1 %.
    weights, _ = _problem(1, shapes=[(100, 100)])
    steps = [[np.zeros((100, 100), "float32")]] * 500
    exact = weights[0].astype("float64") * (1 - 1e-3 * 0.004) ** 500
    errors = []
    for cls in (o.AdamW, keras.optimizers.AdamW):
        (found,), _ = _train(cls(1e-3, weight_decay=0.004), weights, steps)
        errors.append(np.mean((found - exact) * np.sign(exact)))
    assert abs(errors[0]) <= 1.3 * abs(errors[1]), errors


# Not Adan: optax weighs the change by 1 - b2 where the authors' code has b2.
OPTAX = {
    "RAdam": lambda optax: optax.radam(0.01),
    "AdaBelief": lambda optax: optax.adabelief(0.01),
    "AdEMAMix": lambda optax: optax.contrib.ademamix(0.01, alpha=5.0),
    "ADOPT": lambda optax: optax.contrib.adopt(0.01, b2=0.9999, eps=1e-6),
    "Adam": lambda optax: optax.adam(0.01, eps=1e-8),
}


@pytest.mark.parametrize("name", OPTAX)
def test_agrees_with_optax(name):
    optax = pytest.importorskip("optax")
    make = {"Adam": lambda: o.Adam(0.01, epsilon=1e-8)}.get(name) or PAIRS[name][0]
    weights, steps = _problem(20, seed=3)
    found, _ = _train(make(), weights, steps, graph=False)
    rule = OPTAX[name](optax)
    state, params = rule.init(weights), weights
    for step in steps:
        change, state = rule.update(step, state, params)
        params = optax.apply_updates(params, change)
    _same(found, [np.asarray(p) for p in params], rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("jit", [False, True], ids=["graph", "xla"])
@pytest.mark.parametrize(
    "name",
    ["SGD_nesterov", "RMSprop", "RMSprop_all", "Adam_amsgrad", "AdamW", "Adagrad"],
)
def test_large_weights_take_the_fused_kernel(name, jit):
    make, twin, settings = PAIRS[name]
    weights, steps = _problem(5, shapes=[(100, 90), (3,)])
    found, _ = _train(make(), weights, steps, jit=jit)
    # A gradient near 0 at the start is divided by its own size.
    _same(found, twin(weights, steps, **settings), rtol=1e-4, atol=2e-5)
