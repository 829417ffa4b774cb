"""The seam to what runs a step: reading, assigning, branching, adding up."""

import threading

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from keras_dlopt import runtime
from keras_dlopt.errors import ModelError
from keras_dlopt.runtime.pure import is_pure


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=12), st.integers(0, 99))
def test_each_row_stands_once_with_the_sum_of_its_occurrences(rows, seed):
    values = np.random.default_rng(seed).normal(size=(len(rows), 3)).astype("float32")
    once = runtime.sum_repeats(tf.IndexedSlices(values, rows, (5, 3)))
    expected = np.zeros((5, 3))
    np.add.at(expected, rows, values.astype("float64"))
    assert sorted(once.indices.numpy()) == sorted(set(rows))
    for row, value in zip(once.indices.numpy(), once.values.numpy(), strict=True):
        np.testing.assert_allclose(value, expected[row], atol=1e-5)
    np.testing.assert_allclose(runtime.densify(once), expected, atol=1e-5)


def test_under_xla_rows_that_repeat_become_a_tensor_of_sums():
    values = tf.constant([[1.0], [2.0], [4.0]])

    @tf.function(jit_compile=True)
    def dense():
        return runtime.sum_repeats(tf.IndexedSlices(values, [2, 0, 2], (3, 1)))

    np.testing.assert_array_equal(dense(), [[2.0], [0.0], [5.0]])


@pytest.mark.parametrize("mode", ["in place", "pure"])
@pytest.mark.parametrize("condition", [True, False])
def test_one_of_two_branches_leaves_its_assignments(mode, condition):
    a, b = keras.Variable([1.0, 2.0]), keras.Variable(5.0)

    def yes():  # reads what it also writes
        runtime.assign(a, runtime.read(a) * 2)
        runtime.assign(b, runtime.read(b) + runtime.read(a)[0])

    def no():
        runtime.assign(a, -runtime.read(a))

    def step():
        runtime.choose(ops.convert_to_tensor(condition), yes, no, [a, b])

    if mode == "pure":
        held = [(v, runtime.value(v)) for v in (a, b)]
        new = runtime.pure_call(step, held)
        np.testing.assert_array_equal(a, [1.0, 2.0])
        assert float(b) == 5.0
    else:
        step()
        new = [runtime.value(v) for v in (a, b)]
    np.testing.assert_array_equal(new[0], [2.0, 4.0] if condition else [-1.0, -2.0])
    assert float(new[1]) == (7.0 if condition else 5.0)


def test_a_pure_step_may_write_nothing_else():
    held, other = keras.Variable(1.0), keras.Variable(2.0, name="other")
    with pytest.raises(ModelError, match="'other', which is none of its variables"):
        runtime.pure_call(
            lambda: runtime.assign(other, 3.0), [(held, runtime.value(held))]
        )
    assert float(other) == 2.0
    assert not is_pure()


def test_only_the_thread_inside_is_pure():
    seen = []
    with runtime.pure():
        thread = threading.Thread(target=lambda: seen.append(runtime.kernels()))
        thread.start()
        thread.join()
        with runtime.pure():
            pass
        assert not runtime.kernels()
    assert seen == [True]
    assert runtime.kernels()


@pytest.mark.parametrize(
    ("stored", "computed"),
    [
        ("float64", "float64"),
        ("float32", "float32"),
        ("bfloat16", "float32"),
        ("float16", "float32"),
        ("int32", "int32"),
    ],
)
def test_rules_compute_in_float32_at_least_and_store_as_before(stored, computed):
    variable = keras.Variable([1, 2], dtype=stored)
    value = runtime.read(variable)
    assert keras.backend.standardize_dtype(value.dtype) == computed
    assert runtime.compute_dtype(variable) == computed
    runtime.assign(variable, value * 2)
    assert variable.dtype == stored
    np.testing.assert_array_equal(runtime.to_numpy(variable).astype("float64"), [2, 4])


def test_a_value_that_was_read_outlives_the_next_assignment():
    variable = keras.Variable([1.0])

    @tf.function
    def step():
        before = runtime.value(variable)
        runtime.assign(variable, [3.0])
        return before, runtime.value(variable)

    before, after = step()
    assert (float(before[0]), float(after[0])) == (1.0, 3.0)


def test_without_a_strategy_there_is_one_replica():
    assert not runtime.has_strategy()
    assert not runtime.on_several()
    assert runtime.replica_count() == 1
    assert runtime.total([tf.constant(2.0)])[0] == 2.0
    with tf.distribute.get_strategy().scope():
        assert runtime.replica_count() == 1


def test_two_occurrences_of_a_row_by_hand():
    given = tf.IndexedSlices([[1.0, -1.0], [2.0, -2.0]], [1, 1], (3, 2))
    once = runtime.sum_repeats(given)
    np.testing.assert_array_equal(once.indices, [1])
    np.testing.assert_array_equal(once.values, [[3.0, -3.0]])


def test_the_branch_that_is_not_taken_leaves_no_trace():
    count = keras.Variable(0.0)

    def add(n):
        runtime.assign(count, runtime.read(count) + n)

    def step():
        yes = ops.convert_to_tensor(True)
        runtime.choose(yes, lambda: add(1.0), lambda: add(10.0), [count])

    (new,) = runtime.pure_call(step, [(count, runtime.value(count))])
    assert float(new) == 1.0


def test_a_thread_that_is_pure_leaves_the_others_alone():
    inside, seen = threading.Event(), threading.Event()

    def work():
        with runtime.pure():
            inside.set()
            seen.wait(60)

    thread = threading.Thread(target=work)
    thread.start()
    assert inside.wait(60)
    try:
        assert runtime.kernels()
    finally:
        seen.set()
        thread.join()
