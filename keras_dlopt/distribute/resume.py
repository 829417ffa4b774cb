"""Training that goes on, bit for bit, after the process was killed."""

import contextlib
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_dlopt import _compat
from keras_dlopt.distribute.build import require_tensorflow
from keras_dlopt.distribute.checkpoints import Checkpoints, Position
from keras_dlopt.distribute.pipeline import check_dataset, with_options
from keras_dlopt.distribute.plans import Plan
from keras_dlopt.distribute.seeds import spread_seeds
from keras_dlopt.errors import ConfigError, DataError, FormatError, ModelError
from keras_dlopt.processes import TERMINATED

_OWN = ("x", "y", "batch_size", "steps_per_epoch", "initial_epoch")


def fit(
    model: keras.Model,
    examples: Any,
    plan: Plan,
    *,
    directory: str,
    epochs: int = 1,
    every: int = 100,
    shuffle: int = 0,
    seed: int = 0,
    keep: int = 2,
    damaged: str = "refuse",
    callbacks: Sequence[keras.callbacks.Callback] = (),
    **options: Any,
) -> keras.callbacks.History:
    """As `model.fit`, and resumes where an earlier process with `directory` stopped.

    Saves the weights, optimizer, random state, callbacks' state in the graph, and the
    epoch's metrics every so many steps, and on SIGTERM, after which the process ends
    with exit code 143. Started again, the same script goes on with the next batch and
    ends with the weights of an unbroken run, bit for bit, given deterministic ops
    (`keras.utils.set_random_seed` and, with several threads,
    `tf.config.experimental.enable_op_determinism`).

    What callbacks keep in Python (the patience of `EarlyStopping`) starts anew; their
    batch hooks are also called for the part of an epoch that is skipped. Within an
    epoch the data, batch size, `shuffle` and `seed` must be those of the broken run;
    from the next epoch on they may be others. A learning rate that is a number is part
    of what is restored.

    Args:
        model: compiled; under a strategy, built in its scope.
        examples: `tf.data.Dataset` of single examples, of known number.
        plan: its batch size and options are used, as by `prepare`.
        directory: where checkpoints are; all processes of a cluster must see it.
        epochs: in all.
        every: steps between two checkpoints.
        shuffle: examples to draw from at a time; 0 keeps the order. Epoch e is shuffled
            by (seed, e), so that a restart finds the same order.
        seed: of the shuffling.
        keep: how many checkpoints to keep.
        damaged: what becomes of a newest checkpoint whose files changed on the disk:
            `"refuse"` raises, `"older"` warns, puts it aside and goes on from the one
            before it, and so with the same batches to the same weights.
        callbacks: as for `fit`.
        **options: of `fit`: `validation_data`, `verbose`, `class_weight`.

    Returns:
        The history of the epochs that this process trained.

    Raises:
        ConfigError: for a plan without batch size, `steps_per_execution` that does
            not divide the epoch or `every`, or another order of batches than that of
            the epoch to go on with.
        DataError: for examples of unknown number, or fewer than a batch.
        DiskError: if a checkpoint cannot be written; the earlier ones are whole.
        FormatError: for a checkpoint that is damaged or of another model.
        SystemExit: on SIGTERM, after saving.
    """
    require_tensorflow("distribute.fit")
    _check(options, examples)
    steps = _steps(model, examples, plan, every)
    store = Checkpoints(directory, keep=keep, write=plan.worker == 0)
    position = store.newest(damaged=damaged)
    order = {
        "examples": int(examples.cardinality()),
        "batch_size": plan.batch_size,
        "drop_remainder": plan.drop_remainder,
        "shuffle": shuffle,
        "seed": seed,
    }
    _check_order(position, order, steps)
    data = _stream(examples, plan, epochs, shuffle, seed, position)
    keeper = _Keeper(model, store, position, steps, every, order, data.element_spec)
    with keeper.listening():
        history = model.fit(
            data,
            epochs=epochs,
            initial_epoch=position.epoch,
            steps_per_epoch=steps,
            shuffle=False,  # the stream is shuffled already
            callbacks=[_First(keeper), *callbacks, _Last(keeper)],
            **options,
        )
    if keeper.terminated:  # after the last checkpoint
        raise SystemExit(TERMINATED)
    return history


def _check(options: Mapping[str, Any], examples: Any) -> None:
    check_dataset(examples)
    taken = sorted(set(options) & set(_OWN))
    if taken:
        raise ConfigError(
            f"distribute.fit sets {', '.join(_OWN)} itself, from the examples, the "
            f"plan and the checkpoint. Received: {', '.join(taken)}. The batch size "
            "is the plan's."
        )


def _check_order(position: Position, order: Mapping[str, Any], steps: int) -> None:
    """Refuses to go on in the middle of an epoch whose batches were others."""
    if not position.batch:
        return
    stored = position.data or order
    changed = [
        f"{name}={stored.get(name)!r}, now {value!r}"
        for name, value in order.items()
        if stored.get(name) != value
    ]
    if changed:
        raise ConfigError(
            f"The run in {position.folder} was broken off after batch "
            f"{position.batch} of epoch {position.epoch + 1} with "
            f"{'; '.join(changed)}. Its next batch would be another one. Train with "
            "what it had to the end of the epoch, or in a new directory."
        )
    if position.batch >= steps:
        raise FormatError(
            f"The checkpoint {position.folder} is of batch {position.batch}, and an "
            f"epoch has {steps}. Train in a new directory, or delete that folder to "
            "go on from the one before it."
        )


def _steps(model: keras.Model, examples: Any, plan: Plan, every: int) -> int:
    if plan.batch_size is None:
        raise ConfigError("The plan has no batch size. Make it with batch_size=....")
    if not getattr(model, "compiled", False) or not model.built:
        raise ModelError(
            f"The model {model.name!r} must be built and compiled before its state can "
            "be restored. Give it a keras.Input, or call it once, then compile it."
        )
    count = int(examples.cardinality())
    if count < plan.batch_size:
        raise DataError(
            f"The number of examples must be known and fill a batch of "
            f"{plan.batch_size}. Received: {count} (negative: unknown or endless). "
            "Use dataset.apply(tf.data.experimental.assert_cardinality(n))."
        )
    steps = count // plan.batch_size
    if not plan.drop_remainder and count % plan.batch_size:
        steps += 1
    per_call = model.steps_per_execution
    if steps % per_call or every % per_call or every < 1:
        raise ConfigError(
            f"steps_per_execution must divide the steps of an epoch ({steps}) and "
            f"every ({every}), so that training can stop at any checkpoint. Received: "
            f"steps_per_execution={per_call}."
        )
    return steps


def _stream(
    examples: Any,
    plan: Plan,
    epochs: int,
    shuffle: int,
    seed: int,
    position: Position,
) -> Any:
    """All batches from `position` to the last epoch's end."""
    import tensorflow as tf

    def of_epoch(epoch):
        data = examples
        if shuffle:
            # Of this function's graph: the order is that of (seed, epoch) alone.
            tf.compat.v1.set_random_seed(1)
            # Odd factors keep such pairs apart.
            mixed = seed * 1_000_003 + epoch * 7_919 + 1
            data = data.shuffle(shuffle, mixed, reshuffle_each_iteration=False)
        return data.batch(plan.batch_size, drop_remainder=plan.drop_remainder)

    epochs_left = tf.data.Dataset.range(position.epoch, epochs)
    data = epochs_left.flat_map(of_epoch).skip(position.batch)
    return with_options(data, plan)


class _Keeper:
    """Restores and saves one model's training."""

    def __init__(self, model, store, position, steps, every, order, spec):
        self.model = model
        self.store = store
        self.position = position
        self.steps = steps
        self.every = every
        self.order = order
        self.spec = spec
        self.epoch_start = position.count_at_epoch
        self.terminated = False
        self._skipped = 0

    @property
    def count(self) -> Any:
        """The optimizer's count of steps."""
        optimizer = self.model.optimizer
        return getattr(optimizer, "inner_optimizer", optimizer).variables[0]

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Inside, SIGTERM waits for the end of the step."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def note(*_):
            self.terminated = True

        before = signal.signal(signal.SIGTERM, note)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    def restore(self) -> None:
        """Loads the checkpoint; afterwards training is as if it stood at its epoch."""
        if self.position.folder is None:
            return
        self.store.load(self.model, self.position)
        spread_seeds(self.model)
        if self.position.batch:
            _compat.build_metrics(self.model, self.spec)
            # Callbacks may read the count when an epoch begins.
            self._reached = int(np.asarray(self.count.value.numpy()))
            self.count.assign(self.position.count_at_epoch)
            self._plain = self.model.train_function
            self.model.train_function = self._skip

    def _skip(self, iterator):
        """Stands in for the train function until the checkpoint's batch."""
        if self._skipped == 0:
            self.store.load_metrics(self.model, self.position)
        self._skipped += self.model.steps_per_execution
        if self._skipped >= self.position.batch:
            self.count.assign(self._reached)
            self.model.train_function = self._plain
        return self.model.get_metrics_result()

    def begin_epoch(self) -> None:
        self.epoch_start = int(np.asarray(self.count.value.numpy()))

    def end_batch(self, epoch: int, batch: int) -> None:
        """After the batch with this number; saves if it is time."""
        done = min(batch + 1, self.steps)
        skipped = epoch == self.position.epoch and done <= self.position.batch
        if skipped or done == self.steps:  # the epoch's end saves
            return
        total = epoch * self.steps + done
        if self.terminated or total % self.every == 0:
            self.save(epoch, done)

    def save(self, epoch: int, batch: int) -> None:
        here = Position(epoch, batch, self.epoch_start, data=self.order)
        self.store.save(self.model, here)
        if self.terminated:
            raise SystemExit(TERMINATED)


class _First(keras.callbacks.Callback):
    """Restores before any other callback looks."""

    def __init__(self, keeper: _Keeper):
        super().__init__()
        self.keeper = keeper

    def on_train_begin(self, logs=None):
        self.keeper.restore()

    def on_epoch_begin(self, epoch, logs=None):
        self.keeper.begin_epoch()


class _Last(keras.callbacks.Callback):
    """Saves after every other callback has acted."""

    def __init__(self, keeper: _Keeper):
        super().__init__()
        self.keeper = keeper
        self._epoch = 0

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        self.keeper.end_batch(self._epoch, batch)

    def on_epoch_end(self, epoch, logs=None):
        keeper = self.keeper
        keeper.epoch_start = int(np.asarray(keeper.count.value.numpy()))
        keeper.save(epoch + 1, 0)
