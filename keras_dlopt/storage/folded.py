"""BatchNormalization folded into kernels whose codes stay what they are."""

import collections

import keras
import numpy as np
from keras import layers

from keras_dlopt.codecs.grid import rebuild
from keras_dlopt.codecs.hints import Grid
from keras_dlopt.codecs.lattice import find_grid
from keras_dlopt.errors import ModelError
from keras_dlopt.graph.folding import fold_batch_normalization
from keras_dlopt.graph.walk import walk

CLOSE = 4e-7  # relative: three roundings of float32


def folded(model: keras.Model) -> keras.Model:
    """The same function without the BatchNormalization after its kernels.

    A kernel on a grid of integer codes times scales is multiplied by channel; rounded
    once more it would lie on no grid. So the scales are multiplied, and the kernel is
    the same codes times those.

    Raises:
        ModelError: for a model that cannot be taken apart, or in which nothing folds.
    """
    new = fold_batch_normalization(model)
    if _count(new) == _count(model):
        raise ModelError(
            f"fold=True: the model {model.name!r} has {_count(model)} "
            "BatchNormalization layers, and none stands alone behind a convolution or "
            "dense layer. Save it with fold=False."
        )
    known = collections.Counter(v.path for v in model.weights)
    kernels = {v.path: _numbers(v) for v in model.weights if known[v.path] == 1}
    for weight in new.weights:
        before, after = kernels.get(weight.path), _numbers(weight)
        if before is None or before.ndim < 2 or before.shape != after.shape:
            continue
        if not np.array_equal(before, after):
            weight.assign(_on_grid(before, after))
    return new


def _on_grid(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """The kernel after folding, on the grid of the one before if there is one."""
    grid = find_grid(before)
    if grid is None:
        return after
    scale = _multiplied(grid, before, after)
    # A negative scale would make zeros of another sign, which no grid found has.
    codes = np.asarray(grid.codes) * np.sign(scale).astype(np.int64)
    kernel = rebuild(codes, np.abs(scale), after.dtype)
    error = np.abs(kernel.astype(np.float64) - after.astype(np.float64))
    return kernel if (error <= CLOSE * np.abs(after)).all() else after


def _multiplied(grid: Grid, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """The scales, times what the channels were multiplied by."""
    wide = np.where(before == 0, np.nan, before).astype(np.float64)
    ratio = after.astype(np.float64) / wide
    for axis in range(ratio.ndim):
        ends = [_over(f, ratio, axis) for f in (np.fmin, np.fmax)]
        spread = np.abs(ends[1] - ends[0]) <= CLOSE * np.abs(ends[1])
        if (spread | np.isnan(ends[0])).all():
            ratio = (ends[0] + ends[1]) / 2
    scale = np.asarray(grid.scale).astype(np.float64) * np.nan_to_num(ratio)
    return scale.astype(np.float32)


def _over(function: np.ufunc, ratio: np.ndarray, axis: int) -> np.ndarray:
    found: np.ndarray = function.reduce(ratio, axis=axis, keepdims=True)
    return found


def _numbers(variable: keras.Variable) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(variable.value))


def _count(model: keras.Model) -> int:
    return sum(isinstance(one, layers.BatchNormalization) for _, one, _ in walk(model))
