"""Adam8bit: Adam whose moments take one byte each."""

from typing import Any

import keras
from keras import ops

from keras_dlopt.optimizers import _options
from keras_dlopt.optimizers._cells import compute_dtype
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

    slot_names = ()

    couples_weights = True  # its state is not one tensor per slot

    def __init__(
        self,
        learning_rate: Any = 0.001,
        *,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
        min_size: int = 4096,
        **options: Any,
    ):
        _options.check_beta(beta_1, name="beta_1")
        _options.check_beta(beta_2, name="beta_2")
        _options.check_rate(epsilon, name="epsilon")
        _options.check_count(min_size, name="min_size")
        super().__init__(learning_rate, **options)
        self.beta_1, self.beta_2 = beta_1, beta_2
        self.epsilon, self.min_size = epsilon, min_size

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        for slot, dtype in (("momentum", "int8"), ("velocity", "uint8")):
            exact, codes, scales = [], [], []
            for variable in variables:
                size = _size(variable)
                packed = size >= self.min_size
                blocks = -(-size // BLOCK)
                exact.append(None if packed else self._exact(variable, slot))
                codes.append(
                    self._add(variable, (blocks, BLOCK), f"{slot}_codes", dtype)
                    if packed
                    else None
                )
                scales.append(
                    self._add(variable, (blocks, 1), f"{slot}_scales")
                    if packed
                    else None
                )
            self._state.slots[slot] = exact
            self._state.slots[f"{slot}_codes"] = codes
            self._state.slots[f"{slot}_scales"] = scales

    def _exact(self, variable: Any, slot: str) -> Any:
        return self._add(variable, variable.shape, slot, compute_dtype(variable))

    def _add(self, variable: Any, shape: Any, slot: str, dtype: str = "float32") -> Any:
        path = getattr(variable, "path", variable.name).replace("/", "_")
        return self.add_variable(tuple(shape), dtype=dtype, name=f"{path}_{slot}")

    def rule(self, gradient, weight, slots, lr, step):
        common = {"beta_1": self.beta_1, "beta_2": self.beta_2, "epsilon": self.epsilon}
        if "momentum" in slots:
            return adam_rule(gradient, slots, lr=lr, step=step, **common)
        blocks, shape = slots["momentum_codes"].shape[0], tuple(gradient.shape)
        size = _size(gradient)
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

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "beta_1": self.beta_1,
            "beta_2": self.beta_2,
            "epsilon": self.epsilon,
            "min_size": self.min_size,
        }


def _load(slots: dict[str, Any], slot: str, *, power: int, levels: int) -> Any:
    codes = ops.cast(slots[f"{slot}_codes"], "float32")
    return unpack(codes, slots[f"{slot}_scales"], power=power, levels=levels)


def _size(tensor: Any) -> int:
    size = 1
    for length in tensor.shape:
        size *= int(length)
    return size
