"""The train and test functions of a model that several replicas run."""

import math
import threading
from collections.abc import Callable
from typing import Any

import keras

from keras_dlopt import _compat
from keras_dlopt.distribute.shares import Shares
from keras_dlopt.errors import DataError


class Runner:
    """Calls a step on every replica, several times per call of the graph.

    Unlike Keras' own function it knows how many batches are left, so that
    `steps_per_execution` need not divide the epoch and no step runs on data that is
    not there.

    Args:
        model: built and compiled under `strategy`.
        step: of one replica, data -> logs.
        lengths: of an epoch.
        kind: `"train"` or `"test"`.
        shares: told what each replica holds.
    """

    def __init__(
        self,
        model: keras.Model,
        step: Callable[[Any], Any],
        *,
        lengths: "EpochLength",
        kind: str,
        shares: Shares,
    ):
        self._lengths = lengths
        self._kind = kind
        self._number = -1
        self._model = model
        self._step = step
        self._shares = shares
        self._sources: dict[str, Any] = {}
        self._iterator: Any = None
        self._left: float | None = None
        self._done = 0
        self._make()

    def __call__(self, iterator: Any) -> Any:
        """Runs up to `steps_per_execution` steps; returns the last one's logs."""
        import tensorflow as tf

        if not isinstance(iterator, tf.distribute.DistributedIterator):
            return self._apart(next(iter(iterator)))  # train_on_batch
        if self._number != self._lengths.number[self._kind]:
            self._number, self._done = self._lengths.number[self._kind], 0
        if iterator is not self._iterator:
            self.let_go()
            self._iterator, self._left = iterator, self._count(iterator)
        steps = self._model.steps_per_execution
        epoch = self._lengths.steps[self._kind]
        if epoch is not None:
            steps = min(steps, epoch - self._done)
            self._done = (self._done + steps) % epoch
        if self._left is None:
            # Batches are drawn outside the graph: inside, what does not depend on the
            # data (counters, weight decay) would run although there is none.
            # What ran before the data ended counts: its logs are those of the call.
            logs = self._run(next(iterator))
            for _ in range(steps - 1):
                try:
                    batch = next(iterator)
                except StopIteration:
                    break
                logs = self._run(batch)
            return logs
        steps = int(min(steps, self._left))
        if steps < 1:
            raise StopIteration
        self._left -= steps
        if steps == 1:
            return self._once(iterator)
        return self._many(iterator, tf.constant(steps))

    def let_go(self) -> None:
        """Ends the iterator of the last epoch, in a thread.

        TensorFlow gives each device an iterator whose autotuning nobody can switch off
        and which, to end, may wait for that: as long again as the epoch took.
        """
        if self._iterator is None:
            return
        held = [self._iterator]
        self._iterator = None
        threading.Thread(target=held.clear).start()

    def _count(self, iterator: Any) -> float | None:
        """How many steps an iterator gives; None if it cannot tell."""
        strategy = self._model.distribute_strategy
        count = _compat.batch_count(iterator)
        if count is None or math.isinf(count) or not _multi_worker(strategy):
            return count
        if _compat.input_sharding(iterator) in ("off", "data"):
            # Equal counts need no exchange in every step about who has data left.
            _check_counts(strategy, count)
            _compat.do_not_ask_for_more(iterator)
        return count

    def _make(self) -> None:
        import tensorflow as tf

        step = tf.autograph.experimental.do_not_convert(self._on_replicas)
        reduce = self._reduce
        eager = self._model.run_eagerly
        _compat.see_losses(self._model, self._shares.change)
        _compat.weigh_means_of_outputs(self._model, lambda: self._shares.weight)
        self._shares.results.watch(self._model)

        # Each replica's share has a shape of its own here, and all must agree on what
        # they exchange.
        @tf.autograph.experimental.do_not_convert
        def run(data):
            return reduce(step(data, same=False, batches=not eager))

        @tf.autograph.experimental.do_not_convert
        def apart(data):
            return reduce(step(data, same=False, batches=False))

        self._run: Any = run
        self._apart: Any = apart
        if eager:
            self._once = lambda iterator: run(next(iterator))

            def many(iterator, steps):
                for _ in range(int(steps)):
                    logs = run(next(iterator))
                return logs

            self._many = many
            return

        @tf.autograph.experimental.do_not_convert
        def once(iterator):
            return reduce(step(iterator.get_next()))

        @tf.autograph.experimental.do_not_convert
        def loop(iterator, steps):
            # The first steps are there to learn what the logs look like.
            logs = step(iterator.get_next())

            def body(i, _):
                return i + 1, step(iterator.get_next())

            return reduce(tf.while_loop(lambda i, _: i < steps, body, [1, logs])[1])

        self._run = tf.function(run, reduce_retracing=True)
        self._apart = tf.function(apart, reduce_retracing=True)
        self._once = tf.function(once, reduce_retracing=True)
        self._many = tf.function(loop, reduce_retracing=True)

    def _on_replicas(self, data: Any, same: bool = True, batches: bool = True) -> Any:
        strategy = self._model.distribute_strategy
        return strategy.run(self._on_replica, args=(data, same, batches))

    def _reduce(self, logs: Any) -> Any:
        """What one device would log; workers meet here, so once a call.

        A replica's result of a metric is that of its own share, so the metric is asked
        again, for all. Means of the replicas' values stand for what no metric gives.
        """
        strategy = self._model.distribute_strategy

        def mean(log):
            return keras.tree.map_structure(lambda v: _mean(strategy, v), log)

        if not self._sources:
            return mean(logs)
        reduced = {}
        for name, log in logs.items():
            result, key = self._sources.get(name, (None, None))
            asked = mean(log) if result is None else result()
            reduced[name] = asked if key is None else asked[key]
        return reduced

    def _on_replica(self, data: Any, same: bool, batches: bool) -> Any:
        import tensorflow as tf

        data = keras.tree.map_structure(
            lambda part: None if isinstance(part, tf.experimental.Optional) else part,
            data,
        )
        self._shares.results.start()
        with self._shares.of(data, same=same, batches=batches):
            logs = self._step(data)
        self._sources = self._shares.results.sources(logs)
        return logs


def _mean(strategy: Any, value: Any) -> Any:
    """One value of the replicas' values."""
    import tensorflow as tf

    if _multi_worker(strategy):
        return strategy.reduce("MEAN", value, axis=None)
    return tf.reduce_mean(strategy.experimental_local_results(value), axis=0)


def _multi_worker(strategy: Any) -> bool:
    import tensorflow as tf

    kind = tf.distribute.MultiWorkerMirroredStrategy
    return isinstance(strategy, kind) and strategy.cluster_resolver.cluster_spec()


def _check_counts(strategy: Any, count: float) -> None:
    """Raises on every worker if another one has more or fewer batches."""
    import tensorflow as tf

    @tf.function
    def mean_and_square():
        context = tf.distribute.get_replica_context()
        own = tf.constant([count, count**2], tf.float64)
        return context.all_reduce(tf.distribute.ReduceOp.MEAN, own)

    means = strategy.experimental_local_results(strategy.run(mean_and_square))
    mean, square = (float(v) for v in means[0])
    if abs(square - mean**2) > 1e-9 * square:
        raise DataError(
            f"The workers have different numbers of batches: {count:g} here, "
            f"{mean:g} on average. They would wait for each other. Give every worker "
            "as many, with dataset.take(...)."
        )


def compiled_step(model: keras.Model) -> Callable[[Any], Any]:
    """Keras' train step with the forward and backward pass compiled by XLA.

    XLA cannot compile the whole step under a strategy: the replicas meet in it, and the
    optimizer's variables live on several devices.
    """
    import tensorflow as tf

    def step(data):
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)

        @tf.function(jit_compile=True)
        @tf.autograph.experimental.do_not_convert
        def forward_backward(x, y, sample_weight):
            with tf.GradientTape() as tape:
                y_pred = model(x, training=True)
                loss = model.compute_loss(
                    x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=True
                )
                scaled = model.optimizer.scale_loss(loss)
            return loss, y_pred, tape.gradient(scaled, model.trainable_weights)

        loss, y_pred, grads = forward_backward(x, y, sample_weight)
        context = tf.distribute.get_replica_context()
        first = next(leaf for leaf in keras.tree.flatten(x) if leaf is not None)
        loss_metric(model).update_state(
            loss * context.num_replicas_in_sync, sample_weight=tf.shape(first)[0]
        )
        model.optimizer.apply(grads, model.trainable_weights)
        return model.compute_metrics(x, y, y_pred, sample_weight=sample_weight)

    return step


def loss_metric(model: keras.Model) -> Any:
    """Keras' own mean of the loss over the epoch."""
    return next(m for m in model.metrics if m.name == "loss")


class EpochLength:
    """Tells runners how long an epoch is and when a `fit` or `evaluate` begins.

    A callback may put another runner in a model's place, so runners ask.
    """

    def __init__(self):
        self.steps: dict[str, int | None] = {"train": None, "test": None}
        self.number = {"train": 0, "test": 0}

    def start(self, kind: str, steps: int | None) -> None:
        """Called before a loop of `"train"` or `"test"`; steps an epoch or None."""
        self.steps[kind] = steps
        self.number[kind] += 1
