"""What a learner does with a batch: predict, learn, remember, watch, react."""

import math
from typing import Any

import keras
import numpy as np

from keras_dlopt import _compat
from keras_dlopt.callbacks.preparing import prepare
from keras_dlopt.distill.teachers import heads_of, surveyed
from keras_dlopt.errors import ConfigError
from keras_dlopt.online.batching import Batcher
from keras_dlopt.online.keeping import Keeper
from keras_dlopt.online.samples import inside
from keras_dlopt.online.steps import Steps
from keras_dlopt.online.tasks import Task
from keras_dlopt.online.terms import StartedTerm, Terms, logits
from keras_dlopt.runtime import to_numpy
from keras_dlopt.transforms.host import hosts
from keras_dlopt.transforms.statistics import Statistics


class LearnerEngine:
    """The working parts of a learner, made when the form of its samples is known.

    Args:
        learner: whose arguments say how it works.
    """

    steps: Steps
    batcher: Batcher

    def __init__(self, learner: Any):
        self.learner, self.model = learner, learner.model
        self.started = False
        self.task: Any = None
        self._head = "linear"
        self._early: Any = None  # predicts before anything was learned
        self.labels_seen: set[int] = set()
        self.drift_at: int | None = None
        self.waiting: list[Any] = []
        self.terms: list[StartedTerm] = []
        self.rng = np.random.default_rng(learner.seed)
        self.keeper = Keeper(self.model, learner.keep)
        self.watch = None if learner.drift is None else learner.drift.start()
        self._predict_rows = max(learner.batch_size, 64)
        reacts = learner.drift is not None and learner.on_drift.factor > 1
        schedule = _is_scheduled(self.model.optimizer)
        if reacts and schedule:
            raise ConfigError(
                f"OnDrift(factor={learner.on_drift.factor}) raises the learning rate, "
                "and the optimizer's follows a schedule of its own. Compile with a "
                "number as the learning rate, or take factor=1."
            )
        self.base = None if schedule else _rate(self.model.optimizer)
        self._check_replicas()

    def _check_replicas(self) -> None:
        replicas = int(self.model.distribute_strategy.num_replicas_in_sync)
        learner = self.learner
        sizes = {"batch_size": learner.batch_size}
        if learner.memory is not None:
            sizes["Replay(rows=)"] = learner.replay.rows
        for name, size in sizes.items():
            if size % replicas:
                raise ConfigError(
                    f"{name} must divide by the {replicas} replicas. Received: {size}. "
                    f"Take {math.ceil(size / replicas) * replicas}."
                )
        self._predict_rows = math.ceil(self._predict_rows / replicas) * replicas

    @property
    def pending(self) -> int:
        """Samples that wait for a full batch."""
        return len(keras.tree.flatten(self.waiting[0])[0]) if self.waiting else 0

    @property
    def classes(self) -> int:
        """Outputs of the head; 0 for values."""
        return int(self.task.classes)

    def logits(self, outputs: Any) -> Any:
        """Logits of the model's outputs."""
        return logits(keras.tree.flatten(outputs)[0], self._head)

    def task_of(self, x: Any) -> Task:
        """What the labels are, from the model's outputs for such inputs."""
        if self.task is not None:
            return self.task
        learner = self.learner
        zeros = keras.tree.map_structure(
            lambda a: np.zeros((learner.batch_size, *a.shape[1:]), a.dtype), x
        )
        outputs = keras.tree.map_structure(to_numpy, self.model(zeros, training=False))
        flat = keras.tree.flatten(outputs)
        if learner.terms and len(flat) > 1:
            raise ConfigError(
                f"terms= go with models of one output. {self.model.name!r} has "
                f"{len(flat)}. Leave them out; replay works with any."
            )
        if len(flat) == 1 and (learner.terms or flat[0].shape[1:] == (1,)):
            plain = inside(self.model)
            (self._head,) = heads_of(plain, surveyed([plain], zeros)[0], x)
        self.task = Task(learner.task, outputs, learner.error, head=self._head)
        return self.task

    def start(self) -> None:
        """Makes what needs to know the samples' form; does nothing the second time."""
        if self.started:
            return
        learner, form = self.learner, self.learner.samples
        keeps = any(term.keeps_logits for term in learner.terms)
        self.batcher = Batcher(
            learner.memory,
            learner.replay,
            batch_size=learner.batch_size,
            kept=self.task.shapes[0] if keeps else (1,),
            rng=self.rng,
        )
        self._keeps = keeps
        self._prepare(form)
        with self.model.distribute_strategy.scope():
            self.terms = [term.start(self) for term in learner.terms]
        terms = Terms(self.model, self.terms, self.logits)
        self.steps = Steps(
            self.model, terms, learner.replay.augment, self.keeper.project
        )
        self.started = True

    def _prepare(self, form: Any) -> None:
        """Builds optimizers and metrics before the first step."""
        import tensorflow as tf

        spec = keras.tree.map_structure(
            lambda s: tf.TensorSpec((self.batcher.rows, *s.shape), s.dtype),
            (form.x, form.y),
        )
        with self.model.distribute_strategy.scope():
            prepare(self.model, self.model.train_step, spec)
        if self.model.distribute_strategy.num_replicas_in_sync > 1:
            _compat.build_metrics(self.model, spec)
        augment = self.learner.replay.augment
        if augment is not None and not augment.built:
            augment(np.zeros((1, *form.x.shape), form.x.dtype), training=True)

    def wait(self, x: Any, y: Any) -> None:
        """Takes samples that wait for a full batch."""
        if self.waiting:
            x, y = keras.tree.map_structure(
                lambda a, b: np.concatenate([a, b]), tuple(self.waiting), (x, y)
            )
        self.waiting = [x, y]

    def learn(self) -> np.ndarray:
        """Predicts and learns what waits; the errors of its prediction."""
        learner = self.learner
        x, y = self.waiting
        n = self.pending
        self._set_rate(self._factor())
        batches = self.batcher.mixed(x, y)
        asked = keras.tree.map_structure(
            lambda a: a[0, : learner.batch_size], batches.x
        )
        outputs = self.steps.learn(asked, batches)
        outputs = keras.tree.map_structure(lambda a: a[:n], outputs)
        labels = self.task.labels(y)
        errors = self.task.errors(y, outputs, labels)
        self.waiting = []
        self._remember(x, y, outputs, labels)
        learner.metrics.update(errors)
        self._look(errors)
        self._update_transforms()
        return errors

    def _remember(self, x: Any, y: Any, outputs: Any, labels: np.ndarray) -> None:
        self.labels_seen |= set(labels.tolist()) - {-1}
        memory, held = self.learner.memory, self.batcher.held
        if memory is None:
            return
        n, first = len(labels), self.learner.metrics.count
        kept = np.zeros((n, *self.batcher.kept), "float32")
        if self._keeps:
            kept = to_numpy(self.logits(outputs))
        for i, label in enumerate(labels.tolist()):
            row = self.batcher.row(x, y, kept, i)
            memory.add(held, row, arrived=first + i, label=label, rng=self.rng)

    def _look(self, errors: np.ndarray) -> None:
        """Shows the detector the errors, and reacts to what it saw."""
        learner = self.learner
        if self.watch is None:
            return
        end = learner.metrics.count
        for i in self.watch.update(errors):
            self.drift_at = end - len(errors) + i + 1
            learner.drifts.append(self.drift_at)
            if learner.on_drift.forget:
                self.batcher.held.forget(self.drift_at - learner.on_drift.recent)
                for term in self.terms:
                    term.release()

    def _factor(self) -> float:
        if self.drift_at is None:
            return 1.0
        return self.learner.on_drift.at(self.learner.metrics.count - self.drift_at)

    def rate(self) -> float:
        """The learning rate of the coming step."""
        if self.base is None:
            return _rate(self.model.optimizer)
        return self.base * self._factor()

    def _set_rate(self, factor: float) -> None:
        if self.base is not None:
            wanted = np.float32(self.base * factor)
            if np.float32(_rate(self.model.optimizer)) != wanted:
                self.model.optimizer.learning_rate = float(wanted)

    def _update_transforms(self) -> None:
        """Runs updates of transforms that are due; `fit` has a callback for that."""
        found = hosts(self.model)
        if not found:
            return
        optimizer = self.model.optimizer
        step = int(np.max(to_numpy(optimizer.iterations)))
        step *= optimizer.gradient_accumulation_steps or 1
        for host in found:
            due = host.next_update()
            if due is not None and due <= step:
                host.update_transforms(step, statistics=self._statistics(host))

    def _statistics(self, host: Any) -> Statistics | None:
        held = self.batcher.held
        wanted = any(group.transform.statistics for group in host.groups)
        if not wanted or not held.count:
            return None
        x, y = self._examples()
        return Statistics(
            self.model, (x, y), batches=8, batch_size=min(32, held.count), seed=0
        )

    def _examples(self) -> tuple[Any, Any]:
        """All that the memory holds."""
        form = self.learner.samples
        rows = self.batcher.held.rows(np.arange(self.batcher.held.count))
        x, y = keras.tree.pack_sequence_as((form.x, form.y), rows[:-1])
        return x, y

    def predict(self, x: Any, n: int) -> Any:
        """Predicts in batches of one size."""
        if not self.started and self._early is None:
            terms = Terms(self.model, (), self.logits)
            self._early = Steps(self.model, terms, None, self.keeper.project)
        call = self.steps if self.started else self._early
        rows, made = self._predict_rows, []
        for at in range(0, n, rows):
            places = np.minimum(np.arange(at, at + rows), n - 1)
            part = keras.tree.map_structure(lambda a, p=places: a[p], x)
            made.append(call.predict(part))
        return keras.tree.map_structure(lambda *parts: np.concatenate(parts)[:n], *made)

    def rehearse(self, epochs: float, *, decay: bool, kept: bool) -> None:
        """Trains on the memory."""
        if not self.started or not self.batcher.held.count or not self.learner.memory:
            raise ConfigError(
                "There is nothing to rehearse: the memory is empty, or memory=None. "
                "Call learn() first, with a memory."
            )
        form, steps = self.learner.samples, self.learner.replay.steps
        wanted = epochs * self.batcher.held.count / self.batcher.rows
        calls = max(1, math.ceil(wanted / steps))
        for call in range(calls):
            falls = 0.5 * (1.0 + math.cos(math.pi * call / calls)) if decay else 1.0
            self._set_rate(self._factor() * falls)
            self.steps.train(self.batcher.remembered(form.x, form.y, kept=kept))
            self._update_transforms()
        self._set_rate(self._factor())

    def anchor(self, x: Any, y: Any) -> None:
        """Shows the terms the model as it is, and examples."""
        if x is None:
            if not self.started or not self.batcher.held.count:
                raise ConfigError(
                    "anchor() has no examples: the memory is empty, or memory=None. "
                    "Pass x and y of what the model knows."
                )
            x, y = self._examples()
        labels = self.task.labels(y)
        self.labels_seen |= set(labels.tolist()) - {-1}
        for term in self.terms:
            term.anchor(x, labels)


def _rate(optimizer: Any) -> float:
    return float(np.max(to_numpy(keras.ops.convert_to_tensor(optimizer.learning_rate))))


def _is_scheduled(optimizer: Any) -> bool:
    """Whether the rate follows a schedule, which nobody may assign."""
    return not isinstance(optimizer.learning_rate, keras.Variable)
