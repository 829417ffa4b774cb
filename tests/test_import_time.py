"""What importing the package pulls in, and which package the tests test."""

import importlib.metadata
import json
import pathlib
import subprocess
import sys

import keras_dlopt

# Plotting, converters, search and the command line load when they are first used.
LATE = (
    "matplotlib",
    "sklearn",
    "optuna",
    "typer",
    "rich",
    "jinja2",
    "ai_edge_litert",
    "zstandard",
    "tensorflow_model_optimization",
    "tf_keras",
    "optax",
    "torch",
    "pandas",
    "scipy",
    "PIL",
)
# Of this package, what no model needs to be loaded or trained.
OWN_LATE = [
    "keras_dlopt.codecs.huffman",
    "keras_dlopt.codecs.lattice",
    "keras_dlopt.export",
    "keras_dlopt.int8",
    "keras_dlopt.schedules.plotting",
    "keras_dlopt.surgery",
]


def test_import_loads_nothing_heavy(tmp_path):
    # `rich` may come with Keras itself, so Keras alone is the yardstick.
    code = (
        "import json, sys, keras; before = set(sys.modules); import keras_dlopt; "
        f"assert not set({OWN_LATE}) & set(sys.modules); "
        "import keras_dlopt.data, keras_dlopt.export, keras_dlopt.layers, "
        "keras_dlopt.models, keras_dlopt.optimizers; "
        "print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=200,
        check=True,
    )
    added = {name.split(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}
    assert not added & set(LATE)


def test_every_public_name_is_there():
    for name in keras_dlopt.__all__:
        assert getattr(keras_dlopt, name) is not None
    assert set(keras_dlopt.__all__) <= set(dir(keras_dlopt))


def test_the_installed_package_is_tested():
    distribution = importlib.metadata.distribution("keras-dlopt")
    told = json.loads(distribution.read_text("direct_url.json") or "{}")
    if told.get("dir_info", {}).get("editable"):
        return  # a developer's checkout
    found = pathlib.Path(keras_dlopt.__file__).resolve()
    tree = pathlib.Path(__file__).resolve().parents[1] / "keras_dlopt"
    assert tree not in found.parents, f"{found} is the source, not the wheel"


def test_version_is_that_of_the_distribution():
    assert keras_dlopt.__version__ == importlib.metadata.version("keras-dlopt")
