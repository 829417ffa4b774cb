"""Old import paths give the same objects, warn once, and name the new ones."""

import importlib
import operator
import pickle
import re
import subprocess
import sys
import warnings

import pytest

import keras_dlopt
from keras_dlopt import moved


@pytest.fixture
def forgotten(monkeypatch):
    """Has this process forget that a dotted name was ever asked for."""

    def forget(name):
        monkeypatch.delitem(sys.modules, name, raising=False)
        home, _, attribute = name.rpartition(".")
        parent = importlib.import_module(home)
        kept = vars(parent).get(attribute)
        if kept is not None:
            monkeypatch.delattr(parent, attribute)
        return parent, attribute

    return forget


def _only_warning(found, old, new):
    (warning,) = found
    assert warning.category is DeprecationWarning
    assert str(warning.message) == f"{old} has moved: use {new}."
    assert warning.filename == __file__


def _at(name):
    home, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(home), attribute)


@pytest.mark.parametrize("old", moved.MODULES)
def test_old_modules_are_the_new_ones(old, forgotten):
    new = moved.MODULES[old]
    forgotten(old)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        module = __import__(old, fromlist=["x"])
    _only_warning(found, old, new)
    assert module is importlib.import_module(new)
    assert module.__name__ == module.__spec__.name == new
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert __import__(old, fromlist=["x"]) is module


@pytest.mark.parametrize("old", [*moved.MODULES, *moved.NAMES])
def test_old_attributes_are_the_new_ones(old, forgotten):
    new = {**moved.MODULES, **moved.NAMES}[old]
    parent, attribute = forgotten(old)
    target = importlib.import_module(new) if old in moved.MODULES else _at(new)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        assert getattr(parent, attribute) is target
        assert getattr(parent, attribute) is target
    _only_warning(found, old, new)


def test_from_import_warns_once(forgotten):
    forgotten("keras_dlopt.distribute.tpu")
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        from keras_dlopt.distribute import tpu
    _only_warning(found, "keras_dlopt.distribute.tpu", "keras_dlopt.tpu")
    assert tpu is keras_dlopt.tpu


def test_modules_inside_a_moved_folder_moved_with_it(forgotten):
    old = "keras_dlopt.distribute.tpu.chips"
    importlib.import_module("keras_dlopt.tpu.chips")
    forgotten(old)
    with pytest.warns(DeprecationWarning, match=r"use keras_dlopt\.tpu\.chips\."):
        module = importlib.import_module(old)
    assert module is keras_dlopt.tpu.chips


def test_objects_found_by_an_old_name_can_be_pickled_and_modules_reloaded(forgotten):
    forgotten("keras_dlopt.distribute.Outcome")
    with pytest.warns(DeprecationWarning, match="use keras_dlopt.trials.Outcome"):
        kind = keras_dlopt.distribute.Outcome
    one = kind(task={}, state="done", value=1.0, result=1.0, error="", seconds=0.1)
    assert pickle.loads(pickle.dumps(one)) == one
    old = "keras_dlopt.distribute.tpu.padding"
    forgotten(old)
    with pytest.warns(DeprecationWarning, match="use keras_dlopt.tpu.padding"):
        module = importlib.import_module(old)
    assert importlib.reload(module) is module
    assert sys.modules["keras_dlopt.tpu.padding"] is module


@pytest.mark.parametrize("module", ["", ".distribute", ".transforms", ".select"])
def test_other_names_are_missing_as_ever(module):
    name = f"keras_dlopt{module}"
    with pytest.raises(AttributeError, match=re.escape(f"module {name!r} has no attr")):
        operator.attrgetter("nothing")(importlib.import_module(name))


def test_tables_name_each_place_once():
    assert not moved.MODULES.keys() & moved.NAMES.keys()
    targets = {**moved.MODULES, **moved.NAMES}
    assert not [new for new in targets.values() if new in targets]
    assert list(moved.MODULES) == sorted(moved.MODULES)
    assert list(moved.NAMES) == sorted(moved.NAMES)


def test_tfmot_is_an_attribute():
    code = "import keras_dlopt as d; print(d.interop.tfmot.PolynomialDecay.__name__)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=200
    )
    assert done.stdout == "PolynomialDecay\n", done.stderr
    assert "tfmot" in dir(keras_dlopt.interop)
    with pytest.raises(AttributeError, match=r"'keras_dlopt\.interop' has no attr"):
        operator.attrgetter("nothing")(keras_dlopt.interop)
