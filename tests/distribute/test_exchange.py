"""Compressed gradients against NumPy twins, and shares for uneven devices."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from keras_dlopt.distribute.compression import (
    BFloat16,
    Compression,
    PowerSGD,
    TopK,
    Wire,
)
from keras_dlopt.distribute.uneven import measure_speeds, uneven_shares
from keras_dlopt.errors import ConfigError
from reference import distribute as twin

REPLICAS, SHAPE = 3, (4, 5, 6)


def gradients(seed=0, shape=SHAPE):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape).astype("float32") for _ in range(REPLICAS)]


def reduce_together(rule, grads, states):
    """Runs the rule of every replica, one exchange after the other.

    A replica's `add` needs what the others hand over at the same point. It is learnt
    from runs that stop there: the k-th exchange is known after k runs.
    """
    known = []

    class Stop(Exception):
        pass

    while True:
        handed, results = [], []
        for gradient, state in zip(grads, states, strict=True):
            calls = iter(known)

            def exchange(tensor, calls=calls, handed=handed):
                for answer in calls:
                    return answer
                handed.append(tensor)
                raise Stop

            wire = Wire(add=exchange, gather=exchange, replicas=REPLICAS)
            try:
                results.append(rule.reduce(tf.constant(gradient), state, wire))
            except Stop:
                continue
        if len(results) == REPLICAS:
            return results
        gathers = handed[0].shape.rank == 1 and isinstance(rule, TopK)
        known.append(tf.concat(handed, 0) if gathers else tf.add_n(handed))


def start(rule, shape=SHAPE):
    made = rule.initial(shape, 0)
    return [{k: tf.constant(v) for k, v in made.items()} for _ in range(REPLICAS)]


def test_top_k_is_its_twin_for_three_steps():
    rule = TopK(0.1)
    states, errors = start(rule), [0.0] * REPLICAS
    for step in range(3):
        grads = gradients(step)
        results = reduce_together(rule, grads, states)
        expected, errors = twin.top_k(grads, errors, rule.count(SHAPE))
        states = [state for _, state in results]
        for (total, state), error in zip(results, errors, strict=True):
            np.testing.assert_allclose(total, expected, atol=1e-6)
            np.testing.assert_allclose(state["error"], error, atol=1e-6)


def test_power_sgd_is_its_twin_for_three_steps():
    rule = PowerSGD(rank=2, seed=5)
    states, errors = start(rule), [0.0] * REPLICAS
    for step in range(3):
        grads = gradients(step)
        q = np.asarray(states[0]["q"], float)
        results = reduce_together(rule, grads, states)
        expected, errors = twin.power_sgd(grads, errors, q)
        states = [state for _, state in results]
        for (total, state), error in zip(results, errors, strict=True):
            np.testing.assert_allclose(total, expected, atol=2e-5)
            np.testing.assert_allclose(state["error"], error, atol=2e-5)


def test_power_sgd_sends_a_matrix_of_its_rank_exactly():
    rng = np.random.default_rng(0)
    common = rng.normal(size=(20, 2)) @ rng.normal(size=(2, 30))
    grads = [common.astype("float32")] * REPLICAS
    rule = PowerSGD(rank=2)
    results = reduce_together(rule, grads, start(rule, (20, 30)))
    np.testing.assert_allclose(results[0][0], REPLICAS * common, atol=1e-4)


def test_power_sgd_sends_vectors_whole():
    rule, grads = PowerSGD(), gradients(shape=(7,))
    assert rule.initial((7,), 0) == {}
    results = reduce_together(rule, grads, [{}] * REPLICAS)
    np.testing.assert_allclose(results[1][0], sum(grads), rtol=1e-6)


def test_bfloat16_rounds_and_keeps_what_rounding_lost():
    import ml_dtypes

    rule, grads = BFloat16(), gradients()
    results = reduce_together(rule, grads, start(rule))
    sent = [g.astype(ml_dtypes.bfloat16).astype("float32") for g in grads]
    # Three bfloat16 numbers are added up with two roundings of 2^-8 each.
    np.testing.assert_allclose(results[0][0], sum(sent), rtol=2**-6, atol=2**-6)
    for (_, state), g, s in zip(results, grads, sent, strict=True):
        np.testing.assert_array_equal(state["error"], g - s)


@pytest.mark.parametrize("rule", [TopK(0.05), PowerSGD(rank=1)])
def test_nothing_is_lost_in_the_long_run(rule):
    """What was sent plus what is left over is what there was: error feedback."""
    states = start(rule)
    sent, given_ = np.zeros(SHAPE), np.zeros(SHAPE)
    for step in range(10):
        grads = gradients(step)
        results = reduce_together(rule, grads, states)
        states = [state for _, state in results]
        sent += results[0][0].numpy()
        given_ += sum(grads)
    left = sum(s["error"].numpy() for s in states)
    np.testing.assert_allclose(sent + left, given_, atol=1e-4)


def test_bytes_on_the_wire():
    assert BFloat16().bytes_sent((10, 10)) == 200
    assert TopK(0.01).bytes_sent((100, 100)) == 800
    assert PowerSGD(2).bytes_sent((100, 50)) == 4 * 2 * 150
    assert PowerSGD(2).bytes_sent((100,)) == 400
    assert PowerSGD(50).bytes_sent((10, 10)) == 400


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: TopK(0.0), r"share must be in \(0, 1\]. Received: 0.0"),
        (lambda: TopK(1.5), r"share must be in \(0, 1\]. Received: 1.5"),
        (lambda: PowerSGD(0), "rank must be 1 or more. Received: 0"),
    ],
)
def test_options_are_checked(make, text):
    with pytest.raises(ConfigError, match=text):
        make()


def test_a_rule_must_be_written():
    with pytest.raises(TypeError, match="Compression must define `reduce`"):
        Compression().reduce(None, {}, None)
    with pytest.raises(TypeError, match="Compression must define `bytes_sent`"):
        Compression().bytes_sent((1,))


@given(
    st.lists(st.floats(0.1, 100.0), min_size=1, max_size=8),
    st.integers(8, 500),
)
def test_uneven_shares(speeds, batch):
    got = uneven_shares(batch, speeds)
    assert sum(got) == batch
    assert min(got) >= 1
    wanted = twin.shares(batch, speeds)
    # The twin rounds ties differently in the last place of a float.
    assert max(abs(a - b) for a, b in zip(got, wanted, strict=True)) <= 1


def test_uneven_shares_of_known_speeds():
    assert uneven_shares(64, [3.0, 1.0]) == [48, 16]
    assert uneven_shares(10, [1.0, 1.0, 1.0]) == [4, 3, 3]
    assert uneven_shares(3, [100.0, 1.0, 1.0]) == [1, 1, 1]


@pytest.mark.parametrize(
    ("batch", "speeds", "text"),
    [
        (8, [1.0, 0.0], "Every device must be faster than 0"),
        (1, [1.0, 1.0], "get one example at least"),
        (8, [1.0, float("nan")], "speeds must be finite numbers"),
        (8, [], "speeds must be finite numbers"),
    ],
)
def test_uneven_shares_are_checked(batch, speeds, text):
    with pytest.raises(ConfigError, match=text):
        uneven_shares(batch, speeds)


def test_speeds_are_calls_a_second():
    ticks = iter([0.0, 0.5, 1.0, 1.5, 2.0, 2.5])
    speeds = measure_speeds(
        lambda: tf.constant(1.0), ["CPU:0"], calls=3, clock=lambda: next(ticks)
    )
    assert speeds == [2.0]
