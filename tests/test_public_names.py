"""Every public name of version 0.1.0's first form is still there, moved or not."""

import importlib
import pathlib
import subprocess
import sys
import warnings

import pytest

import keras_dlopt
from keras_dlopt import moved

# One dotted name a line: the `__all__` of each package, and the public functions and
# classes of the modules beside them.
NAMES = (pathlib.Path(__file__).parent / "golden" / "public_names.txt").read_text()


def _found(name: str) -> list[str]:
    """The warnings that come with looking a name up as a user would write it."""
    module, _, attribute = name.rpartition(".")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        getattr(importlib.import_module(module), attribute)
    return [str(w.message) for w in caught if w.category is DeprecationWarning]


@pytest.mark.parametrize(
    "module", sorted({n.rpartition(".")[0] for n in NAMES.split()})
)
def test_names_are_still_there(module):
    missing = []
    for name in NAMES.split():
        if name.rpartition(".")[0] == module:
            try:
                told = _found(name)
            except (ImportError, AttributeError) as error:
                missing.append(f"{name}: {error}")
            else:
                # Moved names tell where to; the others are where they were.
                assert all("has moved: use keras_dlopt." in text for text in told)
    assert missing == []


@pytest.mark.parametrize("old", sorted(moved.MODULES))
def test_a_moved_module_names_the_new_place(old, monkeypatch):
    new = moved.MODULES[old]
    parent, _, name = old.rpartition(".")
    # As in a process that has not asked for it yet.
    monkeypatch.delitem(sys.modules, old, raising=False)
    monkeypatch.delattr(importlib.import_module(parent), name, raising=False)
    with pytest.warns(DeprecationWarning, match=f"{old} has moved: use {new}."):
        module = importlib.import_module(old)
    assert module is importlib.import_module(new)


@pytest.mark.parametrize("old", sorted(moved.NAMES))
def test_a_moved_name_names_the_new_place(old, monkeypatch):
    new = moved.NAMES[old]
    module, _, name = old.rpartition(".")
    home, _, attribute = new.rpartition(".")
    # As in a process that has not asked for it yet.
    monkeypatch.delattr(importlib.import_module(module), name, raising=False)
    with pytest.warns(DeprecationWarning, match=f"{old} has moved: use {new}."):
        found = getattr(importlib.import_module(module), name)
    assert found is getattr(importlib.import_module(home), attribute)


def test_a_name_that_never_was_is_refused():
    with pytest.raises(AttributeError, match="has no attribute 'NoSuchName'"):
        _ = keras_dlopt.NoSuchName


@pytest.mark.parametrize(
    ("argv", "started", "command"),
    [
        (["/bin/keras-dlopt", "demo"], ["python", "/bin/keras-dlopt", "demo"], True),
        (["keras-dlopt.exe"], ["python", "keras-dlopt.exe"], True),
        (["-m", "demo"], ["python", "-m", "keras_dlopt", "demo"], True),
        (["-m"], ["python", "-X", "utf8", "-Imkeras_dlopt"], True),
        # A script with an argument of its own, and other modules with one.
        (["train.py", "-m", "keras_dlopt"], ["p", "t.py", "-m", "keras_dlopt"], False),
        (["-m", "-m", "keras_dlopt"], ["p", "-m", "own", "-m", "keras_dlopt"], False),
        (["pytest.py", "keras_dlopt"], ["p", "-m", "pytest", "keras_dlopt"], False),
        (["-c", "-m", "keras_dlopt"], ["p", "-c", "", "-m", "keras_dlopt"], False),
        ([""], ["python"], False),
        (["keras-dlopt"], ["p", "-c", "code", "--multiprocessing-fork"], False),
    ],
)
def test_which_process_is_the_command(monkeypatch, argv, started, command):
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(sys, "orig_argv", started)
    assert keras_dlopt._is_command() is command


def test_a_script_may_have_an_argument_m(tmp_path):
    script = tmp_path / "own.py"
    script.write_text("import keras_dlopt; print('Prune' in vars(keras_dlopt))")
    command = [sys.executable, script, "-m", "keras_dlopt"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"
