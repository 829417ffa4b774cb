"""Errors on samples that were predicted before they were learned."""

from typing import Any

import numpy as np

from keras_dlopt import checks


class Prequential:
    """Mean errors of a stream, each sample tested first and learned then.

        S_i = e_i + fading * S_(i-1),   B_i = 1 + fading * B_(i-1),   P_i = S_i / B_i

    Args:
        fading: what a sample's weight is multiplied with when the next one comes, in
            (0, 1]; 0.999 looks back about 1,000 samples, 1 over all.

    Attributes:
        count: samples so far.

    Raises:
        ConfigError: for a factor out of range.

    Example:
        >>> found = Prequential(fading=0.5)
        >>> found.update(np.array([1.0, 0.0]))
        >>> found.error, found.mean
        (0.3333333333333333, 0.5)

    Source: Gama, Sebastião, Rodrigues, "On evaluating stream learning algorithms"
    (Machine Learning 90, 2013), section 4.
    """

    def __init__(self, *, fading: float = 0.999):
        self.fading = checks.share(fading, name="fading")
        self.count = 0
        self._sum = self._weight = self._all = 0.0

    def update(self, errors: Any) -> None:
        """Adds samples in their order: an error each, 0 or 1 for classes."""
        for error in np.asarray(errors, "float64").ravel().tolist():
            self._sum = error + self.fading * self._sum
            self._weight = 1.0 + self.fading * self._weight
            self._all += error
            self.count += 1

    @property
    def error(self) -> float:
        """The faded mean; NaN before the first sample."""
        return self._sum / self._weight if self.count else float("nan")

    @property
    def accuracy(self) -> float:
        """1 less the faded error; of classes, the share that was right."""
        return 1.0 - self.error

    @property
    def mean(self) -> float:
        """The mean over all samples, without fading."""
        return self._all / self.count if self.count else float("nan")

    def state(self) -> dict[str, Any]:
        """Numbers from which `restore` makes the same again."""
        return {
            "count": self.count,
            "sum": self._sum,
            "weight": self._weight,
            "all": self._all,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Takes on what `state` gave."""
        self.count = int(state["count"])
        self._sum, self._weight = float(state["sum"]), float(state["weight"])
        self._all = float(state["all"])
