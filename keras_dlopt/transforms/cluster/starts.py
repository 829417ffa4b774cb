"""Where k-means starts: small frozen values, or their names."""

import keras
import numpy as np

from keras_dlopt import checks
from keras_dlopt.config import Value


class Start(Value):
    """The first centroids of a clustering.

    Subclasses write `__call__`. To be saved, a new one must be registered with
    `keras.saving.register_keras_serializable`.
    """

    def __call__(self, values: np.ndarray, clusters: int, *, seed: int) -> np.ndarray:
        """The starting points.

        Args:
            values: the numbers to cluster, in the order of the weight, at least one.
            clusters: how many points, at least one.
            seed: for drawn points.

        Returns:
            `clusters` numbers, ascending.
        """
        raise TypeError(f"{type(self).__name__} does not say where k-means starts.")


@keras.saving.register_keras_serializable("keras_dlopt", name="Linear")
class LinearStart(Start):
    """Evenly spaced from the smallest to the largest number.

    Keeps the few large weights, which Han et al. found to matter most.

    Example:
        >>> LinearStart()(np.array([0.0, 3.0, 1.0]), 4, seed=0).tolist()
        [0.0, 1.0, 2.0, 3.0]
    """

    def __call__(self, values, clusters, *, seed):
        return np.linspace(values.min(), values.max(), clusters)


@keras.saving.register_keras_serializable("keras_dlopt")
class Density(Start):
    """Evenly spaced in the cumulative distribution: as many weights in each cluster.

    Example:
        >>> Density()(np.arange(8.0), 2, seed=0).tolist()
        [1.75, 5.25]
    """

    def __call__(self, values, clusters, *, seed):
        return np.quantile(values, (np.arange(clusters) + 0.5) / clusters)


@keras.saving.register_keras_serializable("keras_dlopt", name="cluster_Random")
class RandomStart(Start):
    """Drawn evenly between the smallest and the largest number.

    Example:
        >>> RandomStart()(np.array([0.0, 1.0]), 3, seed=0).round(2).tolist()
        [0.04, 0.27, 0.64]
    """

    def __call__(self, values, clusters, *, seed):
        rng = np.random.default_rng(seed)
        return np.sort(rng.uniform(values.min(), values.max(), clusters))


@keras.saving.register_keras_serializable("keras_dlopt")
class KMeansPlusPlus(Start):
    """Drawn in proportion to the squared distance to the nearest one drawn before.

    Source: Arthur and Vassilvitskii, "k-means++" (2007), section 2.2.

    Example:
        >>> KMeansPlusPlus()(np.array([0.0, 0.0, 7.0]), 2, seed=0).tolist()
        [0.0, 7.0]
    """

    def __call__(self, values, clusters, *, seed):
        rng = np.random.default_rng(seed)
        values = np.sort(values)
        chosen = [rng.choice(values)]
        distance = np.square(values - chosen[0])
        for _ in range(clusters - 1):
            total = np.cumsum(distance)
            if total[-1] == 0:  # fewer different numbers than clusters
                chosen.append(values[-1])
                continue
            chosen.append(values[np.searchsorted(total, rng.uniform(0, total[-1]))])
            distance = np.minimum(distance, np.square(values - chosen[-1]))
        return np.sort(chosen)


_NAMES = {
    "linear": LinearStart(),
    "kmeans++": KMeansPlusPlus(),
    "density": Density(),
    "random": RandomStart(),
}


def start_of(initial: str | Start) -> Start:
    """The start of a name; a start itself is returned as it is.

    Raises:
        ConfigError: for an unknown name.
    """
    if isinstance(initial, Start):
        return initial
    known = checks.choice(
        initial, name="initial", choices=_NAMES, hint="Or give a Start of your own."
    )
    return _NAMES[known]
