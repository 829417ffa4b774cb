"""Rounding a trained model into few bytes, without training it again."""

import math
from typing import Any

import keras
import numpy as np
from keras import layers

from keras_dlopt import checks
from keras_dlopt.codecs.tensor import encode_tensor
from keras_dlopt.errors import ConfigError
from keras_dlopt.graph.copying import copy_model
from keras_dlopt.graph.kinds import ends_linear
from keras_dlopt.graph.linear import Linear, fused_normalization, linear_layers, watch
from keras_dlopt.graph.trace import trace
from keras_dlopt.int8.recipes import kernel_targets
from keras_dlopt.post_training.data import Batches, Outputs
from keras_dlopt.post_training.surgeon import (
    Coded,
    SeenKernel,
    coded_at,
    from_rows,
    inputs_of,
    rounded,
    upper_of,
)
from keras_dlopt.runtime.values import to_numpy
from keras_dlopt.transforms.updating import hosts

PROBE = 0.25  # of a standard deviation: the step at which a kernel is weighed
PRICES = (-30.0, 10.0)  # their logarithms
NEAR, EXACT = 0.5, 6  # of the logarithm; and prices whose records are written


def rate_distortion(
    model: keras.Model,
    data: Any,
    *,
    budget: int,
    batch_size: int = 32,
    limit: int = 1024,
    example: Any = None,
) -> keras.Model:
    r"""Rounds kernels so that the compressed file has few bytes, without training.

    Each kernel becomes whole numbers of one step, where a code is taken not only for
    being near but for being short in the file, and each rounding is made up for by the
    weights that are rounded after it:

        q_i = argmin (w_i - step q)^2 / U_ii^2 * gain + price * bits(q)
        w_j <- w_j - (w_i - step q_i) U_ij / U_ii   for j > i,   U'U = H^-1

    with H the second moments of the layer's inputs about their mean, for `Dense`,
    `Conv1D`, `Conv2D` and `DepthwiseConv2D`; the inputs of other kernels count alike.
    `gain` is measured: what the outputs of the model change when that kernel alone is
    rounded. Bits are those of the codes' shares by row, column and magnitude. Steps
    are chosen by the same sum, and the price until the kernels fit into the budget.
    What rounding does to the mean of an output goes into the bias, or into the moving
    mean of a BatchNormalization that follows.

    Args:
        model: a trained, built Keras model; it stays as it is.
        data: examples without labels.
        budget: bytes of all kernels in the file of `save_compressed`.
        batch_size: for arrays.
        limit: how many examples are used at most.
        example: a batch of inputs, for models that do not know their input's shape.

    Returns:
        A model of the same architecture. `save_compressed` finds its grids.

    Raises:
        ConfigError: for a model without kernels or with transforms, values that are
            not finite, or a budget that is too small for kernels of zeros.
        DataError: for data that is empty or does not fit the model.

    Example:
        >>> import keras, numpy as np
        >>> model = keras.Sequential([keras.Input((20,)), keras.layers.Dense(30)])
        >>> x = np.random.default_rng(0).normal(size=(64, 20))
        >>> small = rate_distortion(model, x, budget=250)
        >>> np.unique(small.layers[0].kernel).size < 16
        True

    Source: Conzelmann and Bamler, "Reducing Storage of Pretrained Neural Networks by
    Rate-Constrained Quantization and Entropy Coding" (arXiv:2505.18758), section 3;
    Frantar et al., "GPTQ" (arXiv:2210.17323), equations 2 and 3, for the order.
    Differs from the paper: bits are counted on the codes of a first pass instead of
    taken from the state of the coder, and layers weigh by their measured gain.
    """
    checks.count(budget, name="budget", hint="Bytes of all kernels in the file.")
    if hosts(model):
        raise ConfigError(
            f"{model.name!r} holds transforms, which would round its kernels once "
            "more. Pass finalize(model)."
        )
    twin = copy_model(model)
    batches = Batches(twin, data, batch_size=batch_size, limit=limit)
    kernels = [
        SeenKernel(target, to_numpy(target.variable).astype("float32"))
        for target in kernel_targets(twin)
        if target.variable.ndim > 1
    ]
    if not kernels:
        raise ConfigError(f"{model.name!r} has no kernels to round.")
    for kernel in kernels:
        if not np.isfinite(kernel.weight).all():
            raise ConfigError(
                f"{kernel.target.path} has values that are not finite, of which none "
                "is near to a code. Give a model without them."
            )
    _look_at_inputs(twin, kernels, batches, example)
    _weigh(twin, kernels, batches)
    for kernel, coded in zip(kernels, _within(kernels, budget), strict=True):
        _assign(kernel, coded)
    return twin


def _look_at_inputs(
    model: keras.Model, kernels: list[SeenKernel], batches: Batches, example: Any
) -> None:
    """Gives kernels the moments of their inputs."""
    graph = trace(model, example)
    by_layer = {id(k.target.layer): k for k in kernels}
    watched: list[tuple[Linear, SeenKernel]] = []
    for linear in linear_layers(model, graph):
        kernel = by_layer.get(id(linear.layer))
        known = isinstance(linear.layer, _SEEN)
        if kernel is not None and known and kernel.target.name == "kernel":
            watched.append((linear, kernel))
            # Behind an activation a normalization takes something else.
            if not linear.layer.use_bias and ends_linear(linear.layer):
                kernel.normalization = fused_normalization(graph, linear.layer)
    sums: list[list[Any]] = [[0, 0.0, 0.0] for _ in watched]

    def note(i: int, inputs: Any, _: Any) -> None:
        rows = inputs_of(watched[i][0].layer, inputs).astype("float64")
        sums[i][0] += rows.shape[1]
        sums[i][1] = sums[i][1] + rows.sum(axis=1)
        sums[i][2] = sums[i][2] + np.swapaxes(rows, 1, 2) @ rows

    watch(model, batches, [linear.layer for linear, _ in watched], note)
    for (linear, kernel), (count, total, square) in zip(watched, sums, strict=True):
        if not count:  # a layer that these examples do not come to
            continue
        mean = total / count
        moments = square / count
        if linear.layer.use_bias or kernel.normalization is not None:
            kernel.mean = mean
            moments -= mean[:, :, None] * mean[:, None, :]
        kernel.upper = upper_of(moments)


_SEEN = (layers.Dense, layers.Conv1D, layers.Conv2D, layers.DepthwiseConv2D)


def _weigh(model: keras.Model, kernels: list[SeenKernel], batches: Batches) -> None:
    """Measures what the outputs change for an error of each kernel."""
    outputs = Outputs(model, batches)
    for kernel in kernels:
        step = PROBE * float(kernel.weight.std()) or 1.0
        codes, own = rounded(kernel, step, None, 0.0)
        kernel.target.variable.assign(from_rows(codes * step, kernel.weight.shape))
        found = outputs.change()
        kernel.target.variable.assign(kernel.weight)
        # What changes nothing at all still counts a little.
        kernel.gain = max(found, 1e-9) / max(own, 1e-30)


def _within(kernels: list[SeenKernel], room: int) -> list[Coded]:
    """The codes of the lowest price that fit."""

    def at(price: float) -> list[Coded]:
        return [coded_at(kernel, math.exp(price)) for kernel in kernels]

    def fitting(price: float) -> list[Coded] | None:
        found = at(price)
        return found if sum(map(_bytes_of, kernels, found)) <= room else None

    low, high = PRICES
    while high - low > NEAR:  # by what the codes take about
        middle = (low + high) / 2
        fits = sum(one.bits for one in at(middle)) <= 8 * room
        low, high = (low, middle) if fits else (middle, high)
    low, high, best = low - NEAR, high + NEAR, None
    while best is None and high < PRICES[1] + 4 * NEAR:
        best = fitting(high)
        if best is None:
            low, high = high, high + 2 * NEAR
    if best is None:
        raise ConfigError(
            f"Kernels of zeros alone take more than the budget. Received: {room}. "
            "Allow more."
        )
    # The count is above what the coder takes where this looks at neighbours.
    while low > PRICES[0] and (found := fitting(low)) is not None:
        best, low, high = found, low - 2 * NEAR, low
    for _ in range(EXACT):
        middle = (low + high) / 2
        found = fitting(middle)
        if found is not None:
            best, high = found, middle
        else:
            low = middle
    return best


def _bytes_of(kernel: SeenKernel, coded: Coded) -> int:
    return len(encode_tensor(_values(kernel, coded)))


def _values(kernel: SeenKernel, coded: Coded) -> np.ndarray:
    # Integers, whose zero has no sign.
    codes = from_rows(coded.rows, kernel.weight.shape).astype("int32")
    return (codes * np.float32(coded.step)).astype(kernel.weight.dtype)


def _assign(kernel: SeenKernel, coded: Coded) -> None:
    """Gives a layer its codes, and takes their part in the mean out of its outputs."""
    kernel.target.variable.assign(_values(kernel, coded))
    if kernel.mean is None:
        return
    layer = kernel.target.layer
    wrong = coded.rows * coded.step - kernel.rows
    change = np.einsum("gr,gro->go", kernel.mean, wrong).reshape(-1)
    if layer.use_bias:
        layer.bias.assign(to_numpy(layer.bias) - change)
    else:
        moving = kernel.normalization.moving_mean
        moving.assign(to_numpy(moving) + change)
