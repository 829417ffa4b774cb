"""Rounding a kernel to codes that are short and change its outputs little."""

import dataclasses
from typing import Any

import numpy as np
from keras import layers, ops

from keras_dlopt.codecs.dtypes import dtype_of
from keras_dlopt.graph.targets import Target
from keras_dlopt.transforms.rate import expected_shares

DAMPING = 0.01  # of the mean of the diagonal, added to it
PLACES = 4096  # of a batch's feature map that are looked at
BLOCK = 64  # rows of a kernel whose errors are handed on together
STEPS = (0.35, 0.6, 0.95)  # of what is best where no code is zero, that are tried
LARGEST = 2**15 - 1  # of a code


@dataclasses.dataclass(eq=False)
class SeenKernel:
    """A kernel and what is known of its inputs.

    Attributes:
        target: where it is.
        weight: its values.
        gain: relative squared error of the model's outputs for one of its own.
        upper: Cholesky factor U of the inverse of the inputs' second moments, one a
            group: H^-1 = U'U; None for equal inputs.
        mean: of the inputs, (groups, rows), or None.
        normalization: that takes its outputs, if there is no bias.
    """

    target: Target
    weight: np.ndarray
    gain: float = 1.0
    upper: np.ndarray | None = None
    mean: np.ndarray | None = None
    normalization: Any = None

    @property
    def rows(self) -> np.ndarray:
        """As (groups, inputs of an output, outputs of a group)."""
        return as_rows(self.target.layer, self.weight)


def inputs_of(layer: Any, inputs: Any) -> np.ndarray:
    """What a kernel is multiplied with at some places: (groups, places, rows)."""
    if isinstance(layer, layers.Dense):
        flat = np.asarray(ops.convert_to_numpy(inputs), "float32")
        return _some(flat.reshape(-1, flat.shape[-1]))[None]
    if layer.data_format == "channels_first":
        inputs = ops.moveaxis(inputs, 1, -1)
    size, step, rate = layer.kernel_size, layer.strides, layer.dilation_rate
    padding = layer.padding
    if padding == "causal":
        before = rate[0] * (size[0] - 1)
        inputs, padding = ops.pad(inputs, ((0, 0), (before, 0), (0, 0))), "valid"
    if len(size) == 1:
        inputs = ops.expand_dims(inputs, 1)
        size, step, rate = (1, *size), (1, *step), (1, *rate)
    found = ops.image.extract_patches(
        ops.cast(inputs, "float32"),
        size,
        strides=step,
        dilation_rate=rate,
        padding=padding,
        data_format="channels_last",
    )
    flat = np.asarray(ops.convert_to_numpy(found))
    rows = _some(flat.reshape(-1, flat.shape[-1]))
    channels = inputs.shape[-1]
    depthwise = isinstance(layer, layers.DepthwiseConv2D)
    groups = channels if depthwise else getattr(layer, "groups", 1)
    parts = rows.reshape(len(rows), -1, groups, channels // groups)
    return np.moveaxis(parts, 2, 0).reshape(groups, len(rows), -1)


def _some(rows: np.ndarray) -> np.ndarray:
    """Drawn ones: every k-th may always be of the same column of a map."""
    if len(rows) <= PLACES:
        return rows
    return rows[np.random.default_rng(0).choice(len(rows), PLACES, replace=False)]


def as_rows(layer: Any, kernel: np.ndarray) -> np.ndarray:
    """A kernel as (groups, inputs of an output, outputs of a group)."""
    if isinstance(layer, layers.DepthwiseConv2D):
        flat = kernel.reshape(-1, *kernel.shape[-2:])
        return np.moveaxis(flat, 1, 0)
    groups = getattr(layer, "groups", 1)
    flat = kernel.reshape(-1, kernel.shape[-1])
    return np.moveaxis(flat.reshape(len(flat), groups, -1), 1, 0)


def from_rows(rows: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Rows as a kernel of some shape."""
    return np.moveaxis(rows, 0, 1).reshape(shape)


def upper_of(moments: np.ndarray) -> np.ndarray:
    """U of H^-1 = U'U, for each group."""
    size = moments.shape[-1]
    mean = np.trace(moments, axis1=1, axis2=2)[:, None, None] / size
    damped = moments + DAMPING * np.maximum(mean, 1e-20) * np.eye(size)
    # H = R R' with R an upper triangle, so that U is its inverse.
    turned = np.linalg.cholesky(damped[:, ::-1, ::-1])[:, ::-1, ::-1]
    return np.linalg.inv(turned)


def rounded(
    kernel: SeenKernel, step: float, before: np.ndarray | None, price: float
) -> tuple[np.ndarray, float]:
    """Codes of a kernel, as rows, and the error of the layer's outputs.

    Args:
        kernel: what to round.
        step: of the codes.
        before: codes that bits are counted on; None for the nearest codes.
        price: of a bit, in errors of the layer's outputs.
    """
    rows = kernel.rows.astype("float64")
    bits = None if before is None else Bits(before)
    if kernel.upper is None:
        every = np.s_[:, :]
        codes = _chosen(rows / step, bits, every, step**2, price)
        return codes, float(np.square(rows - codes * step).sum())
    codes, error = np.empty_like(rows), 0.0
    upper = kernel.upper
    for first in range(0, rows.shape[1], BLOCK):
        last = min(first + BLOCK, rows.shape[1])
        errors = np.empty((rows.shape[0], last - first, rows.shape[2]))
        for i in range(first, last):
            scale = upper[:, i, i, None]
            at = np.s_[:, i]
            codes[at] = _chosen(rows[at] / step, bits, at, (step / scale) ** 2, price)
            wrong = (rows[at] - codes[at] * step) / scale
            rows[:, i + 1 : last] -= upper[:, i, i + 1 : last, None] * wrong[:, None]
            errors[:, i - first] = wrong
        rest = np.swapaxes(upper[:, first:last, last:], 1, 2)
        rows[:, last:] -= rest @ errors
        error += float(np.square(errors).sum())
    return codes, error


def _chosen(
    x: np.ndarray, bits: "Bits | None", at: Any, weight: Any, price: float
) -> np.ndarray:
    """Of the nearest code, the next one towards zero, and zero, the cheapest."""
    near = np.clip(np.rint(x), -LARGEST, LARGEST)
    if bits is None:
        return near
    best, least = near, np.square(x - near) * weight + price * bits.of(near, at)
    for code in (near - np.sign(near), np.zeros_like(near)):
        cost = np.square(x - code) * weight + price * bits.of(code, at)
        best = np.where(cost < least, code, best)
        least = np.minimum(cost, least)
    return best


class Bits:
    """What codes take, by the shares of others.

    Args:
        codes: that are counted, (groups, rows, columns).
    """

    def __init__(self, codes: np.ndarray):
        shares = np.stack([expected_shares(one != 0) for one in codes])
        self.zero, self.other = -np.log2(1 - shares), -np.log2(shares)
        sizes = np.abs(codes[codes != 0]).astype(int)
        counts = np.bincount(sizes, minlength=2)[1:] + 0.0
        # Sizes that do not occur are as likely as their neighbours let expect.
        wide = np.convolve(np.pad(counts, 2, mode="edge"), np.ones(5) / 5, "valid")
        counts = 0.5 * counts + 0.5 * wide + 0.05
        magnitudes = 1 - np.log2(counts / counts.sum())  # with the sign
        self.magnitudes = np.concatenate([[0.0], magnitudes])

    def of(self, codes: np.ndarray, at: Any) -> np.ndarray:
        """Bits of codes at some place of the array."""
        sizes = np.minimum(np.abs(codes).astype(int), len(self.magnitudes) - 1)
        own = self.other[at] + self.magnitudes[sizes]
        return np.where(sizes > 0, own, self.zero[at])

    def total(self, codes: np.ndarray) -> float:
        """Bits of all codes."""
        return float(self.of(codes, np.s_[:, :]).sum())


@dataclasses.dataclass(frozen=True)
class Coded:
    """A kernel as codes.

    Attributes:
        rows: the codes, as rows.
        step: of the codes.
        bits: what they take, about.
    """

    rows: np.ndarray
    step: float
    bits: float


def coded_at(kernel: SeenKernel, price: float) -> Coded:
    """A kernel at a price of a bit, in errors of the model's outputs."""
    own = price / kernel.gain
    steep = 1.0 if kernel.upper is None else _mean_steepness(kernel.upper)
    # Where no code is zero, N step^2 steep / 12 + own bits is least at this step.
    middle = float(np.sqrt(6 * own / (np.log(2) * steep)))
    finest = float(np.abs(kernel.weight).max()) / LARGEST or 1.0
    found = []
    for factor in STEPS:
        step = _short(max(factor * middle, finest))
        rows, _ = rounded(kernel, step, None, 0.0)
        rows, error = rounded(kernel, step, rows, own)
        bits = Bits(rows).total(rows)
        found.append((error + own * bits, Coded(rows, step, bits)))
    return min(found, key=lambda one: one[0])[1]


def _mean_steepness(upper: np.ndarray) -> float:
    return float(np.mean(np.diagonal(upper, axis1=1, axis2=2) ** -2.0))


def _short(step: float) -> float:
    """A step of 2 bytes."""
    return float(np.asarray(step).astype(dtype_of("bfloat16"))) or step
