"""A momentum that follows a schedule inside the train step."""

from typing import Any

import keras
from keras import ops

from keras_dlopt._compat import StandIn
from keras_dlopt.callbacks.base import InGraphCallback
from keras_dlopt.callbacks.controller import Controller
from keras_dlopt.callbacks.in_graph import hub_of
from keras_dlopt.errors import ConfigError


class Traced(StandIn):
    """Stands in for a Python number of an optimizer while its step is traced.

    TensorFlow and JAX take it as the tensor it holds. Asked by `if momentum:` it says
    that it is not zero: a schedule cannot make momentum slots come and go.
    """

    def __init__(self, tensor: Any):
        self.tensor = tensor

    def __tf_tensor__(self, dtype=None, name=None):
        import tensorflow as tf

        return tf.cast(self.tensor, dtype) if dtype is not None else self.tensor

    def __jax_array__(self):
        return self.tensor

    def __bool__(self):
        return True

    def __eq__(self, other):
        return False

    def __ne__(self, other):
        return True

    __hash__ = None  # type: ignore[assignment]

    def __gt__(self, other):
        return True


class _Momentum(Controller):
    key = "momentum"

    def __init__(self, schedule: Any):
        self.schedule = schedule
        self.attribute = ""

    def initial(self, model):
        return []

    def after_step(self, state, seen):
        return state, 1.0, None

    def scheduled(self, step):
        value = self.schedule.momentum_formula(ops.cast(step, "float32"), ops)
        return self.attribute, Traced(ops.cast(value, "float32"))


@keras.saving.register_keras_serializable("keras_dlopt")
class ScheduledMomentum(InGraphCallback):
    """Gives an optimizer the momentum of a schedule such as `schedules.OneCycle`.

    Keras' optimizers keep `beta_1` (Adam and its kin) or `momentum` (SGD) as a Python
    number, which a compiled train step holds fixed. While the step is traced this
    callback puts a tensor in its place that is computed from the optimizer's step, so
    the momentum follows the schedule at every step, also with
    `steps_per_execution > 1`. The number itself, hence the config, stays what it was.

    With beta_1 scheduled, Adam's correction 1 - beta_1^t uses the present beta_1, as in
    other implementations of one-cycle training.

    It drives Keras' own optimizers, and of this package's SGD, RMSprop, Adam and AdamW,
    also in their fused steps.

    Args:
        schedule: has `momentum_formula(step, xp)`, as `schedules.OneCycle` has.

    Raises:
        ConfigError: for a schedule without a momentum; when training starts, for an
            optimizer without one (SGD needs `momentum` above 0) or another of
            this package.

    Example:
        >>> from keras_dlopt.schedules import OneCycle
        >>> cycle = OneCycle(0.1, steps=100)
        >>> callback = ScheduledMomentum(cycle)
        >>> callback.schedule.peak
        0.1

    Source: Smith, "A disciplined approach to neural network hyper-parameters"
    (arXiv:1803.09820), section 4.3.
    """

    def __init__(self, schedule: Any):
        if not hasattr(schedule, "momentum_formula"):
            raise ConfigError(
                "ScheduledMomentum needs a schedule with a momentum, such as "
                f"schedules.OneCycle. Received: {schedule!r}."
            )
        self.schedule = schedule
        super().__init__()

    def make_controller(self) -> Controller:
        """Puts the schedule's momentum into the step."""
        return _Momentum(self.schedule)

    def set_model(self, model):
        optimizer = hub_of(model).inner_optimizer
        if not getattr(optimizer, "follows_momentum", True):
            raise ConfigError(
                "ScheduledMomentum drives Keras' own optimizers and SGD, RMSprop, Adam "
                f"and AdamW of this package. Received: {type(optimizer).__name__}, "
                "which fixes its momentum when it is traced. Compile with one of "
                "these, or leave the callback out."
            )
        names = [n for n in ("beta_1", "momentum") if getattr(optimizer, n, None)]
        if not names:
            raise ConfigError(
                f"The optimizer {type(optimizer).__name__} has no momentum that "
                "ScheduledMomentum could change: neither beta_1 nor a momentum above "
                "0. Compile with SGD(momentum=0.9) or Adam, or leave the callback out."
            )
        self.controller.attribute = names[0]  # type: ignore[attr-defined]
        super().set_model(model)
