"""Devices of different speed: shares of a batch in proportion to what each can do."""

import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from keras_dlopt.distribute.pipeline import check_dataset
from keras_dlopt.errors import ConfigError, DataError
from keras_dlopt.measure.latency import median_time


def uneven_shares(batch_size: int, speeds: Sequence[float]) -> list[int]:
    """Whole numbers of examples, in proportion to speed, that add up to the batch.

    Every device gets at least one example. What rounding leaves over goes to the
    largest remainders (Hamilton's method), the earlier device at a tie.

    Args:
        batch_size: examples over all devices.
        speeds: of the devices, in any one unit, such as examples a second.

    Raises:
        ConfigError: for a speed that is not positive, or fewer examples than devices.

    Example:
        >>> uneven_shares(64, [3.0, 1.0])
        [48, 16]
    """
    try:
        rates = np.asarray(speeds, "float64")
    except (TypeError, ValueError):
        rates = np.zeros(0)
    if rates.ndim != 1 or not len(rates) or not np.all(np.isfinite(rates)):
        raise ConfigError(f"speeds must be finite numbers. Received: {speeds!r}.")
    if np.any(rates <= 0) or batch_size < len(rates):
        raise ConfigError(
            "Every device must be faster than 0 and get one example at least. "
            f"Received: batch_size={batch_size}, speeds={list(speeds)}. Leave out "
            "devices that do not work, or use a larger batch."
        )
    free = batch_size - len(rates)
    wanted = free * rates / rates.sum()
    shares = np.floor(wanted).astype(int)
    order = np.argsort(-(wanted - shares), kind="stable")
    shares[order[: free - shares.sum()]] += 1
    return [int(share) + 1 for share in shares]


def measure_speeds(
    step: Callable[[], Any],
    devices: Sequence[str],
    *,
    calls: int = 5,
    clock: Callable[[], float] = time.perf_counter,
) -> list[float]:
    """Calls of `step` a second on each device: 1 / median of `calls` timed ones.

    Args:
        step: a training or forward step on a fixed batch; what it returns is waited
            for. It is called once before the timing.
        devices: such as `["GPU:0", "GPU:1"]`.
        calls: that are timed.
        clock: in seconds, for tests.
    """
    import tensorflow as tf

    def finished():
        tf.nest.map_structure(np.asarray, step())

    speeds = []
    for device in devices:
        with tf.device(device):
            speeds.append(1.0 / median_time(finished, calls=calls, clock=clock))
    return speeds


def uneven_batches(dataset: Any, strategy: Any, shares: Sequence[int]) -> Any:
    """A distributed data set that gives each replica its own number of examples.

    Train on it with a `data_parallel` model: it counts replicas by examples, so that
    the step is the one of the whole batch on one device. Examples that fill no whole
    batch are left out.

    Args:
        dataset: `tf.data.Dataset` of single examples.
        strategy: of this process.
        shares: examples per replica, from `uneven_shares`.

    Raises:
        ConfigError: if there is not one share per replica.
        DataError: for examples that do not fill one batch.
    """
    import tensorflow as tf

    check_dataset(dataset)
    sizes = [int(share) for share in shares]
    replicas = strategy.num_replicas_in_sync
    if len(sizes) != replicas or min(sizes) < 1:
        raise ConfigError(
            f"One share of 1 or more per replica is needed, for {replicas} replicas. "
            f"Received: {list(shares)}."
        )
    edges = np.cumsum([0, *sizes])

    def split(*batch):
        batch = batch[0] if len(batch) == 1 else batch
        parts = [
            tf.nest.map_structure(lambda t, a=a, b=b: t[a:b], batch)
            for a, b in itertools.pairwise(edges)
        ]
        together = tf.data.Dataset.from_tensors(parts[0])
        for part in parts[1:]:  # the common shape leaves the first dimension open
            together = together.concatenate(tf.data.Dataset.from_tensors(part))
        return together

    whole = dataset.batch(int(edges[-1]), drop_remainder=True)
    steps = int(whole.cardinality())
    if steps == 0:
        raise DataError(
            f"{int(dataset.cardinality())} examples do not fill one batch of "
            f"{int(edges[-1])}, the sum of the shares {sizes}."
        )

    def of_worker(context):
        # Replicas take the elements of their worker's data set in turn.
        made = whole.flat_map(split)
        if steps >= 0:
            count = tf.data.experimental.assert_cardinality(steps * len(sizes))
            made = made.apply(count)
        options = tf.data.Options()
        options.autotune.enabled = False
        return made.with_options(options)

    return strategy.distribute_datasets_from_function(of_worker)
