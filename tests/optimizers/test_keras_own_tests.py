"""Keras' own tests of its optimizers, run with our classes in place of Keras'."""

import importlib
import unittest

import keras
import pytest

from keras_dlopt import optimizers

MODULES = {
    "sgd": ["SGD"],
    "rmsprop": ["RMSprop"],
    "adam": ["Adam"],
    "adamw": ["AdamW"],
    "adagrad": ["Adagrad"],
}


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", MODULES)
def test_keras_own_tests_pass_with_our_class(name, monkeypatch, request):
    request.config.addinivalue_line("markers", "requires_trainable_backend: Keras' own")
    module = importlib.import_module(f"keras.src.optimizers.{name}_test")
    for cls in MODULES[name]:
        assert getattr(module, cls) is getattr(keras.optimizers, cls)
        monkeypatch.setattr(module, cls, getattr(optimizers, cls))
    suite = unittest.defaultTestLoader.loadTestsFromModule(module)
    result = unittest.TestResult()
    suite.run(result)
    assert result.testsRun >= 6
    problems = [text for _, text in result.failures + result.errors]
    assert not problems, "\n".join(problems)
