"""The optimizer base class: a method is what it declares and a pure rule.

A method writes `rule(gradient, weight, slots, lr, step) -> (change, slots)` in ops,
names its slots and declares its hyper-parameters. This class runs the rule on each
weight, or a fused kernel in its place; `_engine` does what goes on around that.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import keras
from keras import ops

from keras_dlopt import _compat, checks, runtime
from keras_dlopt.config import encode
from keras_dlopt.errors import ModelError
from keras_dlopt.optimizers import _cells, _options, _slab
from keras_dlopt.optimizers._cells import Cell, Joined
from keras_dlopt.optimizers._engine import Engine
from keras_dlopt.optimizers._hyper import Declared, anything, hyper

# What the constructor of `keras.optimizers.Optimizer` takes, and keeps.
OF_KERAS = (
    *("name", "learning_rate", "weight_decay", "clipnorm", "global_clipnorm"),
    *("clipvalue", "use_ema", "ema_momentum", "ema_overwrite_frequency"),
    *("loss_scale_factor", "gradient_accumulation_steps"),
)


class Optimizer(Declared, Engine):
    """Base class of the optimizers of this package.

    Takes every argument of `keras.optimizers.Optimizer` and the ones below. Unlike
    there, clipping acts on the gradient of the whole batch, also under a TensorFlow
    strategy, and accumulation and averaging work under `MirroredStrategy`.

    Args:
        learning_rate: float, schedule, or callable without arguments.
        cautious: leave out the entries of a step that point against the gradient, and
            scale the others up by the share left out (arXiv:2411.16085, algorithm 1).
        centralize: subtract each gradient's mean over the inputs of a unit.
        adaptive_clip: largest ratio of the norm of a unit's gradient to that of its
            weights, about 0.01; None for no limit.
        multipliers: (selector, factor) pairs; the first that matches a weight's path
            scales its learning rate, 0 freezes it.
        decay_on: selector of the weights that `weight_decay` acts on; None for all.
        skip_nonfinite: leave weights and state alone in a step whose gradients hold NaN
            or infinity.
        weight_decay: decoupled: w <- w - lr * weight_decay * w.
        clipnorm: as in Keras, like all that follow.
        global_clipnorm: largest norm of all gradients together.
        clipvalue: largest entry of a gradient.
        use_ema: whether to keep an average of the weights.
        ema_momentum: share of that average kept at each step.
        ema_overwrite_frequency: steps between two moves of the weights onto it.
        loss_scale_factor: what the loss is multiplied by, and gradients divided.
        gradient_accumulation_steps: gradients whose mean makes one update.
        name: name of the optimizer.

    Raises:
        ConfigError: for a negative rate, a selector that matches nothing, and other
            arguments out of range.
    """

    of_parent: ClassVar[tuple[str, ...]] = OF_KERAS

    learning_rate: Any = hyper(default=0.001, check=_options.learning_rate)
    cautious: bool = hyper(default=False, check=checks.boolean)
    centralize: bool = hyper(default=False, check=checks.boolean)
    adaptive_clip: float | None = hyper(default=None, check=checks.positive)
    multipliers: Sequence[Any] = hyper(default=(), check=_options.multipliers)
    decay_on: Any = hyper(default=None, check=_options.selector)
    skip_nonfinite: bool = hyper(default=False, check=checks.boolean)
    weight_decay: float | None = hyper(default=None, check=checks.rate)
    clipnorm: float | None = hyper(default=None, check=checks.rate)
    global_clipnorm: float | None = hyper(default=None, check=checks.rate)
    clipvalue: float | None = hyper(default=None, check=checks.rate)
    use_ema: bool = hyper(default=False, check=checks.boolean)
    ema_momentum: float = hyper(default=0.99, check=checks.probability)
    ema_overwrite_frequency: int | None = hyper(default=None, check=checks.count)
    loss_scale_factor: float | None = hyper(default=None, check=checks.positive)
    gradient_accumulation_steps: int | None = hyper(
        default=None, check=checks.whole, least=0
    )
    name: str | None = hyper(default=None, check=anything)

    # Whether the rule treats every entry alike, so that weights can be joined.
    elementwise = False
    # Whether one weight's step depends on the others, or needs more than `rule` and
    # state that starts at 0.
    couples_weights = False
    # Whether `rule` and `fused` take a tensor as `beta_1` or `momentum`.
    follows_momentum = False
    # Whether the first gradient of a weight makes another step than the later ones; the
    # slot "velocity" must tell that there was one.
    starts_apart = False

    # -- what a method writes ---------------------------------------------------------

    @property
    def slot_names(self) -> tuple[str, ...]:
        """State per weight that `build` adds, all of the weight's shape."""
        return ()

    @property
    def fuses_anywhere(self) -> bool:
        """Whether `fused` can step another variable than the weight, scaled by `lr`.

        It must neither read the weight nor let the learning rate into the state.
        """
        return False

    @property
    def fusable(self) -> bool:
        """Whether `fused` may be called in place of `rule` on TensorFlow."""
        return False

    def rule(
        self, gradient: Any, weight: Any, slots: dict[str, Any], lr: Any, step: Any
    ) -> tuple[Any, dict[str, Any]]:
        """The method, without side effects.

        Args:
            gradient: of the weight, after clipping.
            weight: tensor of the same shape.
            slots: the weight's state by name.
            lr: learning rate, a scalar tensor.
            step: number of this update, from 1, a scalar tensor.

        Returns:
            What to subtract from the weight, and the new state.
        """
        raise TypeError(f"{type(self).__name__} must define `rule` or `update`.")

    def fused(
        self, gradient: Any, weight: Any, slots: dict[str, Any], lr: Any, step: Any
    ) -> None:
        """The rule as one TensorFlow kernel on variables; used when `fusable`."""
        raise TypeError(f"{type(self).__name__} is fusable and must define `fused`.")

    # -- state ------------------------------------------------------------------------

    def build(self, variables: Sequence[Any]) -> None:
        """Creates the state for `variables`."""
        if self.built:
            return
        super().build(variables)
        missing = [name for name in self.slot_names if name not in self._built.slots]
        if missing:
            self.add_optimizer_variables(self._built.variables, missing)

    def plan_slab(self, variables: list[Any]) -> _slab.Slab | None:
        """The slab of the small variables, where the rule allows one."""
        if not self.elementwise or self.cautious or not self.slot_names:
            return None
        eligible = [
            multiplier == 1.0 and not getattr(v, "overwrite_with_gradient", False)
            for v, multiplier in zip(variables, self._built.multipliers, strict=True)
        ]
        return _slab.plan(variables, eligible=eligible)

    def add_variable_from_reference(
        self, reference_variable: Any, name: Any = None, initializer: Any = "zeros"
    ) -> Any:
        slab = self._built.slab
        index = _compat.place_of(self, reference_variable)
        if slab is None or index not in slab.places or name not in self.slot_names:
            return super().add_variable_from_reference(
                reference_variable, name=name, initializer=initializer
            )
        path = getattr(reference_variable, "path", reference_variable.name)
        path = path.replace("/", "_").replace(":", "_")
        with keras.name_scope(self.name):
            piece = slab.slice(
                index, name, name=f"{path}_{name}", initializer=initializer
            )
        _compat.track_state(self, piece)
        return piece

    def state_beside(self, variable: Any, name: str, shape: Any, dtype: Any) -> Any:
        """State of one variable that has another shape or dtype than it."""
        path = getattr(variable, "path", variable.name).replace("/", "_")
        return self.add_variable(tuple(shape), dtype=dtype, name=f"{path}_{name}")

    # -- one update -------------------------------------------------------------------

    def update(
        self, grads: list[Any], cells: list[Cell], lr: Any, step: Any, *, shared: Any
    ) -> None:
        """Updates all weights; methods that couple them write their own."""
        for gradient, cell in _cells.joined(self._built.slab, grads, cells):
            self.update_cell(gradient, cell, *cell.scalars(lr, step))

    def update_cell(
        self, gradient: Any, cell: Cell | Joined, lr: Any, step: Any
    ) -> None:
        """Updates one weight, or all small ones as one, and the state."""
        if runtime.is_sparse(gradient) and not cell.in_slab:
            assert isinstance(cell, Cell)
            cell.shrink(lr, step)
            self.update_step(gradient, cell.weight, lr)
            return
        gradient = runtime.densify(gradient)
        if self.fusable and not self.cautious and cell.fits_kernel:
            with cell.in_place(lr, step) as variable:
                self.fused(gradient, variable, cell.slots, lr, step)
        else:
            weight, slots = cell.read()
            step = self.step_of(cell, step)
            change, slots = self.rule(gradient, weight, slots, lr, step)
            change = self.decayed(change, gradient, weight, lr, cell.decay)
            cell.write(weight - change, slots)

    def step_of(self, cell: Cell | Joined, step: Any) -> Any:
        """The step as the rule should see it: 1 for a weight's first gradient."""
        later = self.starts_apart and self._built.partial
        return cell.own_step(step) if later else step

    def decayed(
        self, change: Any, gradient: Any, weight: Any, lr: Any, decay: Any
    ) -> Any:
        """A change made cautious, if asked for, and with the decay."""
        if self.cautious:
            agrees = ops.cast(change * gradient > 0, change.dtype)
            change = change * agrees / ops.maximum(ops.mean(agrees), 1e-3)
        return change if decay is None else change + lr * decay * weight

    # -- averages ---------------------------------------------------------------------

    def averages(self) -> list[Any]:
        """The averaged weights, in the order of the weights; needs `use_ema=True`."""
        if not self.use_ema or not self.built:
            raise ModelError(
                "There are no averaged weights to read: create the optimizer with "
                "use_ema=True and train at least one step."
            )
        return [ops.convert_to_tensor(v) for v in self._built.slots["average"]]

    def finalize_variable_values(self, var_list: Any) -> None:
        """Puts the averaged weights in place, if kept; `fit` calls it when it ends.

        Args:
            var_list: the weights to change, in any order.
        """
        if not self.use_ema or not self.built:
            return
        for variable in var_list:
            index = _compat.place_of(self, variable)
            average = None if index is None else self._built.slots["average"][index]
            if average is not None:
                variable.assign(ops.convert_to_tensor(average))

    @contextlib.contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Puts the averaged weights in place inside a `with` block, then back.

        Example:
            >>> import keras, keras_dlopt.optimizers
            >>> v = keras.Variable([1.0])
            >>> sgd = keras_dlopt.optimizers.SGD(1.0, use_ema=True, ema_momentum=0.5)
            >>> for _ in range(2): sgd.apply([keras.ops.ones(1)], [v])
            >>> with sgd.averaged_weights(): print(float(v[0]))
            -0.5
        """
        variables, values = self._built.variables, self.averages()
        before = [ops.copy(v) for v in variables]
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)
        try:
            yield
        finally:
            for variable, value in zip(variables, before, strict=True):
                variable.assign(value)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, in order."""
        of_keras = super().get_config()
        return {
            name: of_keras[name] if name in OF_KERAS else encode(getattr(self, name))
            for name in self.hypers
        }
