"""Adam8bit: Adam whose moments take one byte each."""

import math
from typing import Any

import keras
from keras import ops

from keras_dlopt import checks, runtime
from keras_dlopt.optimizers._hyper import hyper
from keras_dlopt.optimizers._options import share_kept
from keras_dlopt.optimizers.adam import adam_rule
from keras_dlopt.optimizers.base import Optimizer

BLOCK = 256  # entries that share one scale
TINY = 1e-30  # far above the smallest float32, below which hardware may flush to 0
_GOLDEN, _SILVER = 0.6180339887, 0.4142135624  # irrational, so the dither never repeats


def pack(values: Any, *, power: int, levels: int, dither: Any) -> tuple[Any, Any]:
    """Codes and scales of blocks of numbers.

    code = floor(levels * |x / scale|^(1 / power) + dither) * sign(x), with scale the
    largest magnitude of the block.

    Args:
        values: tensor (blocks, BLOCK).
        power: 2 spends the levels evenly on square roots, 4 on fourth roots.
        levels: largest code.
        dither: tensor like `values`, in [0, 1), evenly distributed over time, which
            makes rounding right on average.
    """
    scale = ops.max(ops.abs(values), axis=1, keepdims=True)
    share = ops.abs(values) / ops.maximum(scale, TINY)
    for _ in range(power // 2):
        share = ops.sqrt(share)
    codes = ops.minimum(ops.floor(share * levels + dither), levels)
    return codes * ops.sign(values), scale


def unpack(codes: Any, scale: Any, *, power: int, levels: int) -> Any:
    """The numbers that `pack` wrote, to within a level."""
    share = ops.abs(codes) / levels
    for _ in range(power // 2):
        share = ops.square(share)
    return share * scale * ops.sign(codes)


def dither_at(step: Any, blocks: int) -> Any:
    """Fractions in [0, 1) for every entry, evenly spread over steps and entries."""
    along = ops.arange(BLOCK, dtype="float32") * _SILVER
    across = ops.arange(blocks, dtype="float32") * _GOLDEN
    start = ops.mod(ops.cast(step, "float32"), 4096.0) * _GOLDEN
    along, across = ops.mod(along, 1.0), ops.mod(across, 1.0)
    return ops.mod(along[None, :] + across[:, None] + start, 1.0)


@keras.saving.register_keras_serializable("keras_dlopt")
class Adam8bit(Optimizer):
    r"""Adam with both moments in 8 bits: 2.03 bytes of state a parameter, not 8.

    The formulas of `Adam`; between steps each block of 256 entries is stored as

        m: code = sign(m) * floor(127 * sqrt(|m| / max|m|) + u)
        v: code = floor(255 * (v / max v)^(1/4) + u)

    with one float32 maximum per block and a dither u in [0, 1) that moves every step,
    so that changes far smaller than a level still add up. Weights with fewer than
    `min_size` parameters keep full precision.

    State: 2.03 bytes a parameter (8 for small weights).

    Args:
        learning_rate: float, schedule, or callable without arguments.
        beta_1: share of the first moment kept at each step, in [0, 1).
        beta_2: share of the second moment kept, in [0, 1).
        epsilon: added to the root, in units of the gradient.
        min_size: least number of parameters of a weight whose state is packed.
        **options: see `keras_dlopt.optimizers.Optimizer`; `weight_decay` makes it
            AdamW.

    Raises:
        ConfigError: for arguments out of range.

    Example:
        >>> v = keras.Variable(keras.ops.ones(4096))
        >>> adam = Adam8bit(0.1)
        >>> adam.apply([keras.ops.ones(4096)], [v])
        >>> v.numpy()[:2].round(4).tolist(), str(adam.variables[2].dtype)
        ([0.9, 0.9], 'int8')

    Source: Dettmers et al., "8-bit Optimizers via Block-wise Quantization"
    (arXiv:2110.02861), section 2. Differs from the paper: roots instead of the dynamic
    tree code (no table look-ups), blocks of 256 instead of 2048, and dithering.
    """

    couples_weights = True  # its state is not one tensor per slot

    beta_1: float = hyper(default=0.9, check=share_kept)
    beta_2: float = hyper(default=0.999, check=share_kept)
    epsilon: float = hyper(default=1e-7, check=checks.rate)
    min_size: int = hyper(default=4096, check=checks.count)

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        for slot, dtype in (("momentum", "int8"), ("velocity", "uint8")):
            names = (slot, f"{slot}_codes", f"{slot}_scales")
            rows = [self._made(v, names, dtype) for v in variables]
            columns = zip(*rows, strict=True)
            self._built.slots |= {
                name: list(column) for name, column in zip(names, columns, strict=True)
            }

    def _made(self, variable: Any, names: Any, dtype: str) -> tuple[Any, Any, Any]:
        """State of one variable: exact, or codes and scales; None for the others."""
        exact, codes, scales = names
        size = math.prod(variable.shape)
        if size < self.min_size:
            wide = runtime.compute_dtype(variable)
            return self.state_beside(variable, exact, variable.shape, wide), None, None
        blocks = -(-size // BLOCK)
        return (
            None,
            self.state_beside(variable, codes, (blocks, BLOCK), dtype),
            self.state_beside(variable, scales, (blocks, 1), "float32"),
        )

    def rule(self, gradient, weight, slots, lr, step):
        common = {"beta_1": self.beta_1, "beta_2": self.beta_2, "epsilon": self.epsilon}
        if "momentum" in slots:
            return adam_rule(gradient, slots, lr=lr, step=step, **common)
        blocks, shape = slots["momentum_codes"].shape[0], tuple(gradient.shape)
        size = math.prod(gradient.shape)
        flat = ops.reshape(ops.cast(gradient, "float32"), (-1,))
        padded = ops.pad(flat, ((0, blocks * BLOCK - size),))
        moments = {
            "momentum": _load(slots, "momentum", power=2, levels=127),
            "velocity": _load(slots, "velocity", power=4, levels=255),
        }
        padded = ops.reshape(padded, (blocks, BLOCK))
        lr32, step32 = ops.cast(lr, "float32"), ops.cast(step, "float32")
        change, moments = adam_rule(padded, moments, lr=lr32, step=step32, **common)
        dither = dither_at(step32, blocks)
        new = {}
        for slot, power, levels in (("momentum", 2, 127), ("velocity", 4, 255)):
            codes, scale = pack(
                moments[slot], power=power, levels=levels, dither=dither
            )
            new[f"{slot}_codes"], new[f"{slot}_scales"] = codes, scale
        change = ops.reshape(ops.reshape(change, (-1,))[:size], shape)
        return ops.cast(change, weight.dtype), new


def _load(slots: dict[str, Any], slot: str, *, power: int, levels: int) -> Any:
    codes = ops.cast(slots[f"{slot}_codes"], "float32")
    return unpack(codes, slots[f"{slot}_scales"], power=power, levels=levels)
