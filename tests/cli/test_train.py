"""`train`, `prune`, `lr-find` and `data`, on files of the user's own."""

import json
import subprocess
import sys

import keras
import numpy as np
import pytest

import keras_dlopt as dlopt
from keras_dlopt.cli import inputs
from support.commands import own_files, run

L = keras.layers


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A trained model in a file, and arrays in another."""
    digits = dlopt.data.load("digits").take(600, test=100)
    return own_files(tmp_path_factory.mktemp("own"), digits, ("train", "val", "test"))


def test_pruned_and_in_8_bits_by_one_command(folder):
    out = folder / "small.tflite"
    given = ("prune", folder / "model.keras", "--data", folder / "own.npz")
    options = ("--sparsity", 0.8, "--int8", "--epochs", 8, "--out", out, "--json")
    found = json.loads(run(*given, *options))
    assert found["bytes"] == out.stat().st_size
    # 2,368 of the kernels; a zero stays one in 8 bits.
    assert found["sparsity"] == pytest.approx(0.8, abs=0.02)
    x, y = dlopt.data.load(folder / "own.npz").val
    right = float(np.mean(dlopt.export.Predictor(out)(x).argmax(1) == y))
    # The file is not the simulation to the last bit: one label of 180 may turn.
    assert right == pytest.approx(found["accuracy"][1], abs=1.5 / len(y))
    # 80 steps on 500 examples: 6 points were lost where this was written.
    assert right > found["accuracy"][0] - 0.15
    steps = found["epochs"] * -(-600 // 64)
    sparsity = dlopt.Recipe.from_dict(found["recipe"]).entries[-1][1].links[0].sparsity
    assert sparsity.end == round(0.45 * steps)


def test_train_writes_what_the_name_says(folder, tmp_path):
    given = ("train", folder / "model.keras", "--data", folder / "own.npz")
    options = ("--epochs", 2, "--quiet")
    plain = tmp_path / "plain.keras"
    assert "validation accuracy" in run(*given, *options, "--out", plain)
    assert type(keras.models.load_model(plain)) is keras.Sequential
    small = tmp_path / "shared.dlopt"
    options += ("--out", small)
    run(*given, *options, "--recipe", "clustered-4")
    kernel = dlopt.load_compressed(small).layers[-1].kernel
    assert len(np.unique(kernel)) <= 5  # and zero
    recipe = tmp_path / "own.json"
    recipe.write_text(dlopt.recipe("pruned-50").to_json())
    found = json.loads(run(*given, *options, "--recipe", recipe, "--json"))
    assert found["sparsity"] == pytest.approx(0.5, abs=0.01)


def test_int8_in_a_keras_file_is_trained_on_and_exported(folder, tmp_path):
    out = tmp_path / "int8.keras"
    given = ("train", folder / "model.keras", "--data", folder / "own.npz")
    run(*given, "--recipe", "int8", "--epochs", 2, "--out", out, "--quiet")
    assert isinstance(keras.models.load_model(out), dlopt.TransformedModel)
    lite = tmp_path / "int8.tflite"
    found = json.loads(run("export", out, lite, "--json"))
    assert found["verified"]
    types = {
        c["dtype"] for c in json.loads(run("inspect", lite, "--json"))["constants"]
    }
    assert types >= {"int8", "int32"}


def test_a_rate_is_found(folder, tmp_path):
    given = ("lr-find", folder / "model.keras", "--data", folder / "own.npz")
    plot = tmp_path / "test.png"
    found = json.loads(run(*given, "--steps", 40, "--json", "--plot", plot))
    assert len(found["rates"]) == len(found["losses"]) == 40
    assert found["suggestion"] is None or 1e-6 < found["suggestion"] < 1
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert "rate" in run(*given, "--steps", 40)


def test_shards_are_written_told_verified_and_trained_on(folder, tmp_path):
    place = tmp_path / "shards"
    given = ("data", "write", place, "--data", folder / "own.npz", "--level", 3)
    assert "600 examples in 3 shards" in run(*given, "--shard-examples", 256)
    told = json.loads(run("data", "info", place, "--json"))
    assert told["examples"] == 600
    assert told["arrays"][0]["shape"] == [8, 8, 1]
    assert "float32 (8, 8, 1)" in run("data", "info", place)
    assert "600 examples, all as they were written" in run("data", "verify", place)
    text = run("compare", *[folder / "model.keras"] * 2, "--data", place, "--json")
    assert json.loads(text)["after"]["quality"]["examples"] == 600
    shard = sorted(place.iterdir())[1]
    raw = bytearray(shard.read_bytes())
    raw[len(raw) // 2] ^= 1
    shard.write_bytes(raw)
    assert f"{shard} is damaged" in run("data", "verify", place, code=2)


def test_interrupted_writing_of_shards_says_how_it_goes_on(monkeypatch, tmp_path):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(dlopt.data, "write_shards", interrupted)
    text = run("data", "write", tmp_path, "--data", "digits", code=130)
    assert text.endswith(f"Stopped: {tmp_path} has whole shards; write goes on.\n")


def test_what_is_inputs_and_labels_and_what_is_two_sets():
    x, y = np.zeros((4, 2)), np.zeros(4)
    assert inputs.parts_of((x, y)) == ((x, y), None)
    several = ([x, x], y)  # a model of two inputs
    assert inputs.parts_of(several) == (several, None)
    assert inputs.parts_of(((x, y), (x, y))) == ((x, y), (x, y))


def test_a_full_disk_is_one_line_and_leaves_nothing(folder, tmp_path):
    code = (
        "import resource, signal\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "most = resource.getrlimit(resource.RLIMIT_FSIZE)[1]\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4000, most))\n"
        "from keras_dlopt.cli import main\n"
        "main()\n"
    )
    small = tmp_path / "small.dlopt"
    dlopt.save_compressed(keras.models.load_model(folder / "model.keras"), small)
    done = subprocess.run(
        [sys.executable, "-c", code, "decompress", small],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode in (1, 2), done.stderr
    assert done.stderr.splitlines()[-1].startswith("Error: ")
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == [small]
