"""Data sets for a plan: batches, cardinality, options."""

import pytest
import tensorflow as tf

from keras_dlopt.distribute import Facts, choose, prepare
from keras_dlopt.errors import ConfigError, DataError

TWO = Facts(gpus=("GPU:0", "GPU:1"))


def sizes(dataset):
    return [len(batch) for batch in dataset]


def test_examples_are_batched():
    plan = choose(TWO, batch_size=4)
    data = prepare(tf.data.Dataset.range(10), plan)
    assert sizes(data) == [4, 4, 2]
    assert int(data.cardinality()) == 3
    static = choose(TWO, batch_size=4, drop_remainder=True)
    data = prepare(tf.data.Dataset.range(11), static)
    assert sizes(data) == [4, 4]
    assert data.element_spec.shape == (4,)


def test_batches_are_kept():
    plan = choose(TWO, batch_size=4)
    assert sizes(prepare(tf.data.Dataset.range(8).batch(4), plan, batched=True)) == [
        4,
        4,
    ]


def test_shuffling_repeats_by_seed_and_not_by_epoch():
    plan = choose(TWO, batch_size=4)

    def order(seed):
        data = prepare(tf.data.Dataset.range(8), plan, shuffle=8, seed=seed)
        return [[int(x) for batch in data for x in batch] for _ in range(2)]

    assert order(1) == order(1)
    assert order(1)[0] != order(1)[1]
    assert sorted(order(1)[0]) == list(range(8))


def test_a_number_of_batches_can_be_given():
    unknown = tf.data.Dataset.range(8).filter(lambda x: x >= 0)
    data = prepare(unknown, choose(TWO, batch_size=4), batches=2)
    assert int(data.cardinality()) == 2


@pytest.mark.parametrize(
    ("policy", "name"), [("data", "DATA"), ("file", "FILE"), ("off", "OFF")]
)
def test_sharding_and_autotuning_are_set(policy, name):
    plan = choose(TWO, batch_size=4, input_sharding=policy)
    options = prepare(tf.data.Dataset.range(8), plan).options()
    assert options.experimental_distribute.auto_shard_policy.name == name
    assert options.autotune.enabled is False
    assert options.deterministic is True


@pytest.mark.parametrize(
    ("data", "options", "kind", "text"),
    [
        (lambda r: r(9), {}, DataError, "leave 1 for the last batch, fewer than the 2"),
        (
            lambda r: r(8).filter(lambda x: x > 0),
            {},
            DataError,
            "cannot tell how many batches it has.*Pass batches=",
        ),
        (
            lambda r: r(8).batch(3),
            {"batched": True},
            DataError,
            r"gives batches of \[3\] examples, the plan wants 4 \(2 on each of 2",
        ),
    ],
)
def test_what_would_train_wrongly_is_refused(data, options, kind, text):
    plan = choose(TWO, batch_size=4)
    with pytest.raises(kind, match=text):
        prepare(data(tf.data.Dataset.range), plan, **options)


def test_batches_are_checked_before_they_are_shuffled():
    batches = tf.data.Dataset.range(10).batch(4)
    for seed in range(6):
        prepare(batches, choose(TWO, batch_size=4), batched=True, shuffle=3, seed=seed)


def rows(count, **shape):
    spec = tf.TensorSpec(dtype="int64", **shape)
    return tf.data.Dataset.from_generator(lambda: range(count), output_signature=spec)


@pytest.mark.parametrize(
    ("data", "options", "text"),
    [
        ([1, 2], {}, "A tf.data.Dataset is needed. Received: list. Make one of arrays"),
        (tf.data.Dataset.range(0), {}, "The data set is empty"),
        (tf.data.Dataset.range(8), {"batched": True}, r"gives batches of \[0\] ex"),
        (rows(8, shape=None), {"batched": True}, r"gives batches of \[0\] examples"),
        (rows(0, shape=None), {"batched": True}, r"gives batches of \[\] examples"),
    ],
)
def test_what_is_no_data_is_refused(data, options, text):
    with pytest.raises(DataError, match=text):
        prepare(data, choose(TWO, batch_size=4), **options)


def test_options_are_checked():
    static = choose(TWO, batch_size=4, drop_remainder=True)
    with pytest.raises(
        DataError, match=r"Make them with batch\(4, drop_remainder=True"
    ):
        prepare(tf.data.Dataset.range(10).batch(4), static, batched=True)
    data = tf.data.Dataset.range(10).batch(4, drop_remainder=True)
    assert sizes(prepare(data, static, batched=True)) == [4, 4]
    with pytest.raises(ConfigError, match="0 or greater. Received: -1"):
        prepare(tf.data.Dataset.range(8), static, shuffle=-1)


def test_a_plan_needs_a_batch():
    with pytest.raises(ConfigError, match="The plan has no batch size"):
        prepare(tf.data.Dataset.range(8), choose(TWO))
    static = choose(TWO, batch_size=16, drop_remainder=True)
    with pytest.raises(DataError, match="8 examples do not fill one batch of 16"):
        prepare(tf.data.Dataset.range(8), static)
