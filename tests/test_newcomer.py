"""A newcomer's walk: an environment of their own, a model of their own, one command."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
# What somebody has before they hear of this package: Keras and scikit-learn alone.
OWN = """
import sys
import keras, numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

assert "keras_dlopt" not in sys.modules
keras.utils.set_random_seed(int(sys.argv[1]))
x, y = load_digits(return_X_y=True)
x = x.reshape(-1, 8, 8, 1).astype("float32")
a, b, c, d = train_test_split(x, y, test_size=0.3, random_state=0, stratify=y)
L = keras.layers
model = keras.Sequential([
    keras.Input((8, 8, 1)),
    L.Rescaling(1 / 16),
    L.Conv2D(16, 3, activation="relu"),
    L.Conv2D(32, 3, activation="relu"),
    L.Flatten(),
    L.Dense(64, activation="relu"),
    L.Dense(10, activation="softmax"),
])
model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
model.fit(a, c, epochs=30, verbose=0)
model.save("model.keras")
np.savez("own.npz", x_train=a, y_train=c, x_test=b, y_test=d)
"""
JUDGE = """
import sys
import numpy as np
from ai_edge_litert.interpreter import Interpreter

lite = Interpreter(model_path=sys.argv[1])
lite.allocate_tensors()
(taken,), (given,) = lite.get_input_details(), lite.get_output_details()
data, right = np.load("own.npz"), 0
for x, y in zip(data["x_test"], data["y_test"]):
    lite.set_tensor(taken["index"], x[None])
    lite.invoke()
    right += lite.get_tensor(given["index"])[0].argmax() == y
print(right / len(data["y_test"]))
"""


def walk(python: pathlib.Path, place: pathlib.Path, seed: int = 0) -> dict:
    """Makes the model and the data, then gives the two commands."""

    def run(*command):
        done = subprocess.run(
            [str(python), "-W", "ignore", *map(str, command)],
            cwd=place,
            env=os.environ | {"PYTHONSAFEPATH": "1", "TF_CPP_MIN_LOG_LEVEL": "3"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    def dlopt(*command):
        return json.loads(run("-m", "keras_dlopt", *command, "--json"))

    run("-c", OWN, seed)
    data = ("--data", "own.npz")
    made = dlopt("compress", "model.keras", *data, "--size", 0.1)
    told = dlopt("compare", "model.keras", "model.dlopt", *data)
    pruned = dlopt("prune", "model.keras", *data, "--sparsity", 0.8, "--int8")
    before, after = (told[k]["quality"]["accuracy"] for k in ("before", "after"))
    return {
        "share": made["bytes"] / made["plain_bytes"],
        "file": (place / "model.dlopt").stat().st_size / made["plain_bytes"],
        "before": before,
        "after": after,
        "sparsity": pruned["sparsity"],
        "int8": float(run("-c", JUDGE, "model.tflite")),
    }


@pytest.mark.slow
@pytest.mark.timeout(1800)  # TensorFlow is downloaded
def test_from_an_empty_environment_to_a_small_file_at_the_first_try(tmp_path):
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "env"], check=True)
    python = tmp_path / "env" / "bin" / "python"
    done = subprocess.run(
        [python, "-m", "pip", "install", "--quiet", f"{ROOT}[litert]"],
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        capture_output=True,
        text=True,
        check=False,
    )
    if "Could not find a version" in done.stderr or "Connection" in done.stderr:
        pytest.skip("no registry of packages can be reached")
    assert done.returncode == 0, done.stderr[-3000:]
    found = walk(python, tmp_path)
    assert found["file"] == found["share"] <= 0.1
    # Half a point of 540 examples is 2.7 of them.
    assert found["after"] >= found["before"] - 0.005
    assert found["sparsity"] == pytest.approx(0.8, abs=0.01)
    assert found["int8"] >= found["before"] - 0.02
