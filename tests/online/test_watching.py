"""Prequential errors and detectors, against their formulas and river."""

import numpy as np
import pytest
from river import drift
from river.drift import binary

from keras_dlopt import errors
from keras_dlopt.errors import ConfigError
from keras_dlopt.online import ADWIN, DDM, Detector, OnDrift, PageHinkley, Prequential

STREAM = np.concatenate(
    [
        np.random.default_rng(0).random(600) < 0.1,
        np.random.default_rng(1).random(400) < 0.6,
        np.random.default_rng(2).random(500) < 0.05,
        np.random.default_rng(3).random(500) < 0.5,
    ]
).astype("float64")
RIVER = {
    ADWIN(): drift.ADWIN,
    DDM(): binary.DDM,
    PageHinkley(threshold=20.0): lambda: drift.PageHinkley(threshold=20.0, mode="up"),
}


@pytest.mark.parametrize("fading", [1.0, 0.99, 0.5])
def test_prequential_error_is_the_faded_mean(fading):
    found = Prequential(fading=fading)
    for part in np.split(STREAM, [7, 500]):
        found.update(part)
    weights = fading ** np.arange(len(STREAM))[::-1]
    assert found.error == pytest.approx((weights * STREAM).sum() / weights.sum())
    assert found.accuracy == 1 - found.error
    assert found.mean == pytest.approx(STREAM.mean())
    again = Prequential(fading=fading)
    again.restore(found.state())
    assert (again.error, again.mean, again.count) == (found.error, found.mean, 2000)


def test_nothing_is_known_before_the_first_sample():
    assert np.isnan(Prequential().error)
    assert np.isnan(Prequential().mean)
    with pytest.raises(ConfigError, match=r"fading must be a number in \(0, 1\]"):
        Prequential(fading=0.0)


@pytest.mark.parametrize("detector", RIVER, ids=lambda d: type(d).__name__)
def test_alarms_are_rivers(detector):
    plain, wanted, falls, start = RIVER[detector](), [], 0, 0
    for i, error in enumerate(STREAM):
        plain.update(error)
        if plain.drift_detected:
            # ADWIN keeps the later part of its window: is it above the whole?
            late = int(getattr(plain, "width", 0))
            part = STREAM[i + 1 - late : i + 1] if late else STREAM[i : i + 1]
            rises = not late or part.mean() > STREAM[start : i + 1].mean()
            wanted += [i] if rises else []
            falls += not rises
            start = i + 1
    assert detector.start().update(STREAM) == wanted
    assert 1 <= len(wanted) < 20
    assert (falls > 0) == isinstance(detector, ADWIN)


@pytest.mark.parametrize("detector", RIVER, ids=lambda d: type(d).__name__)
@pytest.mark.parametrize("at", [0, 333, 900])
def test_a_detector_is_its_inputs(detector, at):
    whole, first = detector.start(), detector.start()
    before = first.update(STREAM[:at])
    again = detector.start()
    again.restore(first.state())
    rest = [at + i for i in again.update(STREAM[at:])]
    assert before + rest == whole.update(STREAM)


def test_inputs_that_are_kept_are_bounded():
    watch = ADWIN().start(longest=200)
    watch.update(np.zeros(1000))
    assert 100 <= len(watch.state()) < 200
    # Still the function of what is kept: resumed or not, the alarm is the same.
    again = ADWIN().start(longest=200)
    again.restore(watch.state())
    found = watch.update(np.ones(100))
    assert found == again.update(np.ones(100))
    assert found


def test_the_rate_decays_back():
    reaction = OnDrift(factor=5.0, half_life=10)
    assert [reaction.at(t) for t in (0, 10, 20)] == [5.0, 3.0, 2.0]
    assert reaction.at(1000) == 1.0
    assert OnDrift().at(0) == 1.0


def test_configs_and_refusals():
    for value in (*RIVER, OnDrift(2.0, forget=True)):
        assert type(value).from_config(value.get_config()) == value
    with pytest.raises(ConfigError, match=r"delta must be a number in \(0, 1\)"):
        ADWIN(delta=1.0)
    with pytest.raises(ConfigError, match="threshold must be a positive number"):
        PageHinkley(threshold=0)
    with pytest.raises(ConfigError, match="factor must be a number, 1 or greater"):
        OnDrift(factor=0.5)
    with pytest.raises(TypeError, match="Detector must define make"):
        Detector().make()


def test_river_is_asked_for_by_name(monkeypatch):
    monkeypatch.setattr(errors.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        errors.MissingDependencyError,
        match=r"'river', which is not installed\. .* 'keras-dlopt\[online\]'",
    ):
        DDM().start()
