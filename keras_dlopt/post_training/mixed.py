"""Mixed precision: bits for each kernel, chosen by sensitivity under a size budget."""

import dataclasses
from typing import Any

import keras
import numpy as np

from keras_dlopt.errors import ConfigError
from keras_dlopt.graph.copying import copy_model
from keras_dlopt.int8.recipes import kernel_targets
from keras_dlopt.post_training.data import Batches, Outputs
from keras_dlopt.runtime.values import to_numpy
from keras_dlopt.select import at
from keras_dlopt.transforms import FakeQuant, Recipe

_CELLS = 4096  # the budget is counted in this many parts


@dataclasses.dataclass(frozen=True)
class MixedPrecision:
    """The bits of each kernel.

    Attributes:
        bits: path of the kernel -> bits.
        size: of all kernels and their scales in bytes.
        damage: the sum of what each kernel alone does to the outputs.
        sensitivity: path -> bits -> relative squared error of the outputs when that
            kernel alone has so many bits.
    """

    bits: dict[str, int]
    size: int
    damage: float
    sensitivity: dict[str, dict[int, float]]

    def recipe(self, **arguments: Any) -> Recipe:
        """The recipe entries of the kernels, one for each number of bits.

        Args:
            **arguments: of every `FakeQuant`, such as `observer="mse"`.
        """
        return Recipe(
            (
                at(*(path for path, b in self.bits.items() if b == bits)),
                FakeQuant(bits=bits, **arguments),
            )
            for bits in sorted(set(self.bits.values()))
        )


def sensitivity(
    model: keras.Model,
    data: Any,
    *,
    bits: tuple[int, ...] = (2, 3, 4, 8),
    observer: str = "mse",
    batch_size: int = 64,
    limit: int = 256,
) -> dict[str, dict[int, float]]:
    """What each kernel alone does to the outputs at each number of bits.

        sum |f_quantized(x) - f(x)|^2 / sum |f(x) - mean f|^2

    needs no labels, and is 0 for no change. `keras_dlopt.sensitivity` measures loss and
    accuracy instead, with labels, and pruning too.

    Args:
        model: a trained, built Keras model; it stays as it is.
        data: examples without labels.
        bits: to try, 2 to 16 each.
        observer: of the kernels' ranges.
        batch_size: for arrays.
        limit: how many examples are used at most.

    Returns:
        Path of the kernel -> bits -> relative squared error.

    Raises:
        ConfigError: for bits that are not there, or a model without kernels.
        DataError: for data that is empty or does not fit the model.
    """
    if not bits:
        raise ConfigError("bits must name at least one width, such as (4, 8).")
    grids = {b: FakeQuant(bits=b, observer=observer) for b in sorted(set(bits))}
    batches = Batches(model, data, batch_size=batch_size, limit=limit)
    twin = copy_model(model)
    targets = kernel_targets(twin)
    if not targets:
        raise ConfigError(f"{model.name!r} has no kernels to quantize.")
    outputs = Outputs(twin, batches)
    found: dict[str, dict[int, float]] = {}
    for target in targets:
        weight = to_numpy(target.variable)
        found[target.path] = {}
        for b, grid in grids.items():
            state = {k: v.value for k, v in grid.init(target, weight).items()}
            target.variable.assign(grid.finalize(target, weight, state)[0])
            found[target.path][b] = outputs.change()
        target.variable.assign(weight)
    return found


def mixed_precision(
    model: keras.Model,
    data: Any,
    *,
    budget: int,
    bits: tuple[int, ...] = (2, 3, 4, 8),
    observer: str = "mse",
    batch_size: int = 64,
    limit: int = 256,
) -> MixedPrecision:
    """Chooses the bits of each kernel that do least damage within a budget.

    Measures each kernel alone (see `sensitivity`) and takes the choice with the
    smallest sum of squared errors whose kernels and scales fit: a knapsack with one
    choice a kernel, solved exactly on a budget counted in bytes, or in 4096 parts if
    those are larger.

    Args:
        model: a trained, built Keras model; it stays as it is.
        data: examples without labels.
        budget: bytes of all kernels and their scales, before entropy coding.
        bits: to choose from, 2 to 16 each.
        observer: of the kernels' ranges.
        batch_size: for arrays.
        limit: how many examples are used at most.

    Returns:
        The choice; `quantize(model, data, recipe=choice.recipe())` applies it.

    Raises:
        ConfigError: for a budget below the size at the fewest bits.
        DataError: for data that is empty or does not fit the model.

    Source: the problem of Dong et al., "HAWQ-V2" (arXiv:1911.03852), section 3.2, with
    measured errors in place of traces of the Hessian.
    """
    found = sensitivity(
        model,
        data,
        bits=bits,
        observer=observer,
        batch_size=batch_size,
        limit=limit,
    )
    sizes = {
        t.path: {b: _size(t, b) for b in found[t.path]} for t in kernel_targets(model)
    }
    least = sum(min(options.values()) for options in sizes.values())
    if least > budget:
        raise ConfigError(
            f"The kernels of {model.name!r} need at least {least} bytes, with "
            f"{min(bits)} bits each. Received: budget={budget}. Allow fewer bits, "
            "raise the budget, or make the kernels smaller first, as factorize does."
        )
    chosen = _knapsack(sizes, found, budget)
    return MixedPrecision(
        bits=chosen,
        size=sum(sizes[path][b] for path, b in chosen.items()),
        damage=sum(found[path][b] for path, b in chosen.items()),
        sensitivity=found,
    )


def _size(target: Any, bits: int) -> int:
    """Bytes of the codes and scales of one kernel."""
    shape = target.variable.shape
    grid = FakeQuant(bits=bits)
    scales = grid.scale(target, np.zeros(shape, "float32")).size
    return -(-int(np.prod(shape)) * bits // 8) + 4 * scales


def _knapsack(
    sizes: dict[str, dict[int, int]], costs: dict[str, dict[int, float]], budget: int
) -> dict[str, int]:
    """One choice a row with the smallest sum of costs, the sum of sizes in budget."""
    # What every row costs anyway needs no cells.
    base = sum(min(row.values()) for row in sizes.values())
    cells = min(_CELLS, budget - base)
    cell = (budget - base) / cells if cells else 1.0
    best = np.zeros(cells + 1)
    picks = []
    for path, row in sizes.items():
        smallest = min(row.values())
        options = list(row)
        table = np.full((len(options), cells + 1), np.inf)
        for i, b in enumerate(options):
            # Rounded up, so that the budget holds.
            need = int(np.ceil((row[b] - smallest) / cell - 1e-9))
            if need <= cells:
                table[i, need:] = best[: cells + 1 - need] + costs[path][b]
        pick = table.argmin(axis=0)
        best = table.min(axis=0)
        picks.append((path, options, pick, smallest, row))
    chosen, left = {}, cells
    for path, options, pick, smallest, row in reversed(picks):
        b = options[int(pick[left])]
        chosen[path] = b
        left -= int(np.ceil((row[b] - smallest) / cell - 1e-9))
    return dict(reversed(chosen.items()))
