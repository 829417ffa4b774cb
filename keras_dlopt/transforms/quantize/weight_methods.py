"""Quantizers of weights that have a name: combinations of the four values."""

import dataclasses

import keras
import numpy as np

from keras_dlopt.transforms.quantize.gradients import (
    LearnedLevels,
    LearnedStep,
    StraightThrough,
    ThroughScale,
)
from keras_dlopt.transforms.quantize.grids import (
    BinaryGrid,
    IntegerGrid,
    MinMaxGrid,
    PowerOfTwoGrid,
    TernaryGrid,
)
from keras_dlopt.transforms.quantize.observers import Observer
from keras_dlopt.transforms.quantize.quantizer import Quantizer


@keras.saving.register_keras_serializable("keras_dlopt")
class FakeQuant(Quantizer):
    """Rounds a weight to a grid of 2^bits integers, straight-through in training.

    By default the grid is symmetric and narrow, with one scale per output channel that
    follows the weight: with q = 2^(bits-1) - 1 and the largest magnitude m,

        scale = m / q,   code = round(w / scale) in [-q, q],   w_q = code * scale

    so no code is ever clipped, the gradient passes unchanged, and zero stays zero. The
    other grids are `IntegerGrid`'s; an observer that leaves values out clips them, and
    their gradient is zero.

    State: none; two numbers a scale with an observer other than `"min_max"`, `begin`
    or `freeze`.

    Args:
        bits: 2 to 16; 1 for the two levels of an asymmetric grid.
        per_channel: one scale per output channel; False for one scale a weight (also
            used for weights with fewer than two dimensions).
        symmetric: whether 0 is the middle of the grid; else the range is from the
            smallest to the largest weight, and 0 one of the levels.
        narrow_range: whether the lowest code is left out, so that a symmetric grid
            has as many levels below 0 as above; None does so for symmetric grids.
        axis: the axis that keeps a scale each; None for the output channels.
        group_size: consecutive input channels that share a scale, in each output
            channel; None for all.
        observer: how the range is chosen; see `Quantizer`.
        frequency: steps between two ranges that are computed between steps.
        begin: step at which rounding begins; before it the weight passes in float.
        freeze: step from which the range stays; None for never.
        stochastic: whether training rounds up with the probability of the fraction,
            so that the rounded weight is right on average. Inference rounds to the
            nearest.
        clip_gradient: bound of each element of the gradient that reaches the weight.

    Raises:
        ConfigError: for bits, axes or groups that do not fit, and steps out of order.

    Example:
        >>> from keras_dlopt.graph.targets import Target
        >>> w = np.array([[0.5], [-1.0], [0.2]], "float32")
        >>> FakeQuant(bits=2).evaluate(Target("kernel"), w, {}).ravel().tolist()
        [0.0, -1.0, 0.0]

    Source: Jacob et al., "Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference" (arXiv:1712.05877), section 3; per channel as in
    Krishnamoorthi (arXiv:1806.08342), section 3; stochastic rounding from Gupta et al.
    (arXiv:1502.02551), section 3.
    """

    def __init__(
        self,
        *,
        bits: int = 8,
        per_channel: bool = True,
        symmetric: bool = True,
        narrow_range: bool | None = None,
        axis: int | None = None,
        group_size: int | None = None,
        observer: str | Observer = "min_max",
        frequency: int = 100,
        begin: int = 0,
        freeze: int | None = None,
        stochastic: bool = False,
        clip_gradient: float | None = None,
    ):
        super().__init__(
            IntegerGrid(bits, symmetric=symmetric, narrow=narrow_range),
            gradient=StraightThrough(
                stochastic=stochastic, clip_gradient=clip_gradient
            ),
            observer=observer,
            per_channel=per_channel,
            axis=axis,
            group_size=group_size,
            frequency=frequency,
            begin=begin,
            freeze=freeze,
        )
        self.bits, self.symmetric = self.grid.bits, symmetric
        self.narrow_range = narrow_range
        self.stochastic, self.clip_gradient = stochastic, self.gradient.clip_gradient


@keras.saving.register_keras_serializable("keras_dlopt")
class LSQ(Quantizer):
    """Rounds a weight to a grid whose step is trained with the weights.

    `LearnedStep` with the codes -Qn = -2^(bits-1) to Qp = 2^(bits-1) - 1; the step
    starts at 2 mean|w| / sqrt(Qp), and its gradient is scaled by 1 / sqrt(N Qp) with N
    the number of weights that share it.

    State: one trained number a scale.

    Args:
        bits: 2 to 16.
        per_channel: one step per output channel; False, as in the paper, for one step
            a weight.
        narrow_range: whether to use -Qp in place of -Qn; two bits are then -1, 0, 1.
        axis: the axis that keeps a step each; None for the output channels.
        group_size: consecutive input channels that share a step; None for all.
        clip_gradient: bound of each element of the gradient that comes in.

    Raises:
        ConfigError: for bits outside 2..16, and axes or groups that do not fit.

    Example:
        >>> LSQ(bits=3).codes
        (-4, 3)

    Source: Esser et al., "Learned Step Size Quantization" (arXiv:1902.08153), sections
    2.1 and 2.2.
    Differs from the paper: a step that training pushes below 1e-8 counts as 1e-8.
    """

    def __init__(
        self,
        *,
        bits: int = 4,
        per_channel: bool = False,
        narrow_range: bool = False,
        axis: int | None = None,
        group_size: int | None = None,
        clip_gradient: float | None = None,
    ):
        super().__init__(
            IntegerGrid(bits, narrow=narrow_range),
            gradient=LearnedStep(clip_gradient=clip_gradient),
            per_channel=per_channel,
            axis=axis,
            group_size=group_size,
        )
        self.bits, self.narrow_range = self.grid.bits, narrow_range
        self.clip_gradient = self.gradient.clip_gradient


@keras.saving.register_keras_serializable("keras_dlopt")
class Binary(Quantizer):
    """One bit a weight: its sign, times one scale, on `BinaryGrid` `ThroughScale`.

    State: none.

    Args:
        per_channel: one scale per output channel, as in the paper; False for one scale
            a weight.
        clip_gradient: bound of each element of the gradient that reaches the weight.

    Raises:
        ConfigError: for a bound that is not positive.

    Example:
        >>> from keras_dlopt.graph.targets import Target
        >>> w = np.array([[0.5], [-1.0], [0.3]], "float32")
        >>> Binary().evaluate(Target("kernel"), w, {}).ravel().tolist()
        [0.6, -0.6, 0.6]

    Source: Rastegari et al., "XNOR-Net" (arXiv:1603.05279), sections 3.1 and 3.2.
    """

    def __init__(self, *, per_channel: bool = True, clip_gradient: float | None = None):
        gradient = ThroughScale(clip_gradient=clip_gradient)
        super().__init__(BinaryGrid(), gradient=gradient, per_channel=per_channel)
        self.clip_gradient = self.gradient.clip_gradient


@keras.saving.register_keras_serializable("keras_dlopt")
class Ternary(Quantizer):
    """Three values a weight, -a, 0 and a, on `TernaryGrid`; the gradient passes.

    State: none.

    Args:
        per_channel: one a and d per output channel; False, as in the paper, for one a
            weight.
        threshold: d over the mean magnitude, in (0, 4). 0.7 is nearly optimal for
            normally and for evenly distributed weights.
        clip_gradient: bound of each element of the gradient that reaches the weight.

    Raises:
        ConfigError: for a threshold outside (0, 4).

    Example:
        >>> from keras_dlopt.graph.targets import Target
        >>> w = np.array([[0.9], [-1.1], [0.1]], "float32")
        >>> Ternary().evaluate(Target("kernel"), w, {}).ravel().tolist()
        [1.0, -1.0, 0.0]

    Source: Li et al., "Ternary Weight Networks" (arXiv:1605.04711), equations 5 and 6.
    """

    def __init__(
        self,
        *,
        per_channel: bool = False,
        threshold: float = 0.7,
        clip_gradient: float | None = None,
    ):
        gradient = StraightThrough(clip_gradient=clip_gradient)
        grid = TernaryGrid(threshold)
        super().__init__(grid, gradient=gradient, per_channel=per_channel)
        self.threshold, self.clip_gradient = (
            self.grid.threshold,
            self.gradient.clip_gradient,
        )


@keras.saving.register_keras_serializable("keras_dlopt")
class TrainedTernary(Quantizer):
    """Three values a weight, -n, 0 and p, with n and p trained: `LearnedLevels`.

    A weight is 0 up to d = threshold * max|w|; n and p start at the mean magnitude of
    their weights.

    State: two trained numbers.

    Args:
        threshold: d over the largest magnitude, in (0, 1).
        clip_gradient: bound of each element of the gradient that reaches the weight.

    Raises:
        ConfigError: for a threshold outside (0, 1).

    Example:
        >>> TrainedTernary(threshold=0.1).threshold
        0.1

    Source: Zhu et al., "Trained Ternary Quantization" (arXiv:1612.01064), equations 6
    to 8.
    Differs from the paper: n and p are kept as they are for weights that are not
    normalized to [-1, 1] first.
    """

    def __init__(self, *, threshold: float = 0.05, clip_gradient: float | None = None):
        gradient = LearnedLevels(clip_gradient=clip_gradient)
        grid = TernaryGrid(threshold, of="max")
        super().__init__(grid, gradient=gradient, per_channel=False)
        self.threshold, self.clip_gradient = (
            self.grid.threshold,
            self.gradient.clip_gradient,
        )

    def init(self, target, weight):
        # Numbers without dimensions, as files of it have always held.
        return {
            name: dataclasses.replace(state, value=state.value.reshape(()))
            for name, state in super().init(target, weight).items()
        }


@keras.saving.register_keras_serializable("keras_dlopt")
class PowerOfTwo(Quantizer):
    """Rounds a weight to 0 or a signed power of two, on `PowerOfTwoGrid`.

    One grid a weight; the gradient passes unchanged.

    State: none.

    Args:
        bits: 3 to 8; one of them pays for 0, one for the sign.
        clip_gradient: bound of each element of the gradient that reaches the weight.

    Raises:
        ConfigError: for bits outside 3..8.

    Example:
        >>> from keras_dlopt.graph.targets import Target
        >>> w = np.array([[0.9, 0.3, -0.6, 0.01]], "float32")
        >>> PowerOfTwo(bits=4).evaluate(Target("kernel"), w, {}).ravel().tolist()
        [1.0, 0.25, -0.5, 0.0]

    Source: Zhou et al., "Incremental Network Quantization" (arXiv:1702.03044),
    equations 1 to 4.
    Differs from the paper: all weights are rounded at once and trained straight
    through, instead of in portions that are then fixed.
    """

    def __init__(self, *, bits: int = 5, clip_gradient: float | None = None):
        gradient = StraightThrough(clip_gradient=clip_gradient)
        super().__init__(PowerOfTwoGrid(bits), gradient=gradient, per_channel=False)
        self.bits, self.clip_gradient = self.grid.bits, self.gradient.clip_gradient


@keras.saving.register_keras_serializable("keras_dlopt")
class MinMaxInteger(Quantizer):
    """The plain b-bit integers between a weight's smallest and largest value.

        q = floor((w - Lmin) / (Lmax - Lmin) * (2^bits - 1) + 1),  clipped to 1..2^bits
        w_q = Lmin + (q - 1) / (2^bits - 1) * (Lmax - Lmin)

    In training the weight is what the integer stands for, and the gradient passes
    straight through, each element clipped to [-clip_gradient, clip_gradient].

    Rounding down makes every weight smaller by half a step on average, and 0 is not a
    level: `FakeQuant(symmetric=False)` has the same size without both. `nearest=True`
    mends the first.

    State: none.

    Args:
        bits: 1 to 16.
        nearest: whether to round to the nearest level instead of down.
        clip_gradient: bound of each element of the gradient; None for no bound.

    Raises:
        ConfigError: for bits outside 1..16 or a bound that is not positive.

    Example:
        >>> MinMaxInteger(bits=2).integers(np.array([-1.0, -0.4, 0.9, 1.0])).tolist()
        [1, 1, 3, 4]

    Source: the textbook form of b-bit integer quantization.
    """

    def __init__(
        self,
        *,
        bits: int = 8,
        nearest: bool = False,
        clip_gradient: float | None = 1.0,
    ):
        gradient = StraightThrough(clip_gradient=clip_gradient)
        grid = MinMaxGrid(bits, nearest)
        super().__init__(grid, gradient=gradient, per_channel=False)
        self.bits, self.nearest, self.clip_gradient = (
            self.grid.bits,
            nearest,
            self.gradient.clip_gradient,
        )

    def integers(self, weight: np.ndarray) -> np.ndarray:
        """The integers 1..2^bits of a weight."""
        axes = tuple(range(weight.ndim))
        codes, _ = self.grid.place(weight, self.grid.measured(weight, axes))
        return codes.astype("int32") + 1
