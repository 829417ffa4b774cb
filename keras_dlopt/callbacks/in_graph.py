"""Work that callbacks put into the compiled train step.

Keras calls a callback between executions of the train function: with
`steps_per_execution=32` it sees every 32nd step, and each look at the loss is a round
trip from the device. A `Controller` is instead traced into the train step itself.

Mechanism, public Keras API only, one `StepHub` per model:

- `Callback.set_model` runs before `fit` makes the train function and before
  `BackupAndRestore` loads. There the hub puts its own `train_step` on the model
  instance and has the train function made again.
- The hub's step runs the model's step and then reads what that step added to Keras'
  own loss metric: the batch's loss, without regard to how `compute_loss` or a custom
  `train_step` came to it. Under MirroredStrategy the replicas' sums are added up, so
  that every replica sees the loss of the global batch.
- A controller answers with its next state and a factor for the learning rate. The
  factor is multiplied into the optimizer's rate variable; for an optimizer that holds a
  schedule, into the factor of a `schedules.Scaled` put around it.
- State lives in variables that the model does not track. On TensorFlow the graph
  assigns them. On JAX they travel as a fifth part of the trainer's state tuple, from
  and to the variables around each call of the train function.
- The variables are saved through a layer that is an ordinary, untracked attribute of
  the model while it trains: `save_weights`, hence `BackupAndRestore`, writes and reads
  them in a group of their own, which a model without callbacks ignores. Weights, config
  and optimizer variables of the model stay what they were.
- A model without an `Input` is built by its first batch. Before that one runs, the
  hub traces the model's step once, which creates the variables, and then does what
  callbacks have asked for by `when_ready`.
- `on_train_end` takes the hook off. The traced function is kept for the next `fit` and
  used again if the model was not compiled anew in between.
"""

import contextlib
import threading
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_dlopt import _compat
from keras_dlopt.callbacks import in_graph_jax, in_graph_tf
from keras_dlopt.callbacks.controller import Controller, Seen
from keras_dlopt.callbacks.preparing import (
    LossSource,
    is_built,
    is_plain,
    optimizers_of,
    prepare,
)
from keras_dlopt.callbacks.rate import Rate, rate_of
from keras_dlopt.callbacks.state import make_slot
from keras_dlopt.callbacks.step_state import NAME, StepState
from keras_dlopt.errors import ModelError

_HUB = "dlopt_step_hub"


class StepHub:
    """The controllers of one model, and the hook that runs them."""

    def __init__(self, model: keras.Model):
        self.model = model
        self.state = StepState(self)
        self.controllers: list[Controller] = []
        self._rate: Rate | None = None
        self._slots: dict[int, list[keras.Variable]] = {}
        self._functions: dict[tuple, tuple[list[Controller], Any]] = {}
        self._left: Any = None
        self._history: Any = None
        self._original: Any = None
        self._caught: dict[Any, list[Any]] = {}
        self._numbers: dict[str, Any] = {}
        self._source: LossSource | None = None
        self._ready = False
        self._waiting: list[Callable[[], None]] = []

    # -- attaching -------------------------------------------------------------

    @property
    def installed(self) -> bool:
        """Whether the model's train step is the hub's."""
        return self._original is not None

    @property
    def optimizer_name(self) -> str:
        """Class of the optimizer, for checkpoints."""
        return type(self.model.optimizer).__name__

    @property
    def inner_optimizer(self) -> Any:
        """The optimizer inside a loss-scaling one, else the model's."""
        optimizer = self.model.optimizer
        return getattr(optimizer, "inner_optimizer", optimizer)

    @property
    def rate(self) -> Rate:
        """The optimizer's learning rate; there while the hook is on."""
        assert self._rate is not None, "the hook is off"
        return self._rate

    def attach(self, controller: Controller) -> None:
        """Adds a controller, with its state at the start, to the train step."""
        if self.installed and self.model.history is not self._history:
            self.uninstall()  # an earlier fit was interrupted
        if not self.installed:
            self._install()
        if controller not in self.controllers:
            self.controllers.append(controller)
        if not controller.wants_weights or is_built(self.model):
            self._start(controller)
        self._choose_function()

    def detach(self, controller: Controller) -> None:
        """Takes a controller off; the last one takes the hook with it."""
        if controller in self.controllers:
            self.controllers.remove(controller)
        if self.installed and not self.controllers:
            self.uninstall()

    def _install(self) -> None:
        model = self.model
        if model.train_function is None or model.train_function is not self._left:
            self._functions.clear()
            self._slots.clear()
        self._history = getattr(model, "history", None)
        self._numbers.clear()
        self._waiting.clear()
        self._ready = False
        self._rate = rate_of(model)
        self._original = model.train_step
        self.rate.install()
        _compat.replace_method(model, "train_step", self._step)
        _compat.attach(model, NAME, self.state)

    def uninstall(self) -> None:
        """Gives the model its own train step back."""
        model = self.model
        self.controllers.clear()
        self._release_apply()
        _compat.restore_method(model, "train_step")
        _compat.restore_method(model, NAME)
        if self._original != model.train_step:  # it was an instance attribute
            _compat.replace_method(model, "train_step", self._original)
        self._original = None
        self.rate.uninstall()
        model.make_train_function(force=True)
        self._left = model.train_function

    def _start(self, controller: Controller) -> None:
        values = controller.initial(self.model)
        old = self._slots.get(id(controller))
        shapes = [np.shape(a) for a in values]
        if old is not None and [tuple(v.shape) for v in old] == shapes:
            for variable, value in zip(old, values, strict=True):
                variable.assign(value)
            return
        self._slots[id(controller)] = [make_slot(self.model, a) for a in values]

    def slots(self, controller: Controller) -> list[keras.Variable]:
        """The state variables of one controller; none before the model is built."""
        return self._slots.get(id(controller), [])

    def current_rate(self) -> float:
        """The learning rate of the coming step."""
        rate = self._rate if self.installed else rate_of(self.model)
        assert rate is not None
        return rate.now()

    # -- before the first step -------------------------------------------------

    def when_ready(self, do: Callable[[], None]) -> None:
        """Calls `do()` once all variables exist: now, or right before the first step.

        Raises:
            ModelError: if a callback needs what the train step does not give.
        """
        if not self._ready and is_plain(self._original) and is_built(self.model):
            self._prepare(None)
        if self._ready:
            do()
        else:
            self._waiting.append(do)

    def _prepare(self, spec: Any) -> None:
        """Has all variables made, and finds the loss and the optimizers of the step."""
        model = self.model
        self._source = prepare(model, self._original, spec)
        self._check_loss()
        self._check_optimizer()
        for controller in self.controllers:
            if id(controller) not in self._slots:
                self._start(controller)
        self._ready = True
        for do in self._waiting:
            do()
        self._waiting.clear()

    def _check_loss(self) -> None:
        if self._source is None and self.wants("wants_loss"):
            raise ModelError(
                "The model keeps no mean of its loss: model.metrics has no "
                f"keras.metrics.Mean named 'loss'. Received: "
                f"{[metric.name for metric in self.model.metrics]}. In a model with "
                "its own `metrics` property, add keras.metrics.Mean(name='loss') and "
                "update it in train_step, or return the loss as 'loss' from there."
            )

    def _check_optimizer(self) -> None:
        """A step may use other optimizers than the compiled one."""
        if self.model.optimizer.built:
            return
        found = optimizers_of(self.model)
        if self.wants("leads_rate") or not found:
            raise ModelError(
                f"train_step of {type(self.model).__name__} does not use "
                f"model.optimizer, whose rate this callback drives. Received: "
                f"{[o.name for o in found]} in use. Compile with the optimizer that "
                "train_step uses as model.optimizer, several as a keras.optimizers."
                "MultiOptimizer, or leave the callback out."
            )
        self.rate.uninstall()
        self._rate = rate_of(self.model, found)
        self.rate.install()

    def named_hosts(self) -> list[tuple[str, Controller]]:
        """Controllers with state on the host, each with its name in checkpoints."""
        found = [c for c in self.controllers if c.host is not None]
        return [
            (f"{c.key}_{[o for o in found if o.key == c.key].index(c)}_0", c)
            for c in found
        ]

    def named_variables(self) -> list[tuple[str, keras.Variable]]:
        """Every state variable with its name in checkpoints."""
        named = [(f"rate_{i}", v) for i, v in enumerate(self.rate.slots)]
        seen: dict[str, int] = {}
        for controller in self.controllers:
            number = seen[controller.key] = seen.get(controller.key, -1) + 1
            named += [
                (f"{controller.key}_{number}_{i}", v)
                for i, v in enumerate(self.slots(controller))
            ]
        return named

    def _variables(self) -> list[keras.Variable]:
        return [variable for _, variable in self.named_variables()]

    # -- the train function ----------------------------------------------------

    def _choose_function(self) -> None:
        model = self.model
        self._release_apply()
        if self.wants("wants_gradients"):
            self._catch_gradients()
        key = (id(model.optimizer), self.rate.kind, *map(id, self.controllers))
        if key not in self._functions:
            model.make_train_function(force=True)
            made = self._around(model.train_function)
            self._functions[key] = (list(self.controllers), made)
        model.train_function = self._functions[key][1]

    def _around(self, inner):
        if keras.backend.backend() == "jax":
            if keras.distribution.distribution() is not None:
                raise ModelError(
                    "In-graph callbacks cannot be used with keras.distribution: the "
                    "trainer fixes the layout of its state. Received distribution="
                    f"{keras.distribution.distribution()!r}. Train without it, or use "
                    "a schedule as learning_rate."
                )
            run = self._jax_function(inner)
        else:
            run = inner

        def function(*args):
            if self.model.history is not self._history:
                self.uninstall()  # a later fit without these callbacks
                return self.model.train_function(*args)
            if not self._ready:
                self._prepare(getattr(args[-1], "element_spec", None))
            return run(*args)

        return function

    def _jax_function(self, inner):
        def run(state, iterator):
            variables = self._variables()
            held = [v.value for v in variables]
            logs, state = inner((*state, held), iterator)
            for variable, value in zip(variables, state[4], strict=True):
                variable.assign(value)
            return logs, state[:4]

        return run

    # -- the train step --------------------------------------------------------

    def _step(self, *args):
        if keras.backend.backend() == "jax":
            return in_graph_jax.step(self, self._original, *args)
        return in_graph_tf.step(self, self._original, *args)

    def advance(self, values: list[Any], seen: Seen) -> tuple[list[Any], Any, Any]:
        """Runs the controllers: next state, factor for the rate, keep or None."""
        skip = len(self.rate.slots)
        values, factor, keep = list(values), 1.0, None
        position = skip
        for controller in self.controllers:
            count = len(self.slots(controller))
            part = values[position : position + count]
            part, its_factor, its_keep = controller.after_step(part, seen)
            values[position : position + count] = part
            position += count
            factor = factor * its_factor
            if its_keep is not None:
                keep = its_keep if keep is None else ops.logical_and(keep, its_keep)
        return values, factor, keep

    @contextlib.contextmanager
    def scheduled(self, step: Any):
        """Gives the optimizer its scheduled attributes inside the context."""
        optimizer = self.inner_optimizer
        given = [c.scheduled(step) for c in self.controllers]
        pairs = dict(pair for pair in given if pair is not None)
        for name, value in pairs.items():
            # Replicas enter one after the other before the first one leaves.
            self._numbers.setdefault(name, getattr(optimizer, name))
            _compat.attach(optimizer, name, value)
        try:
            yield
        finally:
            for name in pairs:
                _compat.attach(optimizer, name, self._numbers[name])

    def wants(self, what: str) -> bool:
        """Whether any controller has the attribute `what` set."""
        return any(getattr(controller, what) for controller in self.controllers)

    def _catch_gradients(self) -> None:
        optimizer = self.model.optimizer
        if hasattr(optimizer, "inner_optimizer"):
            raise ModelError(
                "This callback needs the gradients, which "
                f"{type(optimizer).__name__} handles inside a condition. Compile with "
                "auto_scale_loss=False, or use LossDrivenLearningRate instead."
            )
        plain = optimizer.apply

        def apply(grads, trainable_variables=None):
            # MirroredStrategy traces every replica in a thread of its own.
            self._caught[threading.get_ident()] = list(grads)
            return plain(grads, trainable_variables)

        _compat.replace_method(optimizer, "apply", apply)

    def _release_apply(self) -> None:
        self._caught.clear()
        _compat.restore_method(self.model.optimizer, "apply")

    def take_gradients(self) -> list[Any] | None:
        """The gradients that the optimizer got in the step just traced."""
        return self._caught.pop(threading.get_ident(), None)

    def loss_source(self) -> LossSource | None:
        """Where the loss of a step is found; None where no controller uses it."""
        if not self.wants("wants_loss") and not self.wants("uses_loss"):
            return None
        return self._source


def hub_of(model: keras.Model) -> StepHub:
    """The model's hub; made at the first call.

    Raises:
        ModelError: if the model is not compiled, or the backend has no train step to
            hook.
    """
    if not getattr(model, "compiled", False) or model.optimizer is None:
        raise ModelError(
            "The learning-rate callbacks need a compiled model with an optimizer. "
            f"Received: {model!r}. Call model.compile(optimizer=..., loss=...) first."
        )
    if keras.backend.backend() not in ("tensorflow", "jax"):
        raise ModelError(
            "In-graph callbacks run on the tensorflow and jax backends. Received "
            f"backend: {keras.backend.backend()!r}. Use keras.callbacks."
            "ReduceLROnPlateau or a schedule instead."
        )
    hub = _compat.attached(model, _HUB)
    if hub is None:
        hub = StepHub(model)
        _compat.attach(model, _HUB, hub)
    return hub
