"""Plain float64 twins of the schedules: loops and branches, no shared code."""

import math


def _down(p, shape):
    return {
        "cosine": lambda: (1 + math.cos(math.pi * p)) / 2,
        "linear": lambda: 1 - p,
        "sqrt": lambda: 1 - math.sqrt(p),
    }[shape]()


def warmup(t, *, after, steps, start=0.0):
    if t >= steps:
        return after(t - steps)
    return start + (after(0) - start) * (t + 1) / steps


def one_cycle(t, *, peak, steps, warmup=0.3, first=25.0, last=1e4, shape="cosine"):
    top = warmup * steps
    if t < top:
        return peak - (peak - peak / first) * _down(t / top, shape)
    if t >= steps:
        return peak / last
    return peak / last + (peak - peak / last) * _down((t - top) / (steps - top), shape)


def one_cycle_momentum(t, *, steps, low, high, warmup=0.3, shape="cosine"):
    top = warmup * steps
    if t < top:
        return low + (high - low) * _down(t / top, shape)
    if t >= steps:
        return high
    return high - (high - low) * _down((t - top) / (steps - top), shape)


def warmup_stable_decay(t, *, peak, steps, warmup, decay, shape, final=0.0):
    rise, fall = warmup * steps, decay * steps
    if t < rise:
        return peak * min((t + 1) / rise, 1) if rise > 1 else peak
    if t <= steps - fall:
        return peak
    if t >= steps:
        return final
    return final + (peak - final) * _down((t - steps + fall) / fall, shape)


def power_cooldown(t, *, peak, steps, knee, power, cooldown):
    rate = peak if t + 1 <= knee else peak * math.exp(power * math.log(knee / (t + 1)))
    if t >= steps:
        return 0.0
    return rate * min(1.0, (steps - t) / (cooldown * steps))


def cyclical(t, *, low, high, half_cycle, mode, gamma=1.0):
    triangle, rest = divmod(t, 2 * half_cycle)
    height = rest / half_cycle if rest <= half_cycle else 2 - rest / half_cycle
    scale = {
        "triangular": 1.0,
        "triangular2": 0.5**triangle,
        "exp_range": gamma**t,
    }[mode]
    return low + (high - low) * height * scale


def cosine_restarts(t, *, peak, first, growth, decay=1.0, final=0.0):
    length, top = float(first), peak
    while t >= round(length):
        t -= round(length)
        length *= growth
        top *= decay
    return final + (top - final) * (1 + math.cos(math.pi * t / round(length))) / 2


def join(t, *, pieces, boundaries, restart=True):
    begin, piece = 0, pieces[0]
    for b, p in zip(boundaries, pieces[1:], strict=True):
        if t >= b:
            begin, piece = b, p
    return piece(t - begin if restart else t)
