"""Plain float64 twins of the learning-rate callbacks."""

import math

import numpy as np


class LossDriven:
    """The rule of LossDrivenLearningRate, one loss at a time."""

    def __init__(self, *, rate, total=0, **config):
        share = min(max(total / config["horizon"], 0.2), 1) if total else 1.0
        self.c = dict(config)
        self.c["smoothing"] = max(config["smoothing"] * share, 1)
        self.c["climb"] = config["climb"] ** (1 / share)
        for name in ("patience", "cooldown"):
            self.c[name] = round(config[name] * share)
        self.best, self.highest = None, -math.inf
        self.jumps, self.jump_weight, self.before = 0.0, 0.0, None
        self.rate = min(config["start"], rate)
        self.total = total
        self.step = 0
        self.mean = self.weight = 0.0
        self.lowest = self.judged = math.inf
        self.phase = "warm-up"
        self.wait = 0

    def _bounded(self, rate):
        return min(max(rate, self.c["min_rate"]), self.c["max_rate"])

    def _level(self, step):
        begin = self.total * (1 - self.c["anneal"])
        length = max(self.total - begin, 1)
        done = min(max((step - begin) / length, 0), 1)
        return 1 - (1 - self.c["final"]) * done

    def see(self, loss):
        c = self.c
        self.step += 1
        finite = math.isfinite(loss)
        if finite:
            self._hear(loss)
            keep = 1 - 1 / c["smoothing"]
            self.mean = keep * self.mean + (1 - keep) * loss
            self.weight = keep * self.weight + (1 - keep)
        smooth = self.mean / self.weight if self.weight else 0.0
        old = self.rate
        if self.phase == "warm-up":
            new = self._warm_up(finite, smooth)
        else:
            new = self._judge(finite, smooth)
        begin = self.total * (1 - c["anneal"])
        if self.total and self.step > begin:
            new = old if finite else old * c["down"]
        else:
            new = self._bounded(new)
        if self.total:
            new *= self._level(self.step) / self._level(self.step - 1)
        self.rate = new
        return new

    def _hear(self, loss):
        """Exponential mean of how far successive losses are apart, outliers cut."""
        if self.before is not None:
            size, keep = abs(loss - self.before), 1 - 1 / max(self.c["smoothing"], 10)
            if self.jumps > 0:
                size = min(size, 4 * self.jumps / self.jump_weight)
            self.jumps = keep * self.jumps + (1 - keep) * size
            self.jump_weight = keep * self.jump_weight + 1 - keep
        self.before = loss

    def _warm_up(self, finite, smooth):
        c = self.c
        early = self.step <= math.ceil(c["smoothing"])
        if finite and (early or smooth <= self.lowest):
            self.best, self.lowest = self.rate, smooth
        raised = self.rate * c["climb"]
        margin = 0.0
        if self.weight:
            self.highest = max(self.highest, smooth)
            margin = c["tolerance"] * (self.highest - min(self.lowest, smooth))
        if self.jumps:
            swing = 3 * self.jumps / self.jump_weight
            margin += swing / math.sqrt(2 * c["smoothing"] - 1)
        bad = not finite or (smooth > self.lowest + margin and not early)
        if smooth < self.highest - margin:
            bad = bad or raised > self.best * c["overshoot"]
        if bad or raised >= c["max_rate"]:
            self.phase, self.wait = "verdicts", -c["cooldown"]
            self.judged = smooth if self.weight else math.inf
            return c["backoff"] * (self.best or self.rate)
        return raised

    def _judge(self, finite, smooth):
        c = self.c
        self.wait += 1
        due = self.wait >= max(c["patience"], 1)
        better = due and smooth <= self.judged
        if due:
            self.judged = smooth
        if better:
            self.wait = 0
        if not finite or (due and not better):
            self.wait = -c["cooldown"]
            return self.rate * c["down"]
        return self.rate * (c["up"] if better else 1)


def hypergradient_sgd(x, y, w, *, batch, epochs, rate, momentum, beta, high):
    """Least squares by SGD whose rate follows the cosine rule; float64 throughout."""
    x, y, w = (np.asarray(a, "float64") for a in (x, y, w))
    velocity = np.zeros_like(w)
    change = None
    for _ in range(epochs):
        for i in range(0, len(x), batch):
            a, b = x[i : i + batch], y[i : i + batch]
            gradient = 2 * a.T @ (a @ w - b) / len(a)
            velocity = momentum * velocity - rate * gradient
            agreement = 0.0
            if change is not None:
                agreement = -float((gradient * change).sum())
                agreement /= float(np.linalg.norm(gradient) * np.linalg.norm(change))
            change = velocity
            w = w + velocity
            rate = min(rate * (1 + beta * agreement), high)
    return w, rate


def scheduled_momentum(x, y, w, *, kind, rate, batch, epochs, momentum):
    """Least squares by SGD or Adam with a momentum that changes; float64."""
    x, y, w = (np.asarray(a, "float64") for a in (x, y, w))
    m, v, t = np.zeros_like(w), np.zeros_like(w), 0
    for _ in range(epochs):
        for i in range(0, len(x), batch):
            a, b = x[i : i + batch], y[i : i + batch]
            gradient = 2 * a.T @ (a @ w - b) / len(a)
            mu = momentum(t)
            t += 1
            if kind == "sgd":
                m = mu * m - rate * gradient
                w = w + m
                continue
            m = mu * m + (1 - mu) * gradient
            v = 0.999 * v + 0.001 * gradient**2
            step = rate * np.sqrt(1 - 0.999**t) / (1 - mu**t)
            w = w - step * m / (np.sqrt(v) + 1e-7)
    return w
