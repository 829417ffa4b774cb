"""Float64 twins of the quantizers: one weight at a time, from the papers' formulas."""

import itertools
import math

import numpy as np


def clip(v, low, high):
    return min(max(v, low), high)


def affine(weight, bits, *, symmetric, narrow):
    """One scale for the whole weight. Jacob et al., section 3; zero is a level."""
    values = [float(v) for v in np.ravel(weight)]
    low, high = min([*values, 0.0]), max([*values, 0.0])
    if symmetric:
        top = 2 ** (bits - 1) - 1
        bottom = -top if narrow else -top - 1
        scale = max(-low, high) / top or 1.0
        codes = [clip(round(v / scale), bottom, top) for v in values]
        return np.reshape([c * scale for c in codes], np.shape(weight))
    levels = 2**bits - 1 - int(narrow)
    scale = (high - low) / levels
    zero = clip(math.floor(-low / scale + 0.5), 0, levels)
    codes = [clip(round(v / scale) + zero, 0, levels) for v in values]
    return np.reshape([(c - zero) * scale for c in codes], np.shape(weight))


def peak_hold(peaks, momentum):
    """The ends after each batch of one value and 0, started at the first batch's."""
    found = []
    for peak in peaks:
        low, high = min(peak, 0.0), max(peak, 0.0)
        if found:
            before = found[-1]
            low = min(low, momentum * before[0] + (1 - momentum) * low)
            high = max(high, momentum * before[1] + (1 - momentum) * high)
        found.append((low, high))
    return found


def lsq(x, upstream, step, offset, low, high, gradient_scale):
    """Esser et al., equations 1 to 5; LSQ+ equations 4 to 7 for the offset.

    Returns:
        Value, and the gradients of x, step and offset.
    """
    out, d_x = np.zeros(x.shape), np.zeros(x.shape)
    d_step = d_offset = 0.0
    for i, v in np.ndenumerate(x):
        u, s = float(upstream[i]), (float(v) - offset) / step
        if s <= low or s >= high:
            code = low if s <= low else high
            d_step += u * code
            d_offset += u
        else:
            code = round(s)
            d_step += u * (code - s)
            d_x[i] = u
        out[i] = code * step + offset
    return out, d_x, d_step * gradient_scale, d_offset * gradient_scale


def pact(x, upstream, level, bits):
    """Choi et al., equations 1 to 3."""
    steps = 2**bits - 1
    out, d_x, d_level = np.zeros(x.shape), np.zeros(x.shape), 0.0
    for i, v in np.ndenumerate(x):
        y = 0.5 * (abs(v) - abs(v - level) + level)
        out[i] = round(y * steps / level) * level / steps
        d_x[i] = upstream[i] if 0 <= v < level else 0.0
        d_level += upstream[i] if v >= level else 0.0
    return out, d_x, d_level


def clipped(x, upstream, level, low, high):
    """PACT with codes from `low` to `high`: value, gradients of x and the level."""
    bottom = level * low / high
    out, d_x, d_level = np.zeros(x.shape), np.zeros(x.shape), 0.0
    for i, v in np.ndenumerate(x):
        out[i] = round(clip(v, bottom, level) * high / level) * level / high
        d_x[i] = upstream[i] if bottom <= v < level else 0.0
        d_level += upstream[i] * (1 if v >= level else low / high if v < bottom else 0)
    return out, d_x, d_level


def through_scale(column, upstream, value):
    """d(a c)/dx for a = mean|x| over c != 0, with dc/dx = 1 where |x| <= 1."""
    codes = [math.copysign(1, v) if v else 0.0 for v in value]
    used = [abs(float(x)) for x, c in zip(column, codes, strict=True) if c]
    scale = sum(used) / len(used)
    along = sum(u * c for u, c in zip(upstream, codes, strict=True)) / len(used)
    return [
        along * c + (scale * u if abs(x) <= 1 else 0.0)
        for x, u, c in zip(column, upstream, codes, strict=True)
    ]


def binary(column, upstream):
    """XNOR-Net for one output channel: value, and the exact derivative."""
    n = len(column)
    scale = sum(abs(v) for v in column) / n
    sign = [1.0 if v >= 0 else -1.0 for v in column]
    along = sum(u * s for u, s in zip(upstream, sign, strict=True)) / n
    slope = [
        along * s + (scale * u if abs(v) <= 1 else 0.0)
        for v, u, s in zip(column, upstream, sign, strict=True)
    ]
    return [scale * s for s in sign], slope


def ternary(weight, threshold=0.7):
    """Li et al., equations 5 and 6."""
    values = [float(v) for v in np.ravel(weight)]
    limit = threshold * sum(map(abs, values)) / len(values)
    above = [abs(v) for v in values if abs(v) > limit]
    scale = sum(above) / len(above) if above else 0.0
    out = [math.copysign(scale, v) if abs(v) > limit else 0.0 for v in values]
    return np.reshape(out, np.shape(weight))


def trained_ternary(weight, upstream, positive, negative, threshold):
    """Zhu et al. (TTQ), equations 6 to 8: value, gradients of w, Wp and Wn."""
    limit = threshold * max(abs(float(v)) for v in np.ravel(weight))
    out, d_w, d_p, d_n = np.zeros(weight.shape), np.zeros(weight.shape), 0.0, 0.0
    for i, v in np.ndenumerate(weight):
        u = float(upstream[i])
        if v > limit:
            out[i], d_w[i], d_p = positive, positive * u, d_p + u
        elif v < -limit:
            out[i], d_w[i], d_n = -negative, negative * u, d_n - u
        else:
            d_w[i] = u
    return out, d_w, d_p, d_n


def power_of_two(weight, bits):
    """Zhou et al. (INQ), equations 1 to 4: the nearest in the sense of equation 4."""
    top = math.floor(math.log2(4 / 3 * max(abs(float(v)) for v in np.ravel(weight))))
    lowest = top + 1 - 2 ** (bits - 2)
    levels = [2.0**n for n in range(lowest, top + 1)]

    def nearest(v):
        size = abs(v)
        if size < levels[0] / 2:
            return 0.0
        chosen = levels[0]
        for small, large in itertools.pairwise(levels):
            if size >= (small + large) / 2:
                chosen = large
        return math.copysign(chosen, v)

    out = [nearest(float(v)) for v in np.ravel(weight)]
    return np.reshape(out, np.shape(weight))


def min_max_integers(weight, bits):
    """q = floor((W - Lmin)/(Lmax - Lmin) * (2^b - 1) + 1), clipped to 1..2^b."""
    values = [float(v) for v in np.ravel(weight)]
    low, high = min(values), max(values)
    top = 2**bits
    codes = [
        clip(math.floor((v - low) / (high - low) * (top - 1) + 1), 1, top)
        for v in values
    ]
    back = [low + (q - 1) / (top - 1) * (high - low) for q in codes]
    return np.reshape(codes, np.shape(weight)), np.reshape(back, np.shape(weight))


def best_share(values, bits, shares, *, symmetric=True):
    """The share of the widest symmetric range with the smallest squared error."""
    largest, top = max(abs(float(v)) for v in values), 2 ** (bits - 1) - 1

    def error(share):
        scale = share * largest / top
        codes = [clip(round(float(v) / scale), -top, top) for v in values]
        return sum((c * scale - v) ** 2 for c, v in zip(codes, values, strict=True))

    return min(shares, key=error)


def soft_rounding(weight, v, scale, low, high):
    """Nagel et al. (AdaRound), equations 22 and 23."""
    out = np.zeros(weight.shape)
    for i, w in np.ndenumerate(weight):
        h = clip(1.2 / (1 + math.exp(-v[i])) - 0.1, 0.0, 1.0)
        out[i] = clip(math.floor(w / scale) + h, low, high) * scale
    return out
