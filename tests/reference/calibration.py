"""Twins of the quality measures: one example at a time, in plain Python."""

import math


def softmax(row):
    exps = [math.exp(v - max(row)) for v in row]
    return [e / sum(exps) for e in exps]


def negative_log_likelihood(rows, labels):
    return -sum(
        math.log(max(p[y], 1e-7)) for p, y in zip(rows, labels, strict=True)
    ) / len(labels)


def calibration_error(rows, labels, bins=15):
    """Guo et al. (arXiv:1706.04599), equation 3, bins ((m - 1) / M, m / M]."""
    total = 0.0
    for m in range(1, bins + 1):
        inside = [
            (max(p), p.index(max(p)) == y)
            for p, y in zip(rows, labels, strict=True)
            if (m - 1) / bins < max(p) <= m / bins
        ]
        if inside:
            confidence = sum(c for c, _ in inside) / len(inside)
            accuracy = sum(right for _, right in inside) / len(inside)
            total += len(inside) / len(labels) * abs(accuracy - confidence)
    return total


def class_accuracy(rows, labels, number):
    mine = [p for p, y in zip(rows, labels, strict=True) if y == number]
    return sum(p.index(max(p)) == number for p in mine) / len(mine)


def churn(one, two):
    differ = [p.index(max(p)) != q.index(max(q)) for p, q in zip(one, two, strict=True)]
    return sum(differ) / len(differ)
