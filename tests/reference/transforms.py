"""Float64 twins of the transforms: slow, plain, sharing no code with the package."""

import numpy as np


def prune_mask(weight, sparsity):
    """Zeros for the smallest magnitudes; of equal ones the first go first."""
    flat = [(abs(float(v)), i) for i, v in enumerate(np.asarray(weight).ravel())]
    mask = np.ones(len(flat))
    for _, i in sorted(flat)[: round(sparsity * len(flat))]:
        mask[i] = 0
    return mask.reshape(np.shape(weight))


def polynomial(step, *, initial, final, begin, end, power):
    """Zhu and Gupta, equation 1, with nothing before `begin`."""
    if step < begin:
        return 0.0
    t = min(max((step - begin) / (end - begin), 0), 1)
    return final + (initial - final) * (1 - t) ** power


def symmetric_quant(weight, bits, channel_axes):
    """Codes and values on a symmetric grid, one scale per channel."""
    w = np.asarray(weight, "float64")
    axes = tuple(a for a in range(w.ndim) if a not in channel_axes)
    limit = 2 ** (bits - 1) - 1
    scale = np.abs(w).max(axis=axes, keepdims=True) / limit
    scale[scale == 0] = 1
    codes = np.round(w / scale)
    return codes, codes * scale


def asymmetric_quant(x, low, high, bits):
    """Jacob et al., section 3.1: the range is nudged so that 0 is a level."""
    levels = 2**bits - 1
    scale = (high - low) / levels
    zero = min(max(np.floor(-low / scale + 0.5), 0), levels)
    codes = np.clip(np.floor(np.asarray(x, "float64") / scale + 0.5) + zero, 0, levels)
    return (codes - zero) * scale
