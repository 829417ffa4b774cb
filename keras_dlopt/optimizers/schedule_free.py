"""ScheduleFree: averaging in place of a learning-rate schedule, for any rule."""

from typing import Any, NamedTuple

import keras
from keras import ops

from keras_dlopt import runtime
from keras_dlopt.errors import ConfigError, ModelError
from keras_dlopt.optimizers import _cells
from keras_dlopt.optimizers._cells import Joined
from keras_dlopt.optimizers._hyper import anything, hyper
from keras_dlopt.optimizers._options import share_kept
from keras_dlopt.optimizers.base import Optimizer

FIRST = 1e-6  # weight of the start in the average, in units of the first step's


class _Moves(NamedTuple):
    """Factors of one step: x = y - pull D; D -= before d; y = x + push D."""

    pull: Any
    before: Any
    push: Any


@keras.saving.register_keras_serializable("keras_dlopt")
class ScheduleFree(Optimizer):
    r"""Runs a rule on fast weights z and trains at a point near their average x.

    With the step d(g) of the base rule, and c_t = lr_t^2 / (lr_1^2 + ... + lr_t^2):

        z <- z - d(g) - lr * weight_decay * y       (g is the gradient at y)
        x <- (1 - c_t) x + c_t z
        y <- (1 - beta) z + beta x

    Stored are y, in the model, and the drift D = W (z - x), W = lr_1^2 + ... + lr_t^2,
    from which all three follow; a step of the base then costs two more passes:

        x = y - (1 - beta) / W_{t-1} * D
        D <- D - W_{t-1} (d(g) + lr * weight_decay * y)
        y <- x + (lr^2 / (W_{t-1} W_t) + (1 - beta) / W_t) D

    The model holds y while it trains. `fit` puts x in place when it ends; for
    validation in between use `with optimizer.averaged_weights(): ...`. Training may go
    on from there. The base should have no momentum of its own, such as
    `Adam(beta_1=0.0)` or `SGD()`; `beta` takes that role.

    State: that of the base and 4 bytes a parameter. On TensorFlow the base's kernel
    updates D, and all small weights are updated together, if the base does so.

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
    and equation 23 (weighting). Differs from the paper: the starting point has the
    weight 1e-6 lr_1^2 in the average, where the paper has 0.
    """

    couples_weights = True
    moves_all = True

    base: Any = hyper(default=None, check=anything)
    beta: float = hyper(default=0.9, check=share_kept)

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
        settings = base.get_config()
        if learning_rate is None:
            learning_rate = settings["learning_rate"]
            if isinstance(learning_rate, dict):
                learning_rate = keras.saving.deserialize_keras_object(learning_rate)
        options.setdefault("weight_decay", settings["weight_decay"])
        super().__init__(learning_rate, base=base, beta=beta, **options)
        self.elementwise = base.elementwise

    @property
    def fusable(self) -> bool:
        return self.base.fuses_anywhere

    @property
    def slot_names(self) -> tuple[str, ...]:
        return (*self.base.slot_names, "drift")

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        self.add_shared_variable("total", shape=())
        self.add_shared_variable("pull", shape=())

    def update(self, grads, cells, lr, step, *, shared, resting=()):
        moves, total, pull = self._moves(lr, shared)
        for gradient, cell in _cells.joined(self._built.slab, grads, cells):
            rate, number = cell.scalars(lr, step)
            own = _Moves(*(ops.cast(x, rate.dtype) for x in moves))
            self._update_cell(gradient, cell, rate, number, own)
        for cell in resting:
            if not cell.frozen:
                self._follow(cell, moves)
        runtime.assign(shared["total"], total)
        runtime.assign(shared["pull"], pull)

    def _moves(self, lr, shared):
        """The factors of this step, and the next `total` and `pull`."""
        square = ops.square(lr)
        before = ops.maximum(
            ops.maximum(runtime.read(shared["total"]), FIRST * square), 1e-30
        )
        after = before + square
        pull = (1 - self.beta) / after
        push = square / before / after + pull
        return _Moves(runtime.read(shared["pull"]), before, push), after, pull

    def _update_cell(self, gradient, cell, lr, step, moves):
        if self.fusable and not self.cautious and cell.fits_kernel:
            fused = self._fused_slab if isinstance(cell, Joined) else self._fused_cell
            fused(gradient, cell, lr, step, moves)
            return
        weight, slots = cell.read()
        drift = slots.pop("drift")
        if self.base.starts_apart and self._built.partial:
            step = cell.own_step(step)
        change, slots = self.base.rule(gradient, weight, slots, lr, step)
        change = self.decayed(change, gradient, weight, lr, cell.decay)
        mean = weight - moves.pull * drift
        drift = drift - moves.before * change
        cell.write(mean + moves.push * drift, {**slots, "drift": drift})

    def _follow(self, cell, moves):
        """A step whose base stands still: only the average and y move, towards z."""
        weight, drift = runtime.read(cell.weight), runtime.read(cell.slots["drift"])
        factor = ops.cast(moves.push - moves.pull, cell.dtype)
        runtime.assign(cell.weight, weight + factor * drift)

    def _fused_cell(self, gradient, cell, lr, step, moves):
        """The step in place: three or four kernels, no memory of their own."""
        import tensorflow as tf

        slots = dict(cell.slots)
        weight, drift = cell.weight, slots.pop("drift")

        def subtract(variable, factor, value):
            return tf.raw_ops.ResourceApplyGradientDescent(
                var=variable.handle, alpha=factor, delta=value
            )

        done = [subtract(weight, moves.pull, drift)]
        if cell.decay is not None:
            # y is x + pull * D by now.
            factor = moves.before * lr * cell.decay
            drift.assign(drift * (1 - factor * moves.pull), read_value=False)
            done = [subtract(drift, factor, weight)]
        # A kernel copies its variable while somebody else still reads it.
        with tf.control_dependencies([op for op in done if op is not None]):
            self.base.fused(gradient, drift, slots, lr * moves.before, step)
        subtract(weight, -moves.push, drift)

    def _fused_slab(self, gradient, slab, lr, step, moves):
        weight, slots = slab.weights(), dict(slab.slots)
        drift = slots.pop("drift")
        mean = weight - moves.pull * drift
        if slab.decay is not None:
            less = moves.before * lr * slab.decay * weight
            drift.assign_sub(less, read_value=False)
        self.base.fused(gradient, drift, slots, lr * moves.before, step)
        slab.write(mean + moves.push * drift.read_value(), {})

    def averages(self) -> list[Any]:
        """The averaged weights x, in the order of the weights; frozen ones, as is."""
        if not self.built:
            raise ModelError(
                "There are no averaged weights to read yet: train at least one step."
            )
        pull = runtime.read(self._built.shared["pull"])
        found = []
        for weight, drift in zip(
            self._built.variables, self._built.slots["drift"], strict=True
        ):
            if not getattr(weight, "trainable", True):
                found.append(runtime.value(weight))
                continue
            factor = ops.cast(pull, runtime.compute_dtype(weight))
            value = runtime.read(weight) - factor * runtime.read(drift)
            found.append(ops.cast(value, weight.dtype))
        return found

    def finalize_variable_values(self, var_list: Any) -> None:
        """Puts the averaged weights in place; `fit` calls it when it ends.

        All of them: `var_list` is there because Keras passes it.
        """
        if not self.built:
            return
        for variable, value in zip(self._built.variables, self.averages(), strict=True):
            variable.assign(value)
        # The weights are the average now, so there is nothing between them.
        self._built.shared["pull"].assign(0.0)

    def get_config(self) -> dict[str, Any]:
        base = keras.saving.serialize_keras_object(self.base)
        return {**super().get_config(), "base": base}
