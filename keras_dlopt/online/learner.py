"""A compiled model that learns from a stream."""

import dataclasses
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_dlopt import checks
from keras_dlopt.config import arguments, decode, encode
from keras_dlopt.errors import ConfigError, DataError
from keras_dlopt.graph.walk import check_built
from keras_dlopt.online.drift import Detector
from keras_dlopt.online.engine import LearnerEngine
from keras_dlopt.online.memory import Memory, Reservoir
from keras_dlopt.online.prequential import Prequential
from keras_dlopt.online.reaction import OnDrift
from keras_dlopt.online.replay import Replay
from keras_dlopt.online.samples import Samples
from keras_dlopt.online.saving import load, store
from keras_dlopt.online.steps import check_compiled
from keras_dlopt.online.terms import LearningTerm

_MEMORY, _REPLAY, _REACTION = Reservoir(500), Replay(), OnDrift()


@dataclasses.dataclass(frozen=True)
class Learned:
    """What a call of `learn` did.

    Attributes:
        samples: that were given.
        errors: of the samples that were learned, each from before it was learned; 0
            and 1 for classes.
        pending: samples that wait for a full batch.
        drifts: numbers of the samples, counted from 1, after which a drift was seen.
        new_labels: classes that came for the first time.
    """

    samples: int
    errors: np.ndarray
    pending: int
    drifts: tuple[int, ...]
    new_labels: tuple[int, ...]


class OnlineLearner:
    """A compiled Keras model that goes on learning from a stream.

    Samples are predicted first and learned then, in batches of one size: what does not
    fill one waits for the next call, and is part of the state, so that it makes no
    difference in which portions a stream comes. A batch is one call of a compiled
    graph: the prediction, and `replay.steps` of the model's own `train_step`, each on
    the new samples and others from the memory. Layers, losses, optimizers, own train
    steps, transforms and strategies stay as they are; transforms that follow a
    schedule are updated.

    Args:
        model: built and compiled; it is trained itself. A `TransformedModel` keeps its
            transforms.
        task: `"classes"` or `"values"`.
        batch_size: new samples in a batch.
        memory: which samples are kept for replay; None for none.
        replay: how they are learned again.
        terms: further losses against forgetting.
        drift: what watches the errors; None for nothing.
        on_drift: what happens then.
        fading: of the prequential error; see `Prequential`.
        error: a function of labels and outputs that gives an error a sample; None for
            wrong classes, or mean squared differences.
        keep: `"zeros"` or `"codes"` for a plain model that was pruned or clustered:
            zeros stay, or weights that share a value go on sharing one.
        path: of a file to which the state is written by itself.
        every: after how many samples; needs `path`.
        seed: of the memory and the draws.

    Attributes:
        seen: samples that were given to `learn`, pending ones included.
        metrics: the prequential error, a `Prequential`.
        samples: the form of the stream's samples.
        drifts: numbers of the samples after which a drift was seen.

    Raises:
        ModelError: for a model that is not built or not compiled.
        ConfigError: for arguments that do not go together.

    Example:
        >>> net = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        >>> loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        >>> net.compile("sgd", loss)
        >>> learner = OnlineLearner(net, batch_size=8)
        >>> learner.learn(np.ones((20, 4)), np.zeros(20, int)).pending
        4
        >>> learner.predict(np.ones((2, 4))).shape
        (2, 3)
    """

    def __init__(
        self,
        model: keras.Model,
        *,
        task: str = "classes",
        batch_size: int = 32,
        memory: Memory | None = _MEMORY,
        replay: Replay = _REPLAY,
        terms: Sequence[LearningTerm] = (),
        drift: Detector | None = None,
        on_drift: OnDrift = _REACTION,
        fading: float = 0.999,
        error: Callable[[Any, Any], Any] | None = None,
        keep: str | None = None,
        path: str | os.PathLike[str] | None = None,
        every: int | None = None,
        seed: int = 0,
    ):
        checks.instance(model, keras.Model, name="model", wanted="a Keras model")
        check_built(model)
        check_compiled(model)
        self.model = model
        self.task = checks.choice(task, name="task", choices=("classes", "values"))
        self.batch_size = checks.count(batch_size, name="batch_size")
        self.memory, self.replay = (
            memory,
            checks.instance(replay, Replay, name="replay"),
        )
        self.terms = tuple(terms)
        self.drift, self.on_drift = drift, on_drift
        self.fading, self.error, self.keep = fading, error, keep
        self.path = None if path is None else Path(path)
        self.every = checks.optional(checks.count, every, name="every")
        self.seed = checks.seed(seed)
        self._check()
        self.seen = 0
        self.drifts: list[int] = []
        self.metrics = Prequential(fading=fading)
        self.samples = Samples(model)
        self._saved = 0
        self._engine = LearnerEngine(self)

    def _check(self) -> None:
        for name, kind in (
            ("memory", Memory),
            ("drift", Detector),
            ("on_drift", OnDrift),
        ):
            if getattr(self, name) is not None or name == "on_drift":
                checks.instance(getattr(self, name), kind, name=name)
        for i, term in enumerate(self.terms):
            checks.instance(
                term,
                LearningTerm,
                name=f"terms[{i}]",
                wanted="a term, such as DarkExperience()",
            )
            if term.keeps_logits and self.memory is None:
                raise ConfigError(
                    f"{term!r} compares kept samples, and memory=None keeps none. Give "
                    "a memory, such as Reservoir(500)."
                )
        by_class = [
            one
            for one in (self.memory, self.drift, *self.terms)
            if getattr(one, "by_class", False)
            or getattr(one, "binary", False)
            or getattr(one, "needs_classes", False)
        ]
        if by_class and self.task == "values":
            raise ConfigError(
                f"{by_class[0]!r} goes with task='classes' only. Leave it out, or take "
                "Reservoir, DarkExperience, ADWIN or PageHinkley."
            )
        if (self.every is None) != (self.path is None):
            raise ConfigError(
                "path and every go together: where the state is written, and after how "
                f"many samples. Received: path={self.path!r}, every={self.every!r}. "
                "Give both, or call save(path) yourself."
            )

    def learn(self, x: Any, y: Any) -> Learned:
        """Predicts samples and learns them, batch by batch.

        Args:
            x: inputs, in the model's structure, (n, ...).
            y: labels, (n, ...).

        Returns:
            What was done; nothing of it where an error is raised over the samples.

        Raises:
            DataError: for samples that do not fit, with numbers that are not finite,
                or with labels that the head has no place for.
        """
        x, y, n = self.samples.checked(x, y)
        engine = self._engine
        labels = engine.task_of(x).labels(y)
        self.samples.take_on(x, y)
        engine.start()
        new = sorted(set(labels.tolist()) - engine.labels_seen - {-1})
        before, errors, at = len(self.drifts), [], 0
        while at < n:
            take = min(n - at, self.batch_size - engine.pending)
            engine.wait(*_part((x, y), slice(at, at + take)))
            at, self.seen = at + take, self.seen + take
            if engine.pending == self.batch_size:
                errors.append(engine.learn())
                self._save_if_due()
        return Learned(
            n, _joined(errors), engine.pending, tuple(self.drifts[before:]), tuple(new)
        )

    def follow(self, stream: Iterable[Any]) -> int:
        """Learns from pairs `(x, y)` of arrays, passing over what was seen already.

        After `restore` the same stream goes on where the state was saved.

        Args:
            stream: a `tf.data.Dataset` of batches, a generator, or a list.

        Returns:
            How many samples were learned or wait.

        Raises:
            DataError: for a stream without a sample.
        """
        skip, given, begun = self.seen, 0, self.seen
        for x, y in stream:
            x, y = keras.tree.map_structure(np.asarray, (x, y))
            n = len(keras.tree.flatten(x)[0])
            passed = min(n, max(0, skip - given))
            given += n
            if passed < n:
                self.learn(*_part((x, y), slice(passed, n)))
        if not given:
            raise DataError(
                "The stream is empty: it gave no (x, y) at all. Check where it reads "
                "from; a generator gives its samples once only."
            )
        return self.seen - begun

    def flush(self) -> Learned:
        """Learns what waits for a full batch, filled up from the memory."""
        before = len(self.drifts)
        waits = self._engine.pending
        errors = [self._engine.learn()] if waits else []
        self._save_if_due()
        return Learned(0, _joined(errors), 0, tuple(self.drifts[before:]), ())

    def predict(self, x: Any) -> Any:
        """What the model makes of inputs, as NumPy arrays.

        Args:
            x: inputs, in the model's structure, (n, ...).

        Raises:
            DataError: for inputs that do not fit.
        """
        x, n = self.samples.inputs(x)
        return self._engine.predict(x, n)

    def rehearse(self, epochs: float = 1.0, *, decay: bool = True, kept: bool = False):
        """Trains on the memory alone, balanced if the memory is.

        At the end of a stream, or where it rests: a model that last saw a few classes
        is brought back to all of them.

        Args:
            epochs: how often each item is drawn, in the mean.
            decay: whether the learning rate falls to 0 along half a cosine; it is set
                back in the end.
            kept: whether terms that compare kept logits count.

        Raises:
            ConfigError: without a memory, or with an empty one.

        Source: the second half of Prabhu, Torr, Dokania, "GDumb" (ECCV 2020), which
        starts from new weights.
        """
        checks.positive(epochs, name="epochs")
        self._engine.rehearse(epochs, decay=decay, kept=kept)

    def anchor(self, x: Any = None, y: Any = None) -> None:
        """Has the terms remember the model as it is, such as at the end of a task.

        Args:
            x: inputs of what it knows; None for the memory's.
            y: their labels.

        Raises:
            ConfigError: without examples.
        """
        if x is not None:
            x, y, _ = self.samples.checked(x, y)
            self._engine.task_of(x).labels(y)
            self.samples.take_on(x, y)
            self._engine.start()
        self._engine.anchor(x, y)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the whole state: model, optimizer, memory, draws, detector, metrics.

        The file holds data only, and is there whole or not at all.

        Raises:
            ConfigError: if it cannot be written, or nothing was learned yet.
        """
        store(self, self._engine, Path(path))
        self._saved = self.seen

    def restore(self, path: str | os.PathLike[str]) -> "OnlineLearner":
        """Takes on the state that `save` wrote, to the bit; returns the learner.

        Args:
            path: written by a learner with the same arguments, over the same model.

        Raises:
            FormatError: for a damaged file.
            ConfigError: for one of another model or other arguments.
        """
        load(self, self._engine, Path(path))
        self._saved = self.seen
        return self

    @property
    def learning_rate(self) -> float:
        """Of the coming step."""
        return self._engine.rate()

    @property
    def kept(self) -> int:
        """Samples in the memory."""
        return self._engine.batcher.held.count if self._engine.started else 0

    @property
    def pending(self) -> int:
        """Samples that wait for a full batch."""
        return self._engine.pending

    def get_config(self) -> dict[str, Any]:
        """The arguments as JSON-ready data, without the model, `error` and files."""
        left = ("model", "error", "path", "every")
        names = [name for name in _names() if name not in left]
        return {name: encode(getattr(self, name)) for name in names}

    @classmethod
    def from_config(
        cls, config: dict[str, Any], *, model: keras.Model, **more: Any
    ) -> "OnlineLearner":
        """Makes a learner over a model from `get_config()`; `more` goes with it."""
        return cls(model, **{k: decode(v) for k, v in config.items()}, **more)

    def _save_if_due(self) -> None:
        if self.path is None or self.every is None:
            return
        if self.seen // self.every > self._saved // self.every:
            self.save(self.path)


def _names() -> tuple[str, ...]:
    return arguments(OnlineLearner)


def _part(structure: Any, rows: slice) -> Any:
    return keras.tree.map_structure(lambda a: a[rows], structure)


def _joined(errors: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(errors) if errors else np.zeros(0)
