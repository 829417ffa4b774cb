"""L-BFGS: steps by the curvature seen in the last few, for full-batch training."""

import math
from typing import Any

import keras
from keras import ops

from keras_dlopt import checks, runtime
from keras_dlopt.errors import ConfigError, ModelError
from keras_dlopt.optimizers import _options
from keras_dlopt.optimizers._hyper import hyper
from keras_dlopt.optimizers.base import Optimizer

# Largest number of weights whose history may be kept; a guard against surprise.
MAX_PARAMETERS = 2_000_000


def lbfgs_direction(gradient: Any, moves: Any, changes: Any) -> Any:
    """The inverse Hessian, as the history knows it, times the gradient.

    Args:
        gradient: tensor (n,).
        moves: differences of the weights, (memory, n), oldest first; 0 where empty.
        changes: differences of the gradient, the same way.
    """
    memory = moves.shape[0]
    dots = ops.sum(moves * changes, axis=1)
    rho = ops.where(dots > 0, 1 / ops.maximum(dots, 1e-30), 0.0)
    alphas = [None] * memory
    q = gradient
    for i in reversed(range(memory)):
        alphas[i] = rho[i] * ops.sum(moves[i] * q)
        q = q - alphas[i] * changes[i]
    square = ops.sum(ops.square(changes[-1]))
    known = ops.logical_and(dots[-1] > 0, square > 0)
    q = q * ops.where(known, dots[-1] / ops.maximum(square, 1e-30), 1.0)
    for i in range(memory):
        beta = rho[i] * ops.sum(changes[i] * q)
        q = q + moves[i] * (alphas[i] - beta)
    return q


def remember(history: Any, row: Any, keep: Any) -> Any:
    """The history with `row` as its newest entry, if `keep`."""
    longer = ops.concatenate([history[1:], row[None]])
    return ops.where(keep, longer, history)


@keras.saving.register_keras_serializable("keras_dlopt")
class LBFGS(Optimizer):
    r"""Limited-memory BFGS on all weights together, without line search.

    With weights w, gradient g, s = w - w_previous, y = g - g_previous:

        remember (s, y) if <s, y> > 1e-10 |s| |y|; forget the oldest
        w <- w - lr * H g           H from the last `memory` pairs, two-loop recursion
        first step: w <- w - lr * min(1, 1 / |g|_1) g

    Gradients must come from the same data at every step: give `fit` all data as one
    batch, or set `gradient_accumulation_steps` to the batches of an epoch. Models above
    2 million parameters are refused.

    State: 8 (memory + 1) bytes a parameter.

    Args:
        learning_rate: step length, 1 for Newton's step; smaller where the loss is far
            from quadratic.
        memory: pairs remembered, 5 to 20.
        max_step: longest step, as the norm over all weights; None for no limit.
        **options: see `keras_dlopt.optimizers.Optimizer`, except `cautious` and
            `multipliers`.

    Raises:
        ConfigError: for arguments out of range.
        ModelError: for more than 2 million parameters.

    Example:
        >>> v = keras.Variable([1.0, 1.0])
        >>> lbfgs = LBFGS()
        >>> for _ in range(10): lbfgs.apply([v * keras.ops.array([1.0, 30.0])], [v])
        >>> bool(abs(v.numpy()).max() < 1e-3)
        True

    Source: Nocedal and Wright, "Numerical Optimization" (2nd ed.), algorithms 7.4 and
    7.5. Differs from the book: no line search, for a loss cannot be evaluated from an
    optimizer; pairs of too little curvature are left out instead.
    """

    couples_weights = True

    learning_rate: Any = hyper(default=1.0, check=_options.learning_rate)
    memory: int = hyper(default=10, check=checks.count)
    max_step: float | None = hyper(default=None, check=checks.positive)

    @classmethod
    def checked(cls, given: dict[str, Any]) -> dict[str, Any]:
        values = super().checked(given)
        if values["cautious"] or values["multipliers"]:
            raise ConfigError(
                "LBFGS moves all weights along one direction, which `cautious` and "
                "`multipliers` would bend. Leave them out."
            )
        return values

    def build(self, variables):
        if self.built:
            return
        total = sum(math.prod(v.shape) for v in variables)
        if total > MAX_PARAMETERS:
            raise ModelError(
                f"LBFGS keeps {2 * self.memory + 2} copies of all weights and is meant "
                f"for small models. Received: {total} parameters, more than "
                f"{MAX_PARAMETERS}. Use SOAP or Adam."
            )
        super().build(variables)
        dtype = _widest(variables)
        for name in ("moves", "changes"):
            self.add_shared_variable(name, shape=(self.memory, total), dtype=dtype)
        for name in ("previous_weights", "previous_gradient"):
            self.add_shared_variable(name, shape=(total,), dtype=dtype)

    def update(self, grads, cells, lr, step, *, shared):
        if len(cells) != len(self._built.variables):
            raise ModelError(
                "LBFGS needs a gradient for every weight it was built with. Received: "
                f"{len(cells)} of {len(self._built.variables)}. Freeze the others "
                "before compiling."
            )
        pairs = sorted(zip(cells, grads, strict=True), key=lambda pair: pair[0].index)
        dtype = _widest([cell.weight for cell, _ in pairs])
        lr = ops.cast(lr, dtype)
        w = _join([runtime.read(cell.weight) for cell, _ in pairs], dtype)
        g = _join([g for _, g in pairs], dtype)
        s = w - runtime.read(shared["previous_weights"])
        y = g - runtime.read(shared["previous_gradient"])
        curved = ops.sum(s * y) > 1e-10 * _norm(s) * _norm(y)
        keep = ops.logical_and(step > 1, curved)
        moves = remember(runtime.read(shared["moves"]), s, keep)
        changes = remember(runtime.read(shared["changes"]), y, keep)
        first = ops.minimum(1.0, 1.0 / ops.maximum(ops.sum(ops.abs(g)), 1e-30))
        change = ops.where(step > 1, lbfgs_direction(g, moves, changes), first * g)
        change = lr * change
        if self.max_step is not None:
            change = change * ops.minimum(
                1.0, self.max_step / ops.maximum(_norm(change), 1e-30)
            )
        new = {"previous_weights": w, "previous_gradient": g}
        for name, value in {**new, "moves": moves, "changes": changes}.items():
            runtime.assign(shared[name], value)
        start = 0
        for cell, _ in pairs:
            shape = tuple(cell.weight.shape)
            stop = start + math.prod(shape)
            part = ops.reshape(change[start:stop], shape)
            value = ops.cast(runtime.read(cell.weight), dtype)
            runtime.assign(cell.weight, value - part - lr * (cell.decay or 0.0) * value)
            start = stop


def _join(tensors: list[Any], dtype: str) -> Any:
    return ops.concatenate([ops.reshape(ops.cast(t, dtype), (-1,)) for t in tensors])


def _widest(variables: list[Any]) -> str:
    wide = any(runtime.compute_dtype(v) == "float64" for v in variables)
    return "float64" if wide else "float32"


def _norm(x: Any) -> Any:
    return ops.sqrt(ops.sum(ops.square(x)))
