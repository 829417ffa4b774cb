"""State belongs to a weight: groups, frozen layers, skipped steps, repeated rows."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from catalogue.optimizers import CASES
from keras_dlopt import optimizers as o

MADE = {case.name: case.make for case in CASES if case.kind == "optimizer"}
GROUPS = [name for name in MADE if name != "LBFGS"]  # it refuses a part of the weights


def _variables(*shapes, seed=0):
    rng = np.random.default_rng(seed)
    return [
        keras.Variable(rng.normal(size=s).astype("float32"), name=f"w{i}")
        for i, s in enumerate(shapes)
    ]


def _grads(variables, seed=1):
    rng = np.random.default_rng(seed)
    return [
        tf.constant(rng.normal(size=tuple(v.shape)).astype("float32"))
        for v in variables
    ]


def _values(variables):
    return [np.array(keras.ops.convert_to_numpy(v)) for v in variables]


def _with(name, **options):
    """An optimizer of the catalogue, its own base where it has one, with options."""
    made = MADE[name]()
    inner = getattr(made, "base", None) if isinstance(made, o.Lookahead) else made
    again = type(inner).from_config({**inner.get_config(), **options})
    return o.Lookahead(again, period=made.period) if inner is not made else again


# -- averages --------------------------------------------------------------------------


@pytest.mark.parametrize("overwrite", [None, 3])
def test_averages_of_alternating_groups_equal_keras(overwrite):
    def run(cls):
        variables = _variables((2,), (3,), (2, 2), (4,), (5,))
        options = {"use_ema": True, "ema_momentum": 0.9}
        optimizer = cls(0.1, ema_overwrite_frequency=overwrite, **options)
        optimizer.build(variables)
        for i in range(7):
            part = [variables[:2], variables[2:], variables[1:4]][i % 3]
            optimizer.apply(_grads(part, seed=i), part)
        return _values([*variables, *optimizer._model_variables_moving_average])

    for ours, theirs in zip(run(o.SGD), run(keras.optimizers.SGD), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_averages_move_once_per_update_under_accumulation():
    once, often = _variables((3,), (2, 2)), _variables((3,), (2, 2))
    options = {"use_ema": True, "ema_momentum": 0.5, "ema_overwrite_frequency": 2}
    plain = o.SGD(0.1, **options)
    adding = o.SGD(0.1, gradient_accumulation_steps=3, **options)
    for i in range(5):
        plain.apply(_grads(once, seed=i), once)
        for _ in range(3):
            adding.apply(_grads(often, seed=i), often)
        found, wanted = [*often, *adding.averages()], [*once, *plain.averages()]
        for a, b in zip(_values(found), _values(wanted), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)


def test_a_frozen_layer_keeps_its_weights_and_the_others_their_averages():
    keras.utils.set_random_seed(0)
    x = np.random.default_rng(0).normal(size=(32, 4)).astype("float32")
    first, second = keras.layers.Dense(4), keras.layers.Dense(4)
    model = keras.Sequential([keras.Input((4,)), first, second])
    optimizer = o.SGD(0.05, use_ema=True, ema_momentum=0.9)
    model.compile(optimizer, "mse")
    model.fit(x, x, epochs=2, verbose=0)
    first.trainable = False
    model.compile(optimizer, "mse")
    frozen = _values(first.weights)
    model.fit(x, x, epochs=2, verbose=0)
    for a, b in zip(frozen, _values(first.weights), strict=True):
        np.testing.assert_array_equal(a, b)
    for v, average in zip(second.weights, optimizer.averages()[2:], strict=True):
        np.testing.assert_array_equal(v.numpy(), average.numpy())


# -- weights that are left out of a call -----------------------------------------------


@pytest.mark.parametrize("slab", [False, True], ids=["alone", "slab"])
@pytest.mark.parametrize("name", ["ADOPT", "Adan", "MARS", "SOAP"])
def test_a_late_first_gradient_makes_a_first_step(name, slab):
    shapes = [(3, 2), (4,)] * (3 if slab else 1)
    weights, alone = _variables(*shapes), _variables(*shapes)
    half = len(shapes) // 2
    optimizer, fresh = MADE[name](), MADE[name]()
    optimizer.build(weights)
    for i in range(4):
        optimizer.apply(_grads(weights[:half], seed=i), weights[:half])
    fresh.apply(_grads(weights, seed=9), alone)
    optimizer.apply(_grads(weights, seed=9), weights)
    for a, b in zip(weights[half:], alone[half:], strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), atol=1e-6)


@pytest.mark.parametrize("name", GROUPS)
def test_a_weight_without_gradients_keeps_its_value(name):
    """Whatever the others do; and it is finite when gradients come at last."""
    weights = _variables((3, 4), (4,), (2, 3), (5,), (6,))
    optimizer = MADE[name]()
    optimizer.build(weights)
    left = _values(weights[3:])
    for i in range(6):
        optimizer.apply(_grads(weights[:3], seed=i), weights[:3])
    for a, b in zip(left, _values(weights[3:]), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    for i in range(3):
        optimizer.apply(_grads(weights, seed=i), weights)
    assert all(
        np.all(np.isfinite(v)) for v in _values([*weights, *optimizer.variables])
    )


def test_accumulated_gradients_of_groups_are_means_over_all_calls():
    a, b, unused = _variables((3,), (2, 2), (2,))
    adding = o.SGD(1.0, gradient_accumulation_steps=4, weight_decay=0.5)
    adding.build([a, b, unused])
    before, grads = _values([a, b, unused]), [_grads([a, b], seed=i) for i in range(4)]
    for i, (one, other) in enumerate(grads):
        adding.apply([[one], [other]][i % 2], [[a], [b]][i % 2])
    mean = [(grads[i][i].numpy() + grads[i + 2][i].numpy()) / 4 for i in range(2)]
    for v, old, g in zip((a, b), before, mean, strict=False):
        np.testing.assert_allclose(v.numpy(), old * 0.5 - g, atol=1e-6)
    np.testing.assert_array_equal(unused.numpy(), before[2])


def _schedule_free_twin(start, grads, *, lr, beta):
    """x, y of algorithm 1 in float64; None is a step without a gradient."""
    y = z = x = start.astype("float64")
    total = 1e-6 * lr**2
    for g in grads:
        z = z if g is None else z - lr * g
        share = lr**2 / (total + lr**2)
        total += lr**2
        x = (1 - share) * x + share * z
        y = (1 - beta) * z + beta * x
    return x, y


def test_schedule_free_moves_the_average_of_every_weight():
    shapes = [(3,), (2, 2), (4,), (5,)]
    weights = _variables(*shapes)
    free = o.ScheduleFree(o.SGD(0.1), beta=0.8)
    free.build(weights)
    seen = [[] for _ in weights]
    start = _values(weights)
    for i in range(9):
        part = [[0, 1], [1, 2, 3], [0, 1, 2, 3]][i % 3]
        grads = _grads(weights, seed=i)
        free.apply([grads[k] for k in part], [weights[k] for k in part])
        for k, history in enumerate(seen):
            history.append(grads[k].numpy() if k in part else None)
    found = zip(start, seen, weights, free.averages(), strict=True)
    for w, grads, y, x in found:
        wanted = _schedule_free_twin(w, grads, lr=0.1, beta=0.8)
        np.testing.assert_allclose(x.numpy(), wanted[0], atol=1e-5)
        np.testing.assert_allclose(y.numpy(), wanted[1], atol=1e-5)


def test_wrappers_leave_frozen_weights_alone():
    for wrapped in (o.ScheduleFree(o.SGD(0.1)), o.Lookahead(o.SGD(0.1), period=2)):
        a, b = _variables((3,), (4,))
        for i in range(3):
            wrapped.apply(_grads([a, b], seed=i), [a, b])
        b.trainable = False
        held = b.numpy()
        for i in range(4):
            wrapped.apply(_grads([a], seed=i), [a])
        wrapped.finalize_variable_values([a])
        np.testing.assert_array_equal(held, b.numpy())


def test_prodigy_counts_the_weights_that_rest():
    a, b = _variables((3,), (4,))
    prodigy = o.Prodigy(initial_distance=0.1)
    prodigy.build([a, b])
    start = b.numpy()
    for i in range(4):
        prodigy.apply(_grads([a], seed=i), [a])
    held = [v for v in prodigy.variables if v.path.endswith("_start")]
    np.testing.assert_array_equal(held[1].numpy(), start)


# -- steps that are skipped ------------------------------------------------------------


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
@pytest.mark.parametrize("name", MADE)
def test_a_skipped_step_moves_nothing(name, wrong):
    options = {"skip_nonfinite": True}
    if name not in ("ScheduleFree", "GradientDescent"):
        options |= {"use_ema": True, "ema_momentum": 0.5}
    with_gaps, without = _with(name, **options), _with(name, **options)
    shapes = [(3, 4), (4,), (2,), (5,), (6,)]
    weights, others = _variables(*shapes), _variables(*shapes)
    for optimizer, variables in ((with_gaps, weights), (without, others)):
        optimizer.build(variables)
    for i in range(5):
        grads = _grads(weights, seed=i)
        held = _values([*weights, *with_gaps.variables])
        with_gaps.apply([*grads[:-1], grads[-1] * wrong], weights)
        for a, b in zip(held, _values([*weights, *with_gaps.variables]), strict=True):
            if i or name != "Lookahead":  # whose slow weights start at the weights
                np.testing.assert_array_equal(a, b)
        with_gaps.apply(grads, weights)
        without.apply(grads, others)
    for a, b in zip(
        _values([*weights, *with_gaps.variables]),
        _values([*others, *without.variables]),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_a_skipped_step_moves_no_schedule_and_no_window():
    halving = keras.optimizers.schedules.ExponentialDecay(1.0, 1, 0.5)
    options = {"gradient_accumulation_steps": 2, "skip_nonfinite": True}
    sgd = o.SGD(halving, **options)
    v = keras.Variable([0.0])
    for g in (np.nan, 1.0, np.inf, 3.0, np.nan, np.nan):
        sgd.apply([tf.constant([g])], [v])
    assert int(sgd.variables[0].numpy()) == 2
    assert int(keras.ops.convert_to_numpy(sgd.iterations)) == 1
    np.testing.assert_allclose(v.numpy(), [-2.0 * 0.5])
    scale = keras.Variable([2.0])
    scale.overwrite_with_gradient = True
    for steps in (None, 2):
        sgd = o.SGD(0.1, skip_nonfinite=True, gradient_accumulation_steps=steps)
        for g in (7.0, np.nan):
            sgd.apply([tf.constant([g]), tf.constant([g])], [scale, v])
        assert scale.numpy().tolist() == [7.0]


# -- repeated rows ---------------------------------------------------------------------


def _rows(seed):
    rng = np.random.default_rng(seed)
    values = tf.constant(rng.normal(size=(6, 3)).astype("float32"))
    return tf.IndexedSlices(values, tf.constant([1, 4, 1, 1, 6, 4]), (8, 3))


@pytest.mark.parametrize("slab", [False, True], ids=["alone", "slab"])
@pytest.mark.parametrize("name", [*MADE, "SGD_plain", "RMSprop_plain", "Adam_amsgrad"])
def test_repeated_rows_are_summed_first(name, slab):
    more = {
        "SGD_plain": lambda: o.SGD(0.1),
        "RMSprop_plain": lambda: o.RMSprop(0.1),
        "Adam_amsgrad": lambda: o.Adam(0.1, amsgrad=True),
    }
    make = {**MADE, **more}[name]
    shapes = [(8, 3), *([(2,), (3,), (4,)] if slab else [])]

    def run(change):
        weights, optimizer = _variables(*shapes), make()
        optimizer.build(weights)
        for i in range(4):
            others = _grads(weights[1:], seed=i)
            weighted = weights
            if slab and i % 2 and name != "LBFGS":  # a part of the slab only
                weighted, others = weights[:-1], others[:-1]
            optimizer.apply([change(_rows(i)), *others], weighted)
        return weights[0].numpy()

    dense = run(tf.convert_to_tensor)
    np.testing.assert_allclose(run(lambda g: g), dense, atol=1e-6)


@pytest.mark.parametrize("jit", [False, True], ids=["graph", "xla"])
def test_repeated_rows_are_summed_in_a_graph(jit):
    def run(make, change):
        weights, optimizer = _variables((8, 3)), make()
        optimizer.build(weights)

        @tf.function(jit_compile=jit)
        def step(values):
            rows = tf.constant([1, 4, 1, 1, 6, 4])
            optimizer.apply([change(tf.IndexedSlices(values, rows, (8, 3)))], weights)

        for i in range(3):
            step(_rows(i).values)
        return weights[0].numpy()

    for make in (lambda: o.Adam(0.1), lambda: o.SGD(0.1, loss_scale_factor=4.0)):
        sparse, dense = run(make, lambda g: g), run(make, tf.convert_to_tensor)
        np.testing.assert_allclose(sparse, dense, atol=1e-6)
