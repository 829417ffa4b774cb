"""Keras' own tests, run with our classes in place of Keras'."""

import contextlib
import functools
import importlib
import sys
import unittest

import keras
import pytest
from keras import ops

from keras_dlopt import layers, optimizers
from keras_dlopt.optimizers._engine import Engine

CLASSES = ("SGD", "RMSprop", "Adam", "AdamW", "Adagrad")
# Files beside Keras' sources, and the fewest tests that each must hold.
FILES = {
    "optimizers.sgd_test": 6,
    "optimizers.rmsprop_test": 6,
    "optimizers.adam_test": 6,
    "optimizers.adamw_test": 6,
    "optimizers.adagrad_test": 6,
    "optimizers.optimizer_test": 30,
    "optimizers.optimizer_sparse_test": 30,
    "optimizers.loss_scale_optimizer_test": 10,
    "optimizers.multi_optimizer_test": 8,
    "layers.normalization.batch_normalization_test": 10,
    "callbacks.swap_ema_weights_test": 4,
    "callbacks.backup_and_restore_test": 6,
}
# These look at how a step is written: that all goes through `Optimizer.assign` but the
# decay, which Keras' test leaves out by a method's name. Ours decays elsewhere, and the
# flat variables of many weights are assigned directly.
OF_CODE = {False: "test_sparse_gradients_adamw", True: "test_sparse_gradients"}
# Changes TensorFlow's devices; keras_dlopt's replicas are compared in contracts/.
OF_DEVICES = "test_swap_ema_weights_with_tf_distribute"
SMALL = ((2,), (3,), (2, 2), (4,), (1,))


def _our_classes(monkeypatch):
    """Puts our classes where Keras' tests find theirs."""
    inside = importlib.import_module("keras.src.optimizers")
    for name in CLASSES:
        ours, theirs = getattr(optimizers, name), getattr(keras.optimizers, name)
        monkeypatch.setattr(inside, name, ours)
        alone = importlib.import_module(f"keras.src.optimizers.{name.lower()}")
        monkeypatch.setattr(alone, name, ours)
        monkeypatch.setitem(inside.ALL_OBJECTS_DICT, name.lower(), ours)
        assert issubclass(ours, theirs)
    inside = importlib.import_module("keras.src.layers")
    monkeypatch.setattr(inside, "BatchNormalization", layers.BatchNormalization)


def _five_more(monkeypatch):
    """Gives every optimizer five small weights more, so that a slab takes part."""
    build, apply = Engine.build, Engine.apply

    def more(optimizer):
        known = getattr(optimizer, "five_more", None)
        if known is None:
            known = tuple(keras.Variable(ops.ones(shape)) for shape in SMALL)
            object.__setattr__(optimizer, "five_more", known)
        return known

    @functools.wraps(build)
    def built(self, variables):
        build(self, [*variables, *more(self)])

    @functools.wraps(apply)
    def applied(self, grads, trainable_variables=None):
        grads, five = list(grads), more(self)
        if trainable_variables is None and self.built:
            trainable_variables = self._built.variables[: -len(five)]
        if all(g is None for g in grads) or trainable_variables is None:
            return apply(self, grads, trainable_variables)
        variables = list(trainable_variables)
        if not self.built:
            self.build(variables)
        zeros = [ops.zeros(v.shape) for v in five]
        return apply(self, [*grads, *zeros], [*variables, *five])

    monkeypatch.setattr(Engine, "build", built)
    monkeypatch.setattr(Engine, "apply", applied)


@contextlib.contextmanager
def _imported_again(name):
    """The module of tests, with what is in place of Keras' classes now."""
    path = f"keras.src.{name}"
    before = sys.modules.pop(path, None)
    try:
        module = importlib.import_module(path)
    except ImportError as error:
        pytest.skip(f"this Keras comes without its tests: {error}")
    try:
        yield module
    finally:
        sys.modules.pop(path, None)
        if before is not None:
            sys.modules[path] = before


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("slab", [False, True], ids=["plain", "slab"])
@pytest.mark.parametrize("name", FILES)
def test_keras_own_tests_pass_with_our_class(name, slab, monkeypatch, request):
    if slab and name.startswith("layers"):
        pytest.skip("a layer's tests say nothing about a slab")
    request.config.addinivalue_line("markers", "requires_trainable_backend: Keras' own")
    _our_classes(monkeypatch)
    if slab:
        _five_more(monkeypatch)
    with _imported_again(name) as module:
        suite = unittest.TestSuite()
        for group in unittest.defaultTestLoader.loadTestsFromModule(module):
            for one in group:
                name_of_test = one.id().rpartition(".")[2]
                if not name_of_test.startswith((OF_CODE[slab], OF_DEVICES)):
                    suite.addTest(one)
        result = unittest.TestResult()
        suite.run(result)
    problems = [text for _, text in result.failures + result.errors]
    assert not problems, "\n".join(problems)
    assert result.testsRun >= (FILES[name] // 2 if slab else FILES[name])
