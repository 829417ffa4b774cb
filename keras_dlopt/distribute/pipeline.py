"""Data sets in the shape that a plan needs."""

from typing import Any

import keras

from keras_dlopt import checks
from keras_dlopt.distribute.plans import Plan
from keras_dlopt.errors import ConfigError, DataError


def prepare(
    dataset: Any,
    plan: Plan,
    *,
    batched: bool = False,
    shuffle: int = 0,
    seed: int = 0,
    batches: int | None = None,
) -> Any:
    """Batches a data set for a plan, and refuses what would train wrongly.

    Sets what the plan says about static shapes and input sharding, keeps the order
    deterministic, and turns tf.data's autotuning off, which can idle for seconds after
    an epoch.

    Args:
        dataset: `tf.data.Dataset` of examples, or of batches.
        plan: with a `batch_size`.
        batched: whether `dataset` gives batches of `plan.batch_size` already.
        shuffle: examples to draw from at a time (batches, if `batched`); 0 keeps the
            order. Every epoch shuffles anew.
        seed: of the shuffling.
        batches: how many batches there are, for a data set that cannot tell.

    Returns:
        A data set for `fit`.

    Raises:
        ConfigError: if the plan has no batch size.
        DataError: if the number of examples is unknown or none, or batches are not
            those of the plan.

    Example:
        >>> import tensorflow as tf
        >>> from keras_dlopt.distribute import Facts, choose
        >>> data = prepare(tf.data.Dataset.range(10), choose(Facts(), batch_size=4))
        >>> [len(batch) for batch in data]
        [4, 4, 2]
    """
    check_dataset(dataset)
    if plan.batch_size is None:
        raise ConfigError(
            "The plan has no batch size. Make it with batch_size=..., the number of "
            "examples in one step."
        )
    if batched:
        _check_batches(dataset, plan)
    else:
        _check_tail(dataset, plan)
    if checks.whole(shuffle, name="shuffle", least=0):
        dataset = dataset.shuffle(shuffle, seed=seed, reshuffle_each_iteration=True)
    if not batched:
        dataset = dataset.batch(plan.batch_size, drop_remainder=plan.drop_remainder)
    dataset = _counted(dataset, batches)
    return with_options(dataset, plan)


def with_options(dataset: Any, plan: Plan) -> Any:
    """The data set with the plan's options."""
    import tensorflow as tf

    policy = tf.data.experimental.AutoShardPolicy
    options = tf.data.Options()
    options.deterministic = True
    options.autotune.enabled = False
    options.experimental_distribute.auto_shard_policy = {
        "data": policy.DATA,
        "file": policy.FILE,
        "off": policy.OFF,
    }[plan.input_sharding]
    return dataset.prefetch(2).with_options(options)


def check_dataset(dataset: Any) -> None:
    """Raises for anything but a `tf.data.Dataset` that has elements."""
    import tensorflow as tf

    if not isinstance(dataset, tf.data.Dataset):
        raise DataError(
            f"A tf.data.Dataset is needed. Received: {type(dataset).__name__}. Make "
            "one of arrays with tf.data.Dataset.from_tensor_slices((x, y))."
        )
    if int(dataset.cardinality()) == 0:
        raise DataError("The data set is empty. Check what it is made of.")


def _check_batches(dataset: Any, plan: Plan) -> None:
    size = plan.batch_size
    given = _sizes(dataset.element_spec)
    if None in given:
        first = next(iter(dataset.take(1)), None)
        given = set() if first is None else _sizes(first)
        if given == {size} and plan.drop_remainder:
            raise DataError(
                "The plan drops the last, smaller batch, and these batches may end "
                f"with one. Make them with batch({size}, drop_remainder=True), or pass "
                "the examples unbatched."
            )
    if given != {size}:
        found = sorted(n or 0 for n in given)
        raise DataError(
            f"The data set gives batches of {found} examples, the plan wants "
            f"{size} ({plan.replica_batch_size} on each of {plan.replicas} replicas). "
            "Pass the examples unbatched, or make the plan with that batch_size."
        )


def _sizes(parts: Any) -> set[int | None]:
    """First axes of tensors or their specs: None where it is not known, 0 for none."""
    found: set[int | None] = set()
    for part in keras.tree.flatten(parts):
        shape = getattr(part, "shape", None)
        if shape is None or shape.rank is None:
            found.add(None)
        else:
            found.add(shape[0] if shape.rank else 0)
    return found


def _check_tail(dataset: Any, plan: Plan) -> None:
    count = int(dataset.cardinality())
    assert plan.batch_size is not None
    if count >= 0 and not plan.drop_remainder:
        tail = count % plan.batch_size
        if 0 < tail < plan.replicas:
            raise DataError(
                f"{count} examples in batches of {plan.batch_size} leave {tail} for "
                f"the last batch, fewer than the {plan.replicas} replicas. Make the "
                "plan with drop_remainder=True, or leave examples out."
            )
    if plan.drop_remainder and 0 <= count < plan.batch_size:
        raise DataError(
            f"{count} examples do not fill one batch of {plan.batch_size}, and the "
            "plan drops what does not. Choose a smaller batch_size."
        )


def _counted(dataset: Any, batches: int | None) -> Any:
    import tensorflow as tf

    if batches is not None:
        return dataset.apply(tf.data.experimental.assert_cardinality(batches))
    if int(dataset.cardinality()) == tf.data.UNKNOWN_CARDINALITY:
        raise DataError(
            "The data set cannot tell how many batches it has; Keras would make one "
            "step without data in every epoch, and replicas could wait for each other. "
            "Pass batches=..., the number of batches of the plan's size, or "
            "dataset.repeat() with fit(steps_per_epoch=...)."
        )
    return dataset
