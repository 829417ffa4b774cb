"""Detectors of drift, river's, whose state is what they were given."""

from typing import Any

import keras
import numpy as np

from keras_dlopt import checks
from keras_dlopt.config import Value, frozen
from keras_dlopt.errors import require

# Inputs since the last drift that are kept, as float32.
_LONGEST = 20_000


class Detector(Value):
    """A detector of drift; a subclass makes river's."""

    #: Whether it takes nothing but 0 and 1.
    binary = False

    def make(self) -> Any:
        """River's object of the same arguments, before its first input."""
        raise TypeError(f"{type(self).__name__} must define make().")

    def mean(self, made: Any) -> float | None:
        """Of the errors that river's object looks at; None where it sees rises only."""

    def start(self, *, longest: int = _LONGEST) -> "Watch":
        """A watch over errors as they come.

        Raises:
            MissingDependencyError: without river.
        """
        require("river", extra="online", purpose="Drift detection")
        return Watch(self, longest=longest)


@keras.saving.register_keras_serializable("keras_dlopt")
@frozen
class ADWIN(Detector):
    """Two parts of an adaptive window have different means, and the later is higher.

    River's detector also stops where errors fall; those are no drifts here, and the
    window begins anew.

    Args:
        delta: probability of a false alarm at each check, in (0, 1).
        clock: errors between two checks.

    Raises:
        ConfigError: for numbers out of range.

    Example:
        >>> ADWIN(delta=0.01)
        ADWIN(delta=0.01)

    Source: Bifet and Gavalda, "Learning from Time-Changing Data with Adaptive
    Windowing" (SDM 2007), as `river.drift.ADWIN`.
    """

    delta: float = 0.002
    clock: int = 32

    def __post_init__(self):
        self.keep(
            delta=checks.fraction(self.delta, name="delta"),
            clock=checks.count(self.clock, name="clock"),
        )

    def make(self):
        from river import drift

        return drift.ADWIN(delta=self.delta, clock=self.clock)

    def mean(self, made):
        return float(made.estimation)


@keras.saving.register_keras_serializable("keras_dlopt")
@frozen
class DDM(Detector):
    """The error rate is well above the lowest so far; for classes only.

    Args:
        warm_start: errors before the first alarm.
        threshold: standard deviations above the lowest rate.

    Raises:
        ConfigError: for numbers out of range.

    Example:
        >>> DDM()
        DDM()

    Source: Gama, Medas, Castillo, Rodrigues, "Learning with Drift Detection" (SBIA
    2004), as `river.drift.binary.DDM`.
    """

    warm_start: int = 30
    threshold: float = 3.0
    binary = True

    def __post_init__(self):
        self.keep(
            warm_start=checks.count(self.warm_start, name="warm_start"),
            threshold=checks.positive(self.threshold, name="threshold"),
        )

    def make(self):
        from river.drift import binary

        return binary.DDM(warm_start=self.warm_start, drift_threshold=self.threshold)


@keras.saving.register_keras_serializable("keras_dlopt")
@frozen
class PageHinkley(Detector):
    """The sum of what errors exceed their mean by has risen by a threshold.

    Args:
        threshold: of the sum, in units of the error.
        delta: what a single error may exceed the mean by, in the same units.
        warm_start: errors before the first alarm.

    Raises:
        ConfigError: for numbers out of range.

    Example:
        >>> PageHinkley(threshold=20.0)
        PageHinkley(threshold=20.0)

    Source: Page, "Continuous Inspection Schemes" (Biometrika 41, 1954), as
    `river.drift.PageHinkley`, upwards only.
    """

    threshold: float = 50.0
    delta: float = 0.005
    warm_start: int = 30

    def __post_init__(self):
        self.keep(
            threshold=checks.positive(self.threshold, name="threshold"),
            delta=checks.rate(self.delta, name="delta"),
            warm_start=checks.count(self.warm_start, name="warm_start"),
        )

    def make(self):
        from river import drift

        return drift.PageHinkley(
            min_instances=self.warm_start,
            delta=self.delta,
            threshold=self.threshold,
            mode="up",
        )


class Watch:
    """A detector at work, which is a function of its inputs since the last drift.

    They are its whole state: a watch that was stored is made again by giving them to a
    new detector. After `longest` of them the later half is what it starts from anew.

    Args:
        detector: which one.
        longest: most inputs that are kept.

    Example:
        >>> watch = DDM().start()
        >>> errors = np.array([0] * 80 + [1, 0] * 20)
        >>> [int(i) for i in watch.update(errors)]
        [80]
    """

    def __init__(self, detector: Detector, *, longest: int = _LONGEST):
        self.detector, self.longest = detector, longest
        self._replay(np.zeros(0, "float32"))

    def update(self, errors: Any) -> list[int]:
        """Gives errors in their order; returns the places at which it saw a drift."""
        found = []
        for i, error in enumerate(np.asarray(errors, "float32").ravel().tolist()):
            if self._give(error):
                found.append(i)
            elif len(self._log) >= self.longest:
                self._replay(self.state()[self.longest // 2 :])
        return found

    def _give(self, error: float) -> bool:
        self._log.append(error)
        before = self.detector.mean(self._river)
        self._river.update(int(error) if self.detector.binary else error)
        if not self._river.drift_detected:
            return False
        after = self.detector.mean(self._river)
        self._replay(np.zeros(0, "float32"))
        return before is None or after is None or after > before

    def _replay(self, errors: np.ndarray) -> None:
        self._river = self.detector.make()
        self._log: list[float] = []
        for error in errors.tolist():
            self._give(error)

    def state(self) -> np.ndarray:
        """The inputs since the last drift, float32."""
        return np.array(self._log, "float32")

    def restore(self, state: np.ndarray) -> None:
        """Takes on what `state` gave."""
        self._replay(np.asarray(state, "float32"))
