"""The commands on a model and data of the user's own."""

import json
import subprocess
import sys

import keras
import numpy as np
import pytest
from typer.testing import CliRunner

import keras_dlopt as dlopt
from keras_dlopt.cli.app import app

L = keras.layers
COMMANDS = (
    *("compress", "quantize", "export", "inspect", "decompress", "compare"),
    *("measure", "doctor", "sensitivity", "tpu-check", "plan", "tasks", "demo"),
)


def run(*arguments, code=0):
    found = CliRunner().invoke(app, [str(one) for one in arguments])
    assert found.exit_code == code, found.output
    return found.output


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model in a file, and arrays in another."""
    place = tmp_path_factory.mktemp("own")
    digits = dlopt.data.load("digits").take(400, test=100)
    keras.utils.set_random_seed(0)
    layers = [L.Flatten(), L.Dense(32, "relu"), L.Dense(10, "softmax")]
    model = keras.Sequential([keras.Input((8, 8, 1)), *layers])
    model.compile(keras.optimizers.Adam(5e-3), "sparse_categorical_crossentropy")
    model.fit(*digits.train, epochs=10, verbose=0)
    model.save(place / "model.keras")
    parts = ("x_train", "y_train", "x_test", "y_test")
    np.savez(place / "own.npz", **{name: getattr(digits, name) for name in parts})
    return place


def test_a_walk_from_a_file_to_a_small_file_and_back(folder):
    model, data = folder / "model.keras", folder / "own.npz"
    text = run(
        *("compress", model, "--data", data, "--size", 0.15, "--epochs", 3, "--json")
    )
    found = json.loads(text)
    small = folder / "model.dlopt"
    assert found["bytes"] == small.stat().st_size <= 0.15 * found["plain_bytes"]
    ledger = json.loads(run("inspect", small, "--json"))
    assert ledger["file_bytes"] == found["bytes"]
    assert "dense/kernel" in run("inspect", small)
    again = folder / "again.keras"
    assert str(again) in run("decompress", small, again)
    x = dlopt.data.load(data).x_test
    one, other = keras.models.load_model(again), dlopt.load_compressed(small)
    np.testing.assert_array_equal(one(x), other(x))
    page = folder / "report.html"
    run("compare", model, small, "--data", data, "--html", page)
    compared = json.loads(run("compare", model, small, "--data", data, "--json"))
    assert compared["after"]["quality"]["examples"] == len(x)
    assert page.read_text().startswith("<!doctype html>")


def test_int8_and_other_runtimes(folder):
    model, data = folder / "model.keras", folder / "own.npz"
    out = folder / "int8.tflite"
    found = json.loads(run("quantize", model, "--data", data, "--out", out, "--json"))
    assert found["verified"]
    assert found["bytes"] == out.stat().st_size
    found = json.loads(
        run(
            *("compress", model, "--int8", "--data", data, "--json"),
            *("--out", folder / "b.tflite"),
        )
    )
    assert found["trials"][0]["method"] == "int8 after training"
    for name in ("float.tflite", "saved"):
        run("export", model, folder / name)
        assert (folder / name).exists()
    assert "kernel" in run("sensitivity", model, "--data", data)


def test_data_from_a_function(folder, monkeypatch):
    (folder / "mine.py").write_text(
        "import numpy as np\n"
        "def pairs():\n"
        "    found = np.load(__file__.replace('mine.py', 'own.npz'))\n"
        "    return found['x_test'], found['y_test']\n"
    )
    monkeypatch.chdir(folder)
    text = run(
        "compare", "model.keras", "model.keras", "--data", "mine:pairs", "--json"
    )
    assert json.loads(text)["changes"]["churn"] == 0
    text = run("compare", "model.keras", "model.keras", "--data", "mine:none", code=2)
    assert "mine has no function 'none'" in text
    text = run("compare", "model.keras", "model.keras", "--data", "nowhere:f", code=2)
    assert "names a module that is not found" in text


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("compress", "none.keras", "--data", "digits", "--size", "0.1"), "no file"),
        (("compress", "{model}", "--data", "nothing"), "is not a data set"),
        (("compress", "{model}", "--data", "digits"), "compress needs a goal"),
        (("decompress", "{model}", "out.h5"), "must end in .keras"),
        (("inspect", "{model}"), "Error: "),
        (
            ("compress", "{small}", "--data", "digits", "--size", "0.9"),
            "is the given model",
        ),
    ],
)
def test_bad_input_is_one_line_and_code_2(folder, arguments, text):
    small = folder / "given.dlopt"
    dlopt.save_compressed(keras.models.load_model(folder / "model.keras"), small)
    given = [a.format(model=folder / "model.keras", small=small) for a in arguments]
    output = run(*given, code=2)
    assert text in output
    assert "Traceback" not in output


@pytest.mark.parametrize("command", COMMANDS)
def test_help_fits_a_terminal(command):
    found = CliRunner().invoke(app, [command, "--help"], terminal_width=80)
    assert found.exit_code == 0
    assert max(map(len, found.output.splitlines())) <= 80


def test_help_needs_no_keras():
    code = (
        "import sys, runpy\n"
        "sys.argv = ['keras-dlopt', 'compress', '--help']\n"
        "try:\n"
        "    from keras_dlopt.cli import main; main()\n"
        "finally:\n"
        "    assert not {'keras', 'tensorflow', 'jax'} & set(sys.modules)\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert "--max-accuracy-drop" in found.stdout
    module = [sys.executable, "-m", "keras_dlopt", "--version"]
    found = subprocess.run(module, capture_output=True, text=True, check=True)
    assert found.stdout.startswith("keras-dlopt ")
