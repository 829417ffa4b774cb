"""Optimizers in float64 NumPy, one function per method, written from the papers.

Each takes a list of starting weights and a list of steps (each a list of gradients) and
returns the final weights. Nothing here is shared with the package.
"""

import numpy as np


def _each(method):
    """Runs a method written for one weight on every weight."""

    def run(weights, steps, **settings):
        return [
            method(
                np.array(w, np.float64),
                [np.array(g[i], np.float64) for g in steps],
                **settings,
            )
            for i, w in enumerate(weights)
        ]

    return run


@_each
def sgd(w, gs, *, lr, momentum=0.0, nesterov=False):
    last = np.zeros_like(w)
    for g in gs:
        last = momentum * last - lr * g
        w = w + (momentum * last - lr * g if nesterov else last)
    return w


@_each
def rmsprop(w, gs, *, lr, rho=0.9, momentum=0.0, epsilon=1e-7, centered=False):
    square, mean, last = np.zeros_like(w), np.zeros_like(w), np.zeros_like(w)
    for g in gs:
        square = rho * square + (1 - rho) * g**2
        mean = rho * mean + (1 - rho) * g
        variance = square - mean**2 if centered else square
        last = momentum * last + lr * g / np.sqrt(variance + epsilon)
        w = w - last
    return w


@_each
def adam(w, gs, *, lr, b1=0.9, b2=0.999, epsilon=1e-7, decay=0.0, amsgrad=False):
    m, v, top = np.zeros_like(w), np.zeros_like(w), np.zeros_like(w)
    for t, g in enumerate(gs, 1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        top = np.maximum(top, v)
        root = np.sqrt(top if amsgrad else v) + epsilon
        rate = lr * np.sqrt(1 - b2**t) / (1 - b1**t)
        w = (1 - lr * decay) * w - rate * m / root
    return w


@_each
def adagrad(w, gs, *, lr, start=0.1, epsilon=1e-7):
    total = np.full_like(w, start)
    for g in gs:
        total = total + g**2
        w = w - lr * g / np.sqrt(total + epsilon)
    return w


@_each
def radam(w, gs, *, lr, b1=0.9, b2=0.999, epsilon=1e-8, threshold=5.0):
    m, v = np.zeros_like(w), np.zeros_like(w)
    limit = 2 / (1 - b2) - 1
    for t, g in enumerate(gs, 1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        direction = m / (1 - b1**t)
        rho = limit - 2 * t * b2**t / (1 - b2**t)
        if rho >= threshold:
            above = (rho - 4) * (rho - 2) * limit
            below = (limit - 4) * (limit - 2) * rho
            direction *= np.sqrt(above / below)
            direction /= np.sqrt(v / (1 - b2**t)) + epsilon
        w = w - lr * direction
    return w


@_each
def adabelief(w, gs, *, lr, b1=0.9, b2=0.999, epsilon=1e-16):
    m, s = np.zeros_like(w), np.zeros_like(w)
    for t, g in enumerate(gs, 1):
        m = b1 * m + (1 - b1) * g
        s = b2 * s + (1 - b2) * (g - m) ** 2 + epsilon
        w = w - lr * m / (1 - b1**t) / (np.sqrt(s / (1 - b2**t)) + epsilon)
    return w


@_each
def adan(w, gs, *, lr, b1=0.98, b2=0.92, b3=0.99, epsilon=1e-8):
    m, v, n = np.zeros_like(w), np.zeros_like(w), np.zeros_like(w)
    before = gs[0]
    for t, g in enumerate(gs, 1):
        d, before = g - before, g
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * d
        n = b3 * n + (1 - b3) * (g + b2 * d) ** 2
        rate = lr / (np.sqrt(n / (1 - b3**t)) + epsilon)
        w = w - rate * (m / (1 - b1**t) + b2 * v / (1 - b2**t))
    return w


@_each
def ademamix(
    w, gs, *, lr, b1=0.9, b2=0.999, b3=0.9999, alpha=5.0, warmup=0, epsilon=1e-8
):
    fast, slow, v = np.zeros_like(w), np.zeros_like(w), np.zeros_like(w)
    for t, g in enumerate(gs, 1):
        beta, weight = b3, alpha
        if warmup:
            share = min(t / warmup, 1.0)
            # Equal steps in 1 / ln(beta) are equal steps in the half-life.
            beta = np.exp(1 / ((1 - share) / np.log(b1) + share / np.log(b3)))
            beta, weight = min(beta, b3), alpha * share
        fast = b1 * fast + (1 - b1) * g
        slow = beta * slow + (1 - beta) * g
        v = b2 * v + (1 - b2) * g**2
        top = fast / (1 - b1**t) + weight * slow
        w = w - lr * top / (np.sqrt(v / (1 - b2**t)) + epsilon)
    return w


@_each
def adopt(w, gs, *, lr, b1=0.9, b2=0.9999, epsilon=1e-6):
    m, v = np.zeros_like(w), gs[0] ** 2
    for t, g in enumerate(gs[1:], 1):
        scaled = g / np.maximum(np.sqrt(v), epsilon)
        m = b1 * m + (1 - b1) * np.clip(scaled, -(t**0.25), t**0.25)
        w = w - lr * m
        v = b2 * v + (1 - b2) * g**2
    return w


@_each
def mars(w, gs, *, lr, b1=0.95, b2=0.99, gamma=0.025, epsilon=1e-8):
    m, v = np.zeros_like(w), np.zeros_like(w)
    before = gs[0]
    for t, g in enumerate(gs, 1):
        c = g + gamma * b1 / (1 - b1) * (g - before)
        before = g
        c = c / max(1.0, np.linalg.norm(c))
        m = b1 * m + (1 - b1) * c
        v = b2 * v + (1 - b2) * c**2
        w = w - lr * m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + epsilon)
    return w


def prodigy(weights, steps, *, lr=1.0, b1=0.9, b2=0.999, d=1e-6, epsilon=1e-8):
    ws = [np.array(w, np.float64) for w in weights]
    start = [w.copy() for w in ws]
    m, v, s = ([np.zeros_like(w) for w in ws] for _ in range(3))
    b3, r = np.sqrt(b2), 0.0
    for t, gs in enumerate(steps, 1):
        c = lr * np.sqrt(1 - b2**t) / (1 - b1**t)
        r *= b3
        for i, g in enumerate(np.array(x, np.float64) for x in gs):
            r += c * d**2 * np.sum(g * (start[i] - ws[i]))
            s[i] = b3 * s[i] + c * d**2 * g
            m[i] = b1 * m[i] + (1 - b1) * d * g
            v[i] = b2 * v[i] + (1 - b2) * d**2 * g**2
            ws[i] = ws[i] - c * d * m[i] / (np.sqrt(v[i]) + d * epsilon)
        d = max(d, r / sum(np.abs(x).sum() for x in s))
    return ws


@_each
def lars(w, gs, *, lr, momentum=0.9, trust=0.001, decay=0.0):
    last = np.zeros_like(w)
    for g in gs:
        if w.ndim > 1:
            size = np.linalg.norm(w)
            ratio = trust * size / (np.linalg.norm(g) + decay * size)
            g = ratio * (g + decay * w)
        last = momentum * last - lr * g
        w = w + last
    return w


def soap(weights, steps, *, lr, b1=0.95, b2=0.95, b3=0.95, epsilon=1e-8, frequency=10):
    found = []
    for i, w in enumerate(weights):
        gs = [np.array(g[i], np.float64) for g in steps]
        if np.ndim(w) < 2:
            found += adam([w], [[g] for g in gs], lr=lr, b1=b1, b2=b2, epsilon=epsilon)
            continue
        shape = np.shape(w)
        w = np.array(w, np.float64).reshape(-1, shape[-1])
        m, v = np.zeros_like(w), np.zeros_like(w)
        left, right = np.zeros((len(w),) * 2), np.zeros((shape[-1],) * 2)
        ql, qr = np.eye(len(w)), np.eye(shape[-1])
        for t, g in enumerate(gs, 1):
            g = g.reshape(w.shape)
            left = b3 * left + (1 - b3) * g @ g.T
            right = b3 * right + (1 - b3) * g.T @ g
            if (t - 1) % frequency == 0:
                for _ in range(3 if t == 1 else 1):
                    a = 1e-3 * left.trace() / len(ql)
                    b = 1e-3 * right.trace() / len(qr)
                    ql = np.linalg.qr(left @ ql + a * ql)[0]
                    qr = np.linalg.qr(right @ qr + b * qr)[0]
            m = b1 * m + (1 - b1) * g
            v = b2 * v + (1 - b2) * (ql.T @ g @ qr) ** 2
            top = ql.T @ m @ qr / (1 - b1**t)
            root = np.sqrt(v / (1 - b2**t))
            n = top / (root + 1e-5 * root.max() + epsilon)
            w = w - lr * ql @ n @ qr.T
        found.append(w.reshape(shape))
    return found


def lbfgs_inverse(pairs, size):
    """The dense inverse Hessian that the BFGS formula builds from (s, y) pairs."""
    h = np.eye(size)
    if pairs:
        s, y = pairs[-1]
        h *= (s @ y) / (y @ y)
    for s, y in pairs:
        rho = 1 / (s @ y)
        turn = np.eye(size) - rho * np.outer(s, y)
        h = turn @ h @ turn.T + rho * np.outer(s, s)
    return h


def lbfgs(start, gradient, *, updates, lr=1.0, memory=10):
    """Minimizes with the gradient function `gradient(w)` of one flat vector."""
    w, pairs = np.array(start, np.float64), []
    last = None
    for _ in range(updates):
        g = gradient(w)
        if last is None:
            change = min(1.0, 1.0 / np.abs(g).sum()) * g
        else:
            s, y = w - last[0], g - last[1]
            if s @ y > 1e-10 * np.linalg.norm(s) * np.linalg.norm(y):
                pairs = [*pairs, (s, y)][-memory:]
            change = lbfgs_inverse(pairs, len(w)) @ g
        last = (w, g)
        w = w - lr * change
    return w


@_each
def lookahead_sgd(w, gs, *, lr, period, alpha):
    slow = w.copy()
    for t, g in enumerate(gs, 1):
        w = w - lr * g
        if t % period == 0:
            slow = slow + alpha * (w - slow)
            w = slow.copy()
    return w


@_each
def schedule_free_sgd(w, gs, *, lr, beta=0.9):
    """Returns the average x."""
    z, x = w.copy(), w.copy()
    for t, g in enumerate(gs, 1):
        z = z - lr * g
        x = x + (z - x) / t
    return x


@_each
def schedule_free_adam(w, gs, *, rates, beta, decay, beta_2=0.999, eps=1e-7):
    """Returns y, where training stands, and the average x."""
    x, y, z, v, total = w.copy(), w.copy(), w.copy(), 0.0, 0.0
    for t, (g, lr) in enumerate(zip(gs, rates, strict=True), 1):
        v = beta_2 * v + (1 - beta_2) * g**2
        step = lr * np.sqrt(1 - beta_2**t) * g / (np.sqrt(v) + eps)
        z = z - step - lr * decay * y
        total += lr**2
        c = lr**2 / total if total else 0.0
        x = (1 - c) * x + c * z
        y = (1 - beta) * z + beta * x
    return y, x
