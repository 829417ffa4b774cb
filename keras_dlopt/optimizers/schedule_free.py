"""ScheduleFree: averaging in place of a learning-rate schedule, for any rule."""

from typing import Any

import keras
from keras import ops

from keras_dlopt.errors import ConfigError, ModelError
from keras_dlopt.optimizers import _options
from keras_dlopt.optimizers._cells import assign, compute_dtype, read
from keras_dlopt.optimizers._moments import mean
from keras_dlopt.optimizers._updates import cautious
from keras_dlopt.optimizers.base import Optimizer


@keras.saving.register_keras_serializable("keras_dlopt")
class ScheduleFree(Optimizer):
    r"""Runs a rule on fast weights z and trains at a point near their average x.

    With the step d(g) of the base rule, and c_t = lr_t^2 / (lr_1^2 + ... + lr_t^2):

        z <- z - d(g) - lr * weight_decay * y       (g is the gradient at y)
        x <- (1 - c_t) x + c_t z
        y <- (1 - beta) z + beta x

    The model holds y while it trains. `fit` puts x in place when it ends; for
    validation in between use `with optimizer.averaged_weights(): ...`. Training may go
    on from there. The base should have no momentum of its own, such as
    `Adam(beta_1=0.0)` or `SGD()`; `beta` takes that role.

    State: that of the base and 8 bytes a parameter.

    Args:
        base: an optimizer of this package that has a rule of its own. Its learning rate
            and weight decay are used unless given here.
        beta: how far y lies towards the average, in [0, 1).
        learning_rate: None for that of `base`; a warm-up helps, a decay is not needed.
        **options: see `keras_dlopt.optimizers.Optimizer`.

    Raises:
        ConfigError: for a base without a rule of its own, and arguments out of range.

    Example:
        >>> v = keras.Variable([1.0])
        >>> free = ScheduleFree(dlopt.optimizers.SGD(0.5), beta=0.0)
        >>> for _ in range(2): free.apply([keras.ops.ones(1)], [v])
        >>> free.finalize_variable_values([v])
        >>> v.numpy().tolist()
        [0.25]

    Source: Defazio et al., "The Road Less Scheduled" (arXiv:2405.15682), algorithm 1
    and equation 23 (weighting). Differs from the paper: x is stored rather than solved
    for, so that weights can be swapped and training resumed at any step.
    """

    couples_weights = True

    def __init__(
        self,
        base: Optimizer,
        *,
        beta: float = 0.9,
        learning_rate: Any = None,
        **options: Any,
    ):
        if isinstance(base, dict):
            base = keras.saving.deserialize_keras_object(base)
        own_rule = isinstance(base, Optimizer) and not base.couples_weights
        if not own_rule:
            raise ConfigError(
                "ScheduleFree needs an optimizer of keras_dlopt with a rule per "
                f"weight, such as Adam(beta_1=0.0) or SGD(). Received: {base!r}."
            )
        _options.check_beta(beta, name="beta")
        settings = base.get_config()
        if learning_rate is None:
            learning_rate = settings["learning_rate"]
            if isinstance(learning_rate, dict):
                learning_rate = keras.saving.deserialize_keras_object(learning_rate)
        options.setdefault("weight_decay", settings["weight_decay"])
        super().__init__(learning_rate, **options)
        self.base = base
        self.beta = beta

    @property
    def slot_names(self) -> tuple[str, ...]:
        return (*self.base.slot_names, "fast", "mean")

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        self.add_shared_variable("total", shape=())

    def update(self, grads, cells, lr, step, *, shared):
        total = read(shared["total"]) + ops.square(lr)
        share = ops.square(lr) / ops.maximum(total, 1e-30)
        assign(shared["total"], total)
        for gradient, cell in zip(grads, cells, strict=True):
            self._update_cell(gradient, cell, lr * cell.multiplier, step, share)

    def _update_cell(self, gradient, cell, lr, step, share):
        dtype = compute_dtype(cell.weight)
        lr, step, share = (ops.cast(x, dtype) for x in (lr, step, share))
        weight = read(cell.weight)
        slots = {name: read(v) for name, v in cell.slots.items()}
        z = ops.where(step > 1, slots.pop("fast"), weight)
        x = ops.where(step > 1, slots.pop("mean"), weight)
        change, slots = self.base.rule(gradient, weight, slots, lr, step)
        if self.cautious:
            change = cautious(change, gradient)
        if cell.decay:
            change = change + lr * cell.decay * weight
        z = z - change
        x = mean(x, z, 1 - share)
        slots |= {"fast": z, "mean": x}
        for name, value in slots.items():
            assign(cell.slots[name], value)
        assign(cell.weight, mean(z, x, 1 - self.beta))

    def averages(self) -> list[Any]:
        """The averaged weights x, in the order of the weights."""
        if not self.built:
            raise ModelError(
                "There are no averaged weights to read yet: train at least one step."
            )
        return [ops.convert_to_tensor(v) for v in self._state.slots["mean"]]

    def finalize_variable_values(self, var_list: Any) -> None:
        """Puts the averaged weights in place; `fit` calls it when it ends."""
        if not self.built:
            return
        for variable in var_list:
            index = self._index(variable)
            variable.assign(self._state.slots["mean"][index])

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "base": keras.saving.serialize_keras_object(self.base),
            "beta": self.beta,
        }
