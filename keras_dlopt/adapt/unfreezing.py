"""Gradual unfreezing in one `fit`: which weights begin to train when."""

import warnings
from collections.abc import Sequence
from typing import Any

import keras

from keras_dlopt import _compat, checks
from keras_dlopt.adapt.flags import Flags
from keras_dlopt.adapt.places import by_depth, selected, weights_of
from keras_dlopt.config import Configured
from keras_dlopt.errors import ConfigError, ModelError
from keras_dlopt.optimizers.late import engine, largest_step
from keras_dlopt.runtime.values import to_numpy
from keras_dlopt.select import Selector, at, selector_from_dict

UNITS = ("epoch", "step")


@keras.saving.register_keras_serializable("keras_dlopt")
class GradualUnfreezing(Configured, keras.callbacks.Callback):
    """Has weights wait, frozen, until their epoch or step has come.

    What no stage selects trains as it would without this. A layer that waits as a whole
    is frozen as `layer.trainable = False` does it: its BatchNormalization uses the
    moving statistics. At each stage the train step is traced anew; a waiting weight
    costs no gradient. When `fit` ends all flags are as before.

    Compile while the weights of all stages are trainable: the optimizer makes their
    state at the start. Optimizers of this package count the steps of a late weight from
    its own first one; Keras' Adam counts all, and is warned about.

    Args:
        stages: pairs of a start, counted from 0, and a selector; a weight waits for
            the first stage that selects it.
        unit: `"epoch"`, or `"step"`: updates of the optimizer. With
            `steps_per_execution` a stage begins with the first execution after it.

    Raises:
        ConfigError: for stages that are no such pairs; in `fit` for a selector that
            means no weight, with the nearest ones.
        ModelError: in `fit`, for an optimizer that was built without some of the
            weights, or another backend than TensorFlow.

    Warns:
        UserWarning: for an optimizer of Keras' whose late steps are too large.

    Example:
        >>> from keras_dlopt import matching
        >>> stages = [(1, matching("block2/.*")), (2, matching("block1/.*"))]
        >>> callbacks = [GradualUnfreezing(stages)]

    Source: Howard and Ruder, "Universal Language Model Fine-tuning for Text
    Classification" (arXiv:1801.06146), section 3.3.
    """

    def __init__(self, stages: Sequence[Any], *, unit: str = "epoch"):
        super().__init__()
        self.stages = tuple(_stage(one) for one in stages)
        self.unit = checks.choice(unit, name="unit", choices=UNITS)
        self._flags: Any = None
        self._starts: dict[int, int] = {}
        self._begun: set[int] = set()
        self._step = 0
        self._epoch = 0

    def on_train_begin(self, logs=None):
        if keras.backend.backend() != "tensorflow":
            raise ModelError(
                "GradualUnfreezing traces the train step of TensorFlow anew, and the "
                f"backend is {keras.backend.backend()!r}. Freeze layers yourself and "
                "call compile and fit once a stage."
            )
        model: Any = self.model
        targets = weights_of(model)
        self._starts = {}
        for start, selector in self.stages:
            for target in selected(targets, selector, name="A stage"):
                self._starts.setdefault(id(target.variable), start)
        self._flags = Flags(model, targets)
        self._build(model)
        self._step = int(to_numpy(model.optimizer.iterations))
        self._begun = set()
        self._epoch = 0
        self._set(self._step if self.unit == "step" else 0)

    def _build(self, model: Any) -> None:
        optimizer = model.optimizer
        if not optimizer.built:
            with model.distribute_strategy.scope():
                optimizer.build(model.trainable_variables)
        inner = getattr(optimizer, "inner_optimizer", optimizer)
        for start in sorted(set(self._starts.values())):
            ids = {i for i, begins in self._starts.items() if begins == start}
            ours = [t for t in self._flags.targets if id(t.variable) in ids]
            variables = self._flags.trained_for(
                {id(t.variable) for t in ours if not self._flags.never(t)}
            )
            unknown = any(_compat.place_of(inner, v) is None for v in variables)
            if unknown or not variables:
                raise ModelError(
                    f"The optimizer of {model.name!r} has no state for some of "
                    f"{[t.path for t in ours][:5]}, which the stage at {start} is to "
                    "train. Set trainable = True on them, compile again, and leave the "
                    "freezing to GradualUnfreezing."
                )

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch = epoch
        if self.unit == "epoch":
            self._set(epoch)

    def on_train_batch_begin(self, batch, logs=None):
        if self.unit == "step" and self._due():
            now = int(to_numpy(self.model.optimizer.iterations))
            self._set(now)

    def on_train_end(self, logs=None):
        if ours := engine(self.model.optimizer):  # what still waits may train now
            ours.go_on(self._variables(set(self._starts.values()) - self._begun))
        self._flags.restore()
        self.model.make_train_function(force=True)

    def _due(self) -> bool:
        return any(s not in self._begun for s in self._starts.values())

    def _set(self, now: int) -> None:
        """Has all stages up to now train, and the others wait."""
        begun = {start for start in self._starts.values() if start <= now}
        if begun == self._begun and self._flags.applied:
            return
        waiting = set(self._starts.values()) - begun
        if ours := engine(self.model.optimizer):
            ours.rest(self._variables(waiting))
        self._flags.apply({i for i, start in self._starts.items() if start > now})
        self._go_on({s for s in begun - self._begun if s > 0})
        self._begun = begun
        self.model.make_train_function(force=True)

    def _variables(self, starts: set[int]) -> list[Any]:
        ids = {i for i, begins in self._starts.items() if begins in starts}
        return self._flags.trained_for(ids)

    def _go_on(self, starts: set[int]) -> None:
        optimizer: Any = self.model.optimizer
        step = int(to_numpy(optimizer.iterations))
        ours = engine(optimizer)
        for start in sorted(starts):
            if ours is not None:
                ours.go_on(self._variables({start}), self._passed(step, start))
            elif step > 0 and largest_step(optimizer) > 1.5:
                self._warn(step)

    def _passed(self, step: int, start: int) -> int:
        """The step of a stage that had begun before this `fit` did."""
        if self.unit == "step":
            return min(step, start)
        return step * start // max(self._epoch, start)

    def _warn(self, step: int) -> None:
        optimizer: Any = self.model.optimizer
        warnings.warn(
            f"{type(optimizer).__name__} of Keras counts all steps for its bias "
            f"correction, so the first ones of weights that begin at {step} are up to "
            f"{largest_step(optimizer):.1f} times as large as they should be. Use "
            f"keras_dlopt.optimizers.{type(optimizer).__name__}, which counts from "
            "each weight's own first step.",
            stacklevel=2,
        )


def _stage(given: Any) -> tuple[int, Selector]:
    if not isinstance(given, list | tuple) or len(given) != 2:
        raise ConfigError(
            "stages must be pairs of a start and a selector, such as "
            f"[(1, matching('block2/.*'))]. Received: {given!r}."
        )
    start, selector = given
    if isinstance(selector, dict):
        selector = selector_from_dict(selector)
    checks.instance(
        selector,
        Selector,
        name="The second of each stage",
        wanted="a selector",
        hint="Write for example keras_dlopt.matching('block2/.*').",
    )
    return checks.whole(start, name="The start of a stage", least=0), selector


def top_down(model: keras.Model, *, every: int = 1) -> list[tuple[int, Selector]]:
    """Stages for `GradualUnfreezing`: the head at once, then a kernel after the other.

    Args:
        model: a built model.
        every: epochs or steps between two stages.

    Raises:
        ConfigError: for an `every` below 1.
        ModelError: for a model that is not built or has no kernel.

    Example:
        >>> net = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="a"),
        ...     keras.layers.Dense(2, name="b")])
        >>> [(start, s.paths) for start, s in top_down(net, every=5)]
        [(0, ('b/kernel', 'b/bias')), (5, ('a/kernel', 'a/bias'))]
    """
    every = checks.count(every, name="every")
    groups = by_depth(model)
    return [
        (number * every, at(*(target.path for target in group)))
        for number, group in enumerate(reversed(groups))
    ]
