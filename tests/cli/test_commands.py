"""The commands on a model and data of the user's own."""

import json
import pathlib
import re
import subprocess
import sys

import keras
import numpy as np
import pytest
from typer.main import get_group
from typer.testing import CliRunner

import keras_dlopt as dlopt
from keras_dlopt.cli.app import app
from support.commands import own_files, run

L = keras.layers
COMMANDS = [name for name in get_group(app).list_commands(None) if name != "data"]
COMMANDS += ["data write", "data info", "data verify"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model in a file, and arrays in another."""
    digits = dlopt.data.load("digits").take(400, test=100)
    return own_files(tmp_path_factory.mktemp("own"), digits, ("train", "test"))


@pytest.mark.advice("cli/inspect.py", "Leave it out.")
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
    assert "hidden/kernel" in run("inspect", small)
    heads = json.loads(run("inspect", small, "--quick", "--json"))["rows"]
    for head, row in zip(heads, ledger["rows"], strict=True):
        assert (head["path"], head["shape"]) == (row["path"], row["shape"])
        assert head["bytes"] == row["bits"] // 8
    assert "hidden/kernel" in run("inspect", small, "--quick")
    assert "Leave it out" in run("inspect", model, "--quick", code=2)
    assert "hidden/kernel" in run("inspect", model)
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
    assert "mine has no function 'none'. It has: pairs." in text
    (folder / "pack").mkdir()
    (folder / "pack" / "deep.py").write_text("from mine import pairs\n")
    text = run("compare", "model.keras", "model.keras", "--data", "pack.deep:pairs")
    assert "churn" in text
    (folder / "lacks.py").write_text("import no_such_package\n")
    text = run("compare", "model.keras", "model.keras", "--data", "lacks:f", code=2)
    assert "needs one that is not: No module named 'no_such_package'" in text
    text = run("compare", "model.keras", "model.keras", "--data", "nowhere:f", code=2)
    assert "names a module that is not found" in text


@pytest.fixture(scope="module")
def files(folder, tmp_path_factory):
    """Files of all kinds, most of them not what a command takes."""
    place = tmp_path_factory.mktemp("files")
    found = {"model": folder / "model.keras", "own": folder / "own.npz"}
    found |= {"folder": place, "small": place / "given.dlopt"}
    dlopt.save_compressed(keras.models.load_model(found["model"]), found["small"])
    for name, suffix in (("text", "keras"), ("lite", "tflite")):
        found[name] = place / f"{name}.{suffix}"
        found[name].write_text("no model")
    found["table"] = place / "table.csv"
    found["table"].write_text("a,b\n1,0\n1,1\n2,0\n")
    layers = [keras.Input((4,)), L.Lambda(lambda x: x + 1), L.Dense(2)]
    for name, suffix in (("code", "keras"), ("old_code", "h5")):
        found[name] = place / f"{name}.{suffix}"
        keras.Sequential(layers).save(found[name])
    found["weights"] = place / "only.weights.h5"
    keras.Sequential(layers).save_weights(found["weights"])
    for name, size, classes in (("wide", 9, 10), ("many", 8, 12)):
        found[name] = place / f"{name}.npz"
        x, y = np.zeros((40, size, size), "float32"), np.arange(40) % classes
        np.savez(found[name], x_train=x, y_train=y, x_test=x, y_test=y)
    return {name: str(path) for name, path in found.items()}


ON_OWN = ("{model}", "--data", "{own}")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("compress", "none.keras", "--data", "digits", "--size", "0.1"), "no file"),
        (("compress", "{model}", "--data", "nothing"), "is not a data set"),
        (("compress", "{model}", "--data", "digits"), "compress needs a goal"),
        (("quantize", "{model}", "--data", "{table}:kind"), "has no column 'kind'"),
        (("doctor", "{weights}"), "It holds weights alone: build the model"),
        (("decompress", "{model}", "out.h5"), "must end in .keras"),
        (("inspect", "none.tflite"), "No such file or directory: 'none.tflite'"),
        (("doctor", "{text}"), "is no model that"),
        (("inspect", "{text}"), "is no model that"),
        (("inspect", "{lite}"), "is no .tflite file, or a damaged one"),
        (("doctor", "{code}"), "holds Python code"),
        (("doctor", "{model}", "--import", "no.such"), "a module that is not found"),
        (("export", "{lite}", "x.onnx"), "holds no Keras model"),
        (("compress", "{model}", "--data", "{wide}", "--size", "0.1"), "of shape (8,"),
        (("quantize", "{model}", "--data", "{wide}"), "the data has (9, 9, 1)"),
        (("compare", "{model}", "{model}", "--data", "{many}"), "go from 0 to 11"),
        (("sensitivity", "{model}", "--data", "{wide}"), "the data has (9, 9, 1)"),
        (("compress", "{model}", "--data", "digits", "--size", "7"), "size must be"),
        (("compress", *ON_OWN, "--max-bytes", "9"), "cannot be coded into 9 bytes"),
        (("quantize", *ON_OWN, "--target", "x"), "'x'"),
        (("train", *ON_OWN, "--recipe", "int9"), "Did you mean 'int8'?"),
        (("train", *ON_OWN, "--out", "a.h5"), "the end of path must be"),
        (("train", *ON_OWN, "--out", "{model}"), "is the given model"),
        (("prune", *ON_OWN, "--sparsity", "80"), "sparsity must"),
        (("lr-find", *ON_OWN, "--steps", "3"), "steps must be"),
        (("data", "info", "{folder}"), "must hold the shards of one data set"),
        (("data", "write", "{folder}", "--data", "digits", "--part", "x"), "part must"),
        (
            ("compress", "{small}", "--data", "digits", "--size", "0.9"),
            "is the given model",
        ),
    ],
)
def test_bad_input_is_one_line_and_code_2(files, arguments, text):
    given = [a.format(**files) for a in arguments]
    output = run(*given, code=2)
    assert text in output
    assert output.startswith("Error: ")
    assert "Traceback" not in output


@pytest.mark.parametrize("command", COMMANDS)
def test_help_fits_a_terminal(command):
    """No line is longer, and no command's description is cut off."""
    found = CliRunner().invoke(app, [*command.split(), "--help"], terminal_width=80)
    assert found.exit_code == 0
    assert max(map(len, found.output.splitlines())) <= 80
    assert "--debug" in found.output
    of_all = CliRunner().invoke(app, ["--help"], terminal_width=80).output
    shown = [line for line in of_all.splitlines() if f"  {command.split()[0]} " in line]
    assert re.search(r"[^.]\.$", *shown)


@pytest.mark.parametrize("name", ["code", "old_code"])
def test_a_file_with_code_is_opened_if_the_user_says_so(files, name):
    assert "add --unsafe" in run("doctor", files[name], code=2)
    assert ": examined" in run("doctor", files[name], "--unsafe", "--target", "float")
    assert "Lambda" in run("measure", files[name], "--no-time", code=2)
    assert "parameters" in run("measure", files[name], "--no-time", "--unsafe")


def test_numbers_to_predict_in_a_table(tmp_path):
    keras.utils.set_random_seed(0)
    x = np.linspace(0, 1, 80, dtype="float32")[:, None]
    net = keras.Sequential([keras.Input((1,)), L.Dense(4, "relu"), L.Dense(1)])
    net.compile("adam", "mse")
    net.save(tmp_path / "price.keras")
    rows = [f"{a:.6f},{3.3 * a:.6f}" for (a,) in x]
    (tmp_path / "price.csv").write_text("\n".join(["area,price", *rows]))
    given = ("--data", tmp_path / "price.csv")
    text = run("compare", *[tmp_path / "price.keras"] * 2, *given, "--json")
    assert json.loads(text)["task"] == "regression"
    # By the loss that the file says it was compiled with.
    options = ("--max-bytes", 300, "--epochs", 1, "--json")
    found = json.loads(run("compress", tmp_path / "price.keras", *given, *options))
    assert found["trials"][-1]["accuracy"] is None


def test_what_a_model_takes_is_told(tmp_path):
    """One that only names the same class is doubted, in one line."""
    digits = dlopt.data.load("digits", dtype="uint8").take(300, test=60)
    own_files(tmp_path, digits, ("train", "test"))
    model, data = tmp_path / "model.keras", tmp_path / "own.npz"
    assert "Note" not in run("compare", model, model, "--data", data)
    broken = keras.models.load_model(model)
    broken.layers[-1].kernel.assign(keras.ops.zeros_like(broken.layers[-1].kernel))
    broken.save(tmp_path / "broken.keras")
    text = run("compare", tmp_path / "broken.keras", model, "--data", data)
    assert "Note: The model is right on" in text


def test_classes_of_the_users_own_are_imported(tmp_path, monkeypatch):
    (tmp_path / "own_layers.py").write_text(
        "import keras\n"
        "@keras.saving.register_keras_serializable('own')\n"
        "class Twice(keras.layers.Layer):\n"
        "    def call(self, x):\n"
        "        return 2 * x\n"
    )
    monkeypatch.chdir(tmp_path)
    code = (
        "import keras, own_layers\n"
        "layers = [keras.Input((4,)), own_layers.Twice(), keras.layers.Dense(2)]\n"
        "keras.Sequential(layers).save('own.keras')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert "add --import MODULE" in run("inspect", "own.keras", code=2)
    assert "dense/kernel" in run("inspect", "own.keras", "--import", "own_layers")


@pytest.mark.advice("export/contents.py", "Write it again with export.litert.")
def test_inspect_tells_of_any_file(files, folder):
    told = run("inspect", files["model"])
    assert "is not compressed. As a .dlopt file it would have:" in told
    lite = folder / "float_too.tflite"
    lite.write_text("no model")
    assert "Write it again" in run("inspect", lite, code=2)
    run("export", files["model"], lite)
    found = json.loads(run("inspect", lite, "--json"))
    assert found["operations"]["FULLY_CONNECTED"] == 2
    kernels = [c for c in found["constants"] if sorted(c["shape"]) == [32, 64]]
    assert [(c["dtype"], c["bytes"]) for c in kernels] == [("float32", 8192)]
    assert "FULLY_CONNECTED" in run("inspect", lite)


def test_json_of_every_command_that_tells_something(files):
    found = json.loads(run("doctor", files["model"], "--json"))
    assert found["findings"] is not None
    found = json.loads(run("measure", files["model"], "--no-time", "--json"))
    assert found["models"][0]["parameters"] == 65 * 32 + 33 * 10
    assert json.loads(run("plan", "--json"))["kind"]
    out = pathlib.Path(files["folder"]) / "again.keras"
    found = json.loads(run("decompress", files["small"], out, "--json"))
    assert found == {"path": str(out), "bytes": out.stat().st_size}


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
