"""Quantizers of activations that have a name: combinations of the four values."""

import keras

from keras_dlopt import checks
from keras_dlopt.transforms.quantize.activation_quantizer import ActivationQuantizer
from keras_dlopt.transforms.quantize.gradients import LearnedLevel, LearnedStep
from keras_dlopt.transforms.quantize.grids import IntegerGrid, check_bits
from keras_dlopt.transforms.quantize.observers import Observer
from keras_dlopt.transforms.quantize.starts import GivenRange, check_range


@keras.saving.register_keras_serializable("keras_dlopt")
class FakeQuantActivation(ActivationQuantizer):
    """Rounds a layer's input or output to 2^bits levels between a low and a high end.

    The range is a moving average of each batch's smallest and largest value,

        low  <- momentum * low  + (1 - momentum) * min(min(x), 0)
        high <- momentum * high + (1 - momentum) * max(max(x), 0)

    starting at the first batch's, and is nudged so that 0 is exactly one of the levels.
    Values outside are clipped; the gradient passes inside the range and is zero
    outside. Outside of training the range stays; as long as there is none, values pass
    as they are.

    State: three numbers.

    Args:
        bits: 2 to 16; LiteRT wants 8.
        momentum: weight of the old range, in [0, 1).
        range: fixed (low, high), such as (0, 255 / 256) after a sigmoid; None to learn
            it from the data.
        symmetric: whether the range is widened to (-m, m), and 0 the middle of
            2^bits - 1 levels.
        observer: of each batch; see `ActivationQuantizer`. The two that look at every
            value cost several times as much as the ends.
        initial: (low, high) to start from, averaged like an older batch; None starts
            at the first batch's range.
        begin: step at which rounding begins; before it the range is only observed.
        freeze: step from which the range stays; None for never.

    Raises:
        ConfigError: for bits outside 2..16, a momentum outside [0, 1), a range that
            does not contain 0, steps out of order, or the observer `"kl"`, which needs
            a histogram of all data: `post_training.quantize` has it.

    Example:
        >>> from keras_dlopt import inside, named
        >>> import keras
        >>> entry = (named("output") & inside(keras.layers.ReLU), FakeQuantActivation())

    Source: Jacob et al. (arXiv:1712.05877), section 3.1.
    """

    def __init__(
        self,
        *,
        bits: int = 8,
        momentum: float = 0.95,
        range: tuple[float, float] | None = None,
        symmetric: bool = False,
        observer: str | Observer = "moving_average",
        initial: tuple[float, float] | None = None,
        begin: int = 0,
        freeze: int | None = None,
    ):
        self.range = check_range("range", range)
        self.initial = check_range("initial", initial)
        check_bits(bits, least=2)
        known = self.range or self.initial
        super().__init__(
            IntegerGrid(bits, symmetric),
            start=known and GivenRange(*known, hold=self.range is not None),
            observer=observer,
            momentum=momentum,
            begin=begin,
            freeze=freeze,
        )
        self.bits, self.symmetric = self.grid.bits, symmetric


@keras.saving.register_keras_serializable("keras_dlopt")
class LSQActivation(ActivationQuantizer):
    """Rounds a layer's input or output to a grid whose step is trained.

    As `LSQ`, for activations: codes from 0 to 2^bits - 1, or from -2^(bits-1) to
    2^(bits-1) - 1 if signed; g = 1 / sqrt(N Qp) with N the features of one example. The
    step starts at 2 mean|x| / sqrt(Qp), the mean taken over the batches before `begin`,
    in which the activation passes in float.

    State: four numbers, one of them trained.

    Args:
        bits: 1 to 16; signed from 2.
        signed: whether the activation has negative values; False after a ReLU.
        begin: step at which rounding begins, at least 1.
        clip_gradient: bound of each element of the gradient that comes in.

    Raises:
        ConfigError: for bits outside their range or a `begin` below 1.

    Example:
        >>> LSQActivation(bits=2).codes
        (0, 3)

    Source: Esser et al., "Learned Step Size Quantization" (arXiv:1902.08153), sections
    2.1 and 2.2.
    """

    def __init__(
        self,
        *,
        bits: int = 4,
        signed: bool = False,
        begin: int = 1,
        clip_gradient: float | None = None,
    ):
        gradient = LearnedStep(clip_gradient=clip_gradient)
        grid = IntegerGrid(bits, symmetric=signed, narrow=False)
        super().__init__(grid, gradient=gradient, begin=begin)
        self.bits, self.signed, self.clip_gradient = (
            self.grid.bits,
            signed,
            self.gradient.clip_gradient,
        )


@keras.saving.register_keras_serializable("keras_dlopt")
class LSQPlusActivation(ActivationQuantizer):
    """Rounds a layer's input or output to a grid whose step and offset are trained.

    For activations with a small negative part (swish, leaky ReLU): with the codes 0 to
    Q = 2^bits - 1,

        x_q = round(clip((x - offset) / s, 0, Q)) * s + offset

    The range starts at the mean of each batch's ends before `begin`: offset = low,
    s = (high - low) / Q. Zero need not be a level.

    State: six numbers, two of them trained.

    Args:
        bits: 1 to 16.
        begin: step at which rounding begins, at least 1.
        clip_gradient: bound of each element of the gradient that comes in.

    Raises:
        ConfigError: for bits outside 1..16 or a `begin` below 1.

    Example:
        >>> LSQPlusActivation(bits=4).gradient.trains
        ('step', 'offset')

    Source: Bhalgat et al., "LSQ+" (arXiv:2004.09576), equations 3 to 7.
    Differs from the paper: starts at the ends of the range, not at the smallest error.
    """

    def __init__(
        self,
        *,
        bits: int = 4,
        begin: int = 1,
        clip_gradient: float | None = None,
    ):
        gradient = LearnedStep(offset=True, clip_gradient=clip_gradient)
        grid = IntegerGrid(bits, symmetric=False)
        super().__init__(grid, gradient=gradient, begin=begin)
        self.bits, self.clip_gradient = self.grid.bits, self.gradient.clip_gradient


@keras.saving.register_keras_serializable("keras_dlopt")
class PACT(ActivationQuantizer):
    """Clips an activation at a trained level and rounds it to 2^bits levels below.

        y = clip(x, 0, a),   x_q = round(y (2^bits - 1) / a) a / (2^bits - 1)

    `LearnedLevel` has the gradients; `decay * a^2` is added to the loss, so that a
    shrinks where it may.

    State: one trained number.

    Args:
        bits: 1 to 16.
        initial: of a.
        decay: weight of a^2 in the loss; the paper uses the kernels' weight decay.

    Raises:
        ConfigError: for bits outside 1..16, an initial level that is not positive, or a
            negative decay.

    Example:
        >>> PACT(bits=2, initial=3.0)
        PACT(bits=2, initial=3.0)

    Source: Choi et al., "PACT: Parameterized Clipping Activation" (arXiv:1805.06085),
    equations 1 to 3.
    """

    def __init__(self, *, bits: int = 4, initial: float = 10.0, decay: float = 2e-4):
        hint = "It is the level at which activations are clipped."
        start = GivenRange(0.0, checks.positive(initial, name="initial", hint=hint))
        gradient = LearnedLevel(decay=decay)
        super().__init__(
            IntegerGrid(bits, symmetric=False), gradient=gradient, start=start
        )
        self.bits, self.initial, self.decay = (
            self.grid.bits,
            start.high,
            self.gradient.decay,
        )
