"""Float64 twins of clustering: loops over weights, sharing no code with the package."""

import math

import numpy as np


def nearest(values, centroids):
    """For each value the first of the nearest centroids, by comparing with all."""
    out = []
    for v in np.ravel(values):
        distances = [abs(float(v) - float(c)) for c in centroids]
        out.append(distances.index(min(distances)))
    return np.array(out).reshape(np.shape(values))


def lloyd(values, centroids, *, steps):
    """Assign, average, repeat; an empty cluster stays."""
    centroids = [float(c) for c in centroids]
    for _ in range(steps):
        index = nearest(values, centroids)
        for k in range(len(centroids)):
            own = np.ravel(values)[np.ravel(index) == k]
            if own.size:
                centroids[k] = float(np.mean(own, dtype="float64"))
    return np.array(centroids)


def mixture_cost(weights, means, deviations, shares, priors):
    """-log p(w) - log p(precisions), the constants of the Gamma priors left out."""
    cost = 0.0
    for w in np.ravel(weights):
        density = 0.0
        for mean, deviation, share in zip(means, deviations, shares, strict=True):
            z = (float(w) - mean) / deviation
            density += share * math.exp(-z * z / 2) / deviation / math.sqrt(2 * math.pi)
        cost -= math.log(density)
    for deviation, (shape, rate) in zip(deviations, priors, strict=True):
        precision = deviation**-2
        cost -= (shape - 1) * math.log(precision) - rate * precision
    return cost


def most_probable(weights, means, deviations, shares):
    """The component that most probably made each weight."""
    out = []
    for w in np.ravel(weights):
        scores = [
            math.log(s) - math.log(d) - ((float(w) - m) / d) ** 2 / 2
            for m, d, s in zip(means, deviations, shares, strict=True)
        ]
        out.append(scores.index(max(scores)))
    return np.array(out).reshape(np.shape(weights))
