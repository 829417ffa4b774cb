"""Float64 twins of pruning: loops over single weights, no code of the package."""

import math

import numpy as np


def lowest(scores, count):
    """Zeros at the `count` lowest scores; of equal ones the first go."""
    flat = np.asarray(scores, "float64").ravel()
    order = sorted(range(flat.size), key=lambda i: (flat[i], i))
    mask = np.ones(flat.size)
    for i in order[:count]:
        mask[i] = 0
    return mask.reshape(np.shape(scores))


def global_masks(scores, sparsity):
    """One order over all tensors; of equal scores the earlier tensor's go first."""
    entries = [
        (float(v), t, i)
        for t, tensor in enumerate(scores)
        for i, v in enumerate(np.asarray(tensor).ravel())
    ]
    masks = [np.ones(np.size(tensor)) for tensor in scores]
    for _, t, i in sorted(entries)[: round(sparsity * len(entries))]:
        masks[t][i] = 0
    return [m.reshape(np.shape(s)) for m, s in zip(masks, scores, strict=True)]


def n_of_m(scores, keep, m, axis):
    """In every group of m along the axis the `keep` highest stay."""
    moved = np.moveaxis(np.asarray(scores, "float64"), axis, -1)
    mask = np.ones(moved.shape)
    for index in np.ndindex(moved.shape[:-1]):
        for start in range(0, moved.shape[-1], m):
            group = moved[index][start : start + m]
            order = sorted(range(m), key=lambda i, g=group: (g[i], i))
            for i in order[: m - keep]:
                mask[index][start + i] = 0
    return np.moveaxis(mask, -1, axis)


def block_mean(scores, block):
    """The mean of every block of the last axes; blocks may be cut off at the end."""
    scores = np.asarray(scores, "float64")
    block = (1,) * (scores.ndim - len(block)) + tuple(block)
    grid = [math.ceil(n / b) for n, b in zip(scores.shape, block, strict=True)]
    means = np.zeros(grid)
    for index in np.ndindex(*grid):
        part = tuple(
            slice(i * b, (i + 1) * b) for i, b in zip(index, block, strict=True)
        )
        means[index] = scores[part].mean()
    return means


def erk_density(shapes, density):
    """Evci et al.: tensors whose density would exceed 1 stay dense, until none does."""
    sizes = [math.prod(s) for s in shapes]
    raw = [sum(s) / n for s, n in zip(shapes, sizes, strict=True)]
    is_dense = [False] * len(shapes)
    while True:
        rest = density * sum(sizes)
        mass = 0.0
        for i, n in enumerate(sizes):
            if is_dense[i]:
                rest -= n
            else:
                mass += raw[i] * n
        epsilon = rest / mass if mass else 0.0
        over = [not d and epsilon * r > 1 for d, r in zip(is_dense, raw, strict=True)]
        if not any(over):
            break
        is_dense = [d or o for d, o in zip(is_dense, over, strict=True)]
    return [1.0 if d else epsilon * r for d, r in zip(is_dense, raw, strict=True)]


def lamp(weight):
    """Lee et al., equation 4, for every weight by itself."""
    flat = np.asarray(weight, "float64").ravel() ** 2
    scores = np.zeros(flat.size)
    for i, v in enumerate(flat):
        rest = sum(float(u) for j, u in enumerate(flat) if u > v or (u == v and j >= i))
        scores[i] = v / rest if rest else 0.0
    return scores.reshape(np.shape(weight))


def tfmot_mask(weight, sparsity):
    """TFMOT 0.8: float32, half to even, ties at the threshold stay."""
    flat = np.sort(np.abs(np.asarray(weight, "float32").ravel()))[::-1]
    share = np.float32(1) - np.float32(sparsity)
    keep = int(np.rint(np.float32(flat.size) * share))
    threshold = flat[max(keep - 1, 0)]
    return (np.abs(np.asarray(weight, "float32")) >= threshold).astype("float64")


def regrow(weight, gradient, mask, moved):
    """One exchange of "Rigging the Lottery": new mask, new weight."""
    weight, mask = np.array(weight, "float64"), np.array(mask, "float64")
    kept = [i for i in range(mask.size) if mask.ravel()[i] == 1]
    flat, slope = weight.ravel().copy(), np.abs(np.ravel(gradient))
    for i in sorted(kept, key=lambda i: (abs(flat[i]), i))[:moved]:
        kept.remove(i)
    out = [i for i in range(mask.size) if i not in kept]
    # Of equal gradients the last ones grow, as the first ones are the first to go.
    grown = sorted(out, key=lambda i: (slope[i], i))[len(out) - moved :]
    new = np.zeros(mask.size)
    new[kept + grown] = 1
    for i in grown:
        if mask.ravel()[i] == 0:
            flat[i] = 0
    return new.reshape(mask.shape), flat.reshape(mask.shape)


def divergence(log_alpha):
    """Molchanov et al., equation 14, negated and shifted to end at 0."""
    k1, k2, k3 = 0.63576, 1.87320, 1.48695
    fit = k1 / (1 + math.exp(-(k2 + k3 * log_alpha)))
    return -(fit - 0.5 * math.log(1 + math.exp(-log_alpha)) - k1)


def hard_concrete(a, u=None):
    """Louizos et al., equations 10 to 13: a sample for u, or the gate of a test."""
    logistic = a if u is None else (math.log(u) - math.log(1 - u) + a) / (2 / 3)
    s = 1 / (1 + math.exp(-logistic))
    return min(1.0, max(0.0, s * 1.2 - 0.1))


def open_probability(a):
    """Louizos et al., equation 12."""
    return 1 / (1 + math.exp(-(a - 2 / 3 * math.log(0.1 / 1.1))))
