"""Learning rates that fall from the head to the inputs."""

from collections.abc import Sequence
from typing import Any

import keras

from keras_dlopt import checks
from keras_dlopt.adapt.flags import Flags
from keras_dlopt.adapt.places import by_depth, selected, weights_of
from keras_dlopt.errors import ConfigError
from keras_dlopt.select import Selector, at


def layer_rates(
    model: keras.Model,
    decay: float = 0.75,
    *,
    groups: Sequence[Selector] | None = None,
    slowest: float = 0.0,
) -> list[tuple[Selector, float]]:
    """`multipliers` for an optimizer: each group slower than the one after it.

        rate of group l of L = rate * decay^(L - l),   l = 1 at the inputs

    Args:
        model: a built model, transformed or not, with the weights that will be trained
            at any time set trainable.
        decay: ratio of the rates of two groups, in (0, 1]: 1 / 2.6 in ULMFiT, 0.65 to
            0.9 in BEiT.
        groups: selectors from the inputs to the outputs, the first that matches counts;
            what none selects has the full rate. None: a group for each kernel, with the
            biases and normalizations up to the next.
        slowest: factor that none goes below, in [0, 1].

    Returns:
        Pairs of a selector and a factor, for `multipliers=` of the optimizers of this
        package. They name the variables of this model, so make the optimizer anew for
        another one.

    Raises:
        ConfigError: for a decay or a group that is none.
        ModelError: for a model that is not built, or without kernels.

    Example:
        >>> from keras_dlopt import optimizers
        >>> net = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="a"),
        ...     keras.layers.Dense(2, name="b")])
        >>> rates = layer_rates(net, 0.5)
        >>> [factor for _, factor in rates]
        [0.5]
        >>> optimizer = optimizers.Adam(1e-3, multipliers=rates)

    Source: Howard and Ruder (arXiv:1801.06146), section 3.2; Bao et al., "BEiT"
    (arXiv:2106.08254), appendix.
    """
    decay = checks.share(decay, name="decay")
    slowest = checks.number(slowest, name="slowest", least=0, most=1)
    targets = weights_of(model)
    if groups is None:
        placed = by_depth(model)
    else:
        if not groups:
            raise ConfigError(
                "groups must be selectors from the inputs to the outputs. Received: "
                "none. Leave groups out for a group a kernel."
            )
        placed, taken = [], set[int]()
        for selector in groups:
            found = selected(targets, selector, name="A group")
            placed.append([t for t in found if id(t.variable) not in taken])
            taken |= {id(t.variable) for t in found}
    flags = Flags(model, targets)
    rates: list[tuple[Selector, float]] = []
    for number, group in enumerate(placed):
        factor = max(decay ** (len(placed) - 1 - number), slowest)
        ids = {id(t.variable) for t in group}
        paths = _paths(flags.trained_for(ids))
        if paths and factor != 1.0:
            rates.append((at(*paths), factor))
    return rates


def _paths(variables: Sequence[Any]) -> list[str]:
    return list(dict.fromkeys(v.path for v in variables if v.trainable))
