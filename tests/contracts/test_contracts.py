"""The contracts that one process on the TensorFlow backend can check."""

import dataclasses
import functools
import inspect

import keras
import numpy as np
import pytest

from catalogue import all_cases
from contracts.building import LATE, trial
from contracts.equality import WIDE, difference, precision_for
from keras_dlopt.config import Configured, arguments, decode
from keras_dlopt.errors import ConfigError
from keras_dlopt.optimizers._hyper import Declared

CASES = all_cases()
VALUES = ("optimizer", "schedule", "callback", "layer", "transform", "term")


def _cases(contract, kinds=None):
    params = []
    for case in CASES:
        if kinds and case.kind not in kinds:
            continue
        marks = []
        if contract in case.exempt:
            marks.append(pytest.mark.skip(reason=case.exempt[contract]))
        params.append(pytest.param(case, id=case.name, marks=marks))
    return pytest.mark.parametrize("case", params)


@dataclasses.dataclass(frozen=True)
class _Plain:
    """What training in a plain graph gives: weights after one and after two calls."""

    once: list[np.ndarray]
    twice: list[np.ndarray]
    traces: tuple[int, int]


@functools.cache
def _plain_training(name):
    """Trains once for all the contracts that compare with it."""
    t = trial(next(case for case in CASES if case.name == name))
    t.fit()
    once, traces = t.weights(), len(t.traces)
    t.fit()
    return _Plain(once, t.weights(), (traces, len(t.traces)))


def _close(case, left, right, atol):
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        if np.issubdtype(a.dtype, np.floating):
            assert np.all(np.isfinite(a))
            assert np.all(np.isfinite(b))
        if not case.random:
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=atol)


def _plain(value):
    """A config with live objects made comparable."""
    return keras.saving.serialize_keras_object(value)


@_cases("config", kinds=VALUES)
def test_config_round_trip(case):
    obj = case.make()
    config = obj.get_config()
    again = type(obj).from_config(config)
    assert type(again) is type(obj)
    assert _plain(again.get_config()) == _plain(config)


@_cases("config", kinds=VALUES)
def test_config_keys_are_the_constructor_arguments_in_order(case):
    obj = case.make()
    arguments = [
        name
        for name, p in inspect.signature(type(obj).__init__).parameters.items()
        if name != "self"
        and p.kind
        not in (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    ]
    keys = [key for key in obj.get_config() if key in arguments]
    if case.kind in ("optimizer", "layer"):  # Keras' base classes add their own first
        assert set(arguments) <= set(obj.get_config())
    else:
        assert keys == arguments


@_cases("config", kinds=VALUES)
def test_numbers_get_one_verdict(case):
    """NumPy's numbers are numbers; NaN, infinities and bools are not."""
    obj = case.make()
    make, config = type(obj), obj.get_config()
    if not isinstance(obj, Configured | Declared):
        pytest.skip("takes its arguments as its parent does")
    names = obj.hypers if isinstance(obj, Declared) else arguments(make)
    given = {name: decode(config[name]) for name in names}
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        kinds = (np.int64, np.asarray) if isinstance(value, int) else (np.float64,)
        for kind in kinds:
            again = make(**{**given, name: kind(value)}).get_config()
            assert type(again[name]) is type(value), name
            assert again[name] == value, name
        for bad in (True, np.nan, np.inf, "1"):
            with pytest.raises(ConfigError, match=rf"{name} must"):
                make(**{**given, name: bad})


@_cases("keras_file", kinds=("optimizer", "schedule", "layer", "transform", "model"))
def test_keras_file_round_trip(case, tmp_path):
    first = trial(case)
    first.fit()
    first.model.compile(  # a loss that a file can name
        optimizer=first.model.optimizer, loss=None, metrics=None
    )
    path = tmp_path / "model.keras"
    first.model.save(path)
    again = keras.saving.load_model(path)
    np.testing.assert_array_equal(
        first.model.predict(first.x, verbose=0), again.predict(first.x, verbose=0)
    )
    for a, b in zip(first.model.weights, again.weights, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a.numpy(), b.numpy())
    if again.optimizer is not None:
        for a, b in zip(
            first.model.optimizer.variables, again.optimizer.variables, strict=True
        ):
            np.testing.assert_array_equal(a.numpy(), b.numpy())


@_cases("xla")
def test_xla_equals_graph(case):
    with precision_for(case.name, "xla"):
        xla = trial(case, jit=True)
        xla.fit()
        if case.name in WIDE["xla"]:
            plain = trial(case)
            plain.fit()
            once = plain.weights()
        else:
            once = _plain_training(case.name).once
        _close(case, once, xla.weights(), 2e-5)


@_cases("mixed_bfloat16")
def test_mixed_bfloat16(case):
    keras.config.set_dtype_policy("mixed_bfloat16")
    t = trial(case)
    dtypes = [v.dtype for v in t.model.trainable_variables]
    history = t.fit(epochs=2)
    assert np.all(np.isfinite(history.history["loss"]))
    assert [v.dtype for v in t.model.trainable_variables] == dtypes
    assert set(dtypes) == {"float32"}


@_cases("steps_per_execution")
def test_steps_per_execution_changes_nothing(case):
    plain, two = _plain_training(case.name), trial(case, steps_per_execution=2)
    two.fit()
    two.fit()
    _close(case, plain.twice, two.weights(), 1e-6)


@_cases("no_retrace")
def test_second_fit_does_not_retrace(case):
    before, after = _plain_training(case.name).traces
    assert before > 0
    assert after == before


@pytest.mark.parametrize("late", LATE)
@_cases("built_late", kinds=("callback",))
def test_a_model_that_its_first_batch_builds_trains_as_a_built_one(case, late):
    runs = []
    for built in (True, False):
        t = trial(case, late=late)
        if built:
            t.model(t.x[:1])
        runs += [t.run(epochs=2), t.run()]
    assert difference(runs[0], runs[2]) == difference(runs[1], runs[3]) == 0.0
