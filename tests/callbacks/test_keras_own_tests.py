"""Keras' own tests of its callbacks, run with our classes in place of Keras'."""

import types
import unittest

import keras
import pytest

from keras_dlopt import callbacks

# What Keras' class does otherwise on purpose, or keeps under names of its own.
PLATEAU_DIFFERS = {
    "test_throws_when_optimizer_has_schedule": "ours multiplies the schedule",
    "test_verbose_logging": "nothing here prints",
    "test_state_reset_across_fit_calls": "reads Keras' attributes",
}


def _plateau(*, min_lr=0.0, **arguments):
    return callbacks.ReduceOnPlateau(min_rate=min_lr, **arguments)


@pytest.mark.filterwarnings("default")
def test_reduce_lr_on_plateau(monkeypatch, request):
    request.config.addinivalue_line("markers", "requires_trainable_backend: Keras' own")
    module = pytest.importorskip("keras.src.callbacks.reduce_lr_on_plateau_test")
    ours = types.SimpleNamespace(
        **{**vars(keras.callbacks), "ReduceLROnPlateau": _plateau}
    )
    monkeypatch.setattr(module, "callbacks", ours)
    case = module.ReduceLROnPlateauTest
    names = unittest.defaultTestLoader.getTestCaseNames(case)
    assert set(PLATEAU_DIFFERS) <= set(names)
    suite = unittest.TestSuite(case(n) for n in names if n not in PLATEAU_DIFFERS)
    result = unittest.TestResult()
    suite.run(result)
    assert result.testsRun >= 3
    problems = [text for _, text in result.failures + result.errors]
    assert not problems, "\n".join(problems)
