"""Predicting on several replicas, and the batch size that is fastest."""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterable
from typing import Any

import keras
import numpy as np

from keras_dlopt.distribute.build import require_tensorflow
from keras_dlopt.errors import ConfigError, DataError, ModelError
from keras_dlopt.measure.latency import median_time


def predict(
    model: keras.Model,
    data: Any,
    strategy: Any = None,
    *,
    batch_size: int = 128,
) -> Any:
    """Predictions for all examples, in their order.

    Every call has one static shape: the last batch is filled up with its own first
    example and the surplus cut off, so that no example is lost, none comes twice, and
    nothing is compiled anew for the tail.

    Args:
        model: any Keras model; under a strategy, built in its scope.
        data: array, nested arrays, or a `tf.data.Dataset` of batches of inputs (of
            pairs, the first part is used).
        strategy: of TensorFlow; None for the model's own.
        batch_size: examples in one call over all replicas, for arrays; a multiple of
            the replicas.

    Returns:
        Array or nested arrays, as from `model.predict`.

    Raises:
        ConfigError: for a strategy of several processes, or a batch size that the
            replicas do not divide.
        ModelError: if the model is not of the strategy.
        DataError: if there is nothing to predict, no end of it, or arrays of different
            lengths.

    Example:
        >>> import keras
        >>> net = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
        >>> predict(net, np.ones((5, 3), "float32"), batch_size=4).shape
        (5, 2)
    """
    import tensorflow as tf

    strategy = _strategy(model, strategy)
    replicas = strategy.num_replicas_in_sync
    if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        raise ConfigError(
            "predict runs in one process. Received a strategy of several: "
            f"{strategy!r}. Give every process its part of the data and no strategy."
        )
    if replicas > 1 and model.distribute_strategy is not strategy:
        raise ModelError(
            f"The model {model.name!r} was not built in the scope of the strategy. "
            "Build or load it inside `with strategy.scope():`."
        )
    if not isinstance(batch_size, int) or batch_size < 1 or batch_size % replicas:
        raise ConfigError(
            f"batch_size must be a multiple of the {replicas} replicas. Received: "
            f"{batch_size!r}."
        )
    step = _step(model, strategy)
    outputs, size = [], 0
    for batch in _batches(data, batch_size):
        count = len(keras.tree.flatten(batch)[0])
        size = max(size, -(-count // replicas) * replicas)
        outputs.append(_cut(step(_filled(batch, size)), count))
    if not outputs:
        raise DataError("There is nothing to predict: the data holds no batch.")
    return keras.tree.map_structure(lambda *parts: np.concatenate(parts), *outputs)


def _strategy(model: keras.Model, strategy: Any) -> Any:
    """The strategy that was given, or the model's own."""
    require_tensorflow("Predicting on several devices")
    import tensorflow as tf

    if strategy is None:
        return model.distribute_strategy
    if not isinstance(strategy, tf.distribute.Strategy):
        raise ConfigError(
            f"strategy must be a tf.distribute.Strategy. Received: {strategy!r}. Make "
            "it with keras_dlopt.distribute.strategy(...), before the model."
        )
    return strategy


def _step(model: keras.Model, strategy: Any) -> Callable[[Any], Any]:
    """A function of a batch on the host."""
    import tensorflow as tf

    replicas = strategy.num_replicas_in_sync

    @tf.function(reduce_retracing=True)
    def call(shares):
        return strategy.run(lambda x: model(x, training=False), args=(shares,))

    def step(batch):
        def share(context):
            number = context.replica_id_in_sync_group
            return keras.tree.map_structure(
                lambda a: tf.convert_to_tensor(np.array_split(a, replicas)[number]),
                batch,
            )

        shares = strategy.experimental_distribute_values_from_function(share)
        local = strategy.experimental_local_results
        return keras.tree.map_structure(
            lambda v: np.concatenate([np.asarray(part) for part in local(v)]),
            call(shares),
        )

    return step


def _batches(data: Any, batch_size: int) -> Iterable[Any]:
    import tensorflow as tf

    if isinstance(data, tf.data.Dataset):
        if int(data.cardinality()) == tf.data.INFINITE_CARDINALITY:
            raise DataError(
                "The data set repeats without end, and so would predicting. Leave "
                "repeat() out, or use dataset.take(...)."
            )
        for batch in data:
            x = keras.tree.map_structure(
                np.asarray, batch[0] if isinstance(batch, tuple) else batch
            )
            _length(x, batch)
            yield x
        return
    arrays = keras.tree.map_structure(np.asarray, data)
    for start in range(0, _length(arrays, data), batch_size):
        yield keras.tree.map_structure(
            lambda a, start=start: a[start : start + batch_size], arrays
        )


def _length(arrays: Any, given: Any) -> int:
    """The number of examples, which all arrays must have."""
    shapes = [a.shape for a in keras.tree.flatten(arrays)]
    if not shapes or () in shapes:
        raise DataError(
            "data must be an array with one example per row, nested arrays, or a "
            f"tf.data.Dataset of batches. Received: {type(given).__name__}. Convert "
            "lists with numpy.asarray and generators with "
            "tf.data.Dataset.from_generator."
        )
    if len({shape[0] for shape in shapes}) > 1:
        raise DataError(
            "The inputs must have the same number of examples. Received the shapes "
            f"{shapes}."
        )
    return shapes[0][0]


def _filled(batch: Any, size: int) -> Any:
    def fill(array):
        lacking = size - len(array)
        return np.concatenate([array, np.repeat(array[:1], lacking, axis=0)])

    return keras.tree.map_structure(fill, batch)


def _cut(outputs: Any, count: int) -> Any:
    return keras.tree.map_structure(lambda a: a[:count], outputs)


@dataclasses.dataclass(frozen=True)
class BatchTime:
    """What one batch size took.

    Attributes:
        batch_size: over all replicas.
        seconds: median of a call; infinite if memory did not suffice.
        per_second: examples a second.
    """

    batch_size: int
    seconds: float
    per_second: float


def search_batch_size(
    model: keras.Model,
    example: Any,
    strategy: Any = None,
    *,
    start: int | None = None,
    limit: int = 4096,
    gain: float = 1.05,
    calls: int = 5,
    seconds: float = 60.0,
    clock: Callable[[], float] = time.perf_counter,
) -> list[BatchTime]:
    """Doubles the batch until that no longer pays, memory ends, or time is up.

    Args:
        model: to predict with.
        example: one input, or nested inputs, without the batch axis.
        strategy: as for `predict`.
        start: smallest batch; None for one example per replica.
        limit: largest batch.
        gain: by what factor examples a second must grow for the search to go on.
        calls: that are timed per size, after one that is not.
        seconds: after which no larger size is tried.
        clock: in seconds, for tests.

    Returns:
        What was tried, smallest batch first; `max(found, key=lambda t: t.per_second)`
        is the one to use.

    Raises:
        ConfigError: for a start that the replicas do not divide, a limit below it, or
            no calls.
    """
    import tensorflow as tf

    strategy = _strategy(model, strategy)
    replicas = strategy.num_replicas_in_sync
    size = start or replicas
    if size % replicas or calls < 1 or limit < size:
        raise ConfigError(
            f"start must be a multiple of the {replicas} replicas, limit not below it, "
            f"and calls 1 or more. Received: start={start}, limit={limit}, "
            f"calls={calls}."
        )
    step = _step(model, strategy)
    found: list[BatchTime] = []
    began = clock()
    while size <= limit and clock() - began < seconds:
        batch = keras.tree.map_structure(
            lambda a, size=size: np.repeat(np.asarray(a)[None], size, axis=0), example
        )
        try:
            taken = median_time(
                functools.partial(step, batch), calls=calls, clock=clock
            )
        except tf.errors.ResourceExhaustedError:
            return [*found, BatchTime(size, float("inf"), 0.0)]
        found.append(BatchTime(size, taken, size / taken))
        pays = len(found) == 1 or found[-1].per_second > gain * found[-2].per_second
        if not pays:
            break
        size *= 2
    return found
