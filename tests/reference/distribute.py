"""NumPy twins of what replicas exchange, for all replicas at once, in float64."""

import numpy as np


def top_k(gradients, errors, count):
    """Sum of the largest entries of each replica, and what each kept."""
    total, kept = np.zeros(gradients[0].size), []
    for gradient, error in zip(gradients, errors, strict=True):
        wanted = (np.asarray(gradient, float) + error).ravel()
        places = np.argsort(-np.abs(wanted), kind="stable")[:count]
        total[places] += wanted[places]
        rest = wanted.copy()
        rest[places] = 0.0
        kept.append(rest.reshape(gradient.shape))
    return total.reshape(gradients[0].shape), kept


def power_sgd(gradients, errors, q):
    """Sum that PowerSGD sends, what each replica kept, and the next Q."""
    rows, columns = int(np.prod(gradients[0].shape[:-1])), gradients[0].shape[-1]
    wanted = [
        (np.asarray(g, float) + e).reshape(rows, columns)
        for g, e in zip(gradients, errors, strict=True)
    ]
    p = np.mean([w @ q for w in wanted], axis=0)
    # The projector on P's columns does not depend on the signs that QR chose.
    basis = np.linalg.svd(p, full_matrices=False)[0]
    mean = basis @ basis.T @ np.mean(wanted, axis=0)
    kept = [(w - mean).reshape(gradients[0].shape) for w in wanted]
    return mean.reshape(gradients[0].shape) * len(wanted), kept


def shares(batch_size, speeds):
    """One example each, then one at a time to whoever is furthest below its quota."""
    got = [0] * len(speeds)
    free = batch_size - len(speeds)
    quota = [free * s / sum(speeds) for s in speeds]
    got = [int(q) for q in quota]
    while sum(got) < free:
        behind = max(range(len(got)), key=lambda i: (round(quota[i] - got[i], 9), -i))
        got[behind] += 1
    return [g + 1 for g in got]
