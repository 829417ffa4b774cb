"""The scripts in tpu/: what they would do, and what they do on a CPU."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

TPU = pathlib.Path(__file__).resolve().parents[2] / "tpu"
SECONDS = 300
pytestmark = [
    pytest.mark.dist,
    pytest.mark.timeout(SECONDS + 20),
    pytest.mark.skipif(not TPU.is_dir(), reason="the scripts are not in the wheel"),
]


def _run(*command, code=0, cwd=None):
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
        cwd=cwd,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    assert done.returncode == code, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout + done.stderr


def _python(script, *arguments, **kwargs):
    return _run(sys.executable, TPU / script, *arguments, **kwargs)


@pytest.mark.parametrize("script", ["setup.sh", "run_pod.sh"])
def test_shell_scripts_parse_and_help(script):
    _run("bash", "-n", TPU / script)
    assert f"./{script}" in _run("bash", TPU / script, "--help")
    assert "unknown argument --x" in _run("bash", TPU / script, "--x", code=2)


def test_setup_pins_what_can_be_loaded(tmp_path):
    text = _run("bash", TPU / "setup.sh", "--kind", "tensorflow", "--dry-run")
    assert "tensorflow-tpu==2.20.0 libtpu==0.0.20" in text
    text = _run("bash", TPU / "setup.sh", "--dry-run", "--env", tmp_path / "new")
    assert "jax[tpu]==" in text
    assert not (tmp_path / "new").exists()
    text = _run("bash", TPU / "setup.sh", "--kind", "torch", "--dry-run", code=2)
    assert "--kind must be jax, tensorflow or step, not torch" in text


def test_run_pod_says_every_command():
    given = ("--name", "a", "--zone", "z", "--type", "v6e-8", "--spot", "--dry-run")
    text = _run("bash", TPU / "run_pod.sh", *given, "--", "--data", "my data")
    lines = [line for line in text.splitlines() if line.startswith("+ ")]
    assert "tpu-vm create a --zone z --accelerator-type v6e-8" in lines[0]
    assert "--version v2-alpha-tpuv6e --spot" in lines[0]
    assert "--strategy jax --checkpoint run --data my\\ data" in text
    assert "delete a --zone z --quiet" in lines[-1]
    text = _run("bash", TPU / "run_pod.sh", "--name", "a", "--dry-run", code=2)
    assert "--zone is needed" in text


def test_train_says_what_it_would_do():
    plan = json.loads(_python("train.py", "--dry-run", "--model", "resnet20"))
    assert plan["policy"] == "mixed_bfloat16"
    assert plan["model"] == "resnet20"
    text = _python("train.py", "--strategy", "cpu", "--dry-run", code=2)
    assert "--strategy must be tpu, jax, cpu:N or one, not 'cpu'" in text
    text = _python("train.py", "--hosts", "2", "--dry-run", code=2)
    assert "--hosts above 1 needs --strategy jax" in text
    text = _python("train.py", "--batch", "0", "--dry-run", code=2)
    assert "--epochs and --batch must be 1 or more" in text
    text = _python("train.py", "--checkpoint", __file__, "--dry-run", code=2)
    assert "--checkpoint must be a folder" in text


def test_run_step_needs_a_file():
    text = _python("run_step.py", "none.zip", code=2)
    assert "no file none.zip; write it with tpu.save_step()" in text


@pytest.mark.parametrize(
    ("given", "code", "text"),
    [
        (("--strategy", "gpu"), 2, "--strategy must be tpu or cpu:N, not 'gpu'"),
        (("--save-every", "0"), 2, "--steps and --save-every must be 1 or more"),
        (("--data", "none.npz"), 2, "no file none.npz; --data is an .npz file"),
        (("--dry-run",), 1, "is damaged, or not what tpu.save_step() wrote"),
    ],
)
def test_run_step_checks_what_it_is_given(given, code, text):
    assert text in _python("run_step.py", __file__, *given, code=code)


@pytest.mark.slow
def test_train_on_real_data_and_resume(tmp_path):
    common = ("--strategy", "cpu:2", "--batch", "64", "--checkpoint", tmp_path / "run")
    given = (*common, "--model", "lenet_300_100", "--data", "digits")
    first = _python("train.py", *given, "--epochs", "2", cwd=tmp_path)
    assert "Epoch 2/2" in first
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["devices"] == 2
    assert result["val_accuracy"] > 0.5
    second = _python("train.py", *given, "--epochs", "3", cwd=tmp_path)
    assert "Epoch 3/3" in second
    assert "Epoch 2/3" not in second
    assert (tmp_path / "run" / "model.keras").is_file()
    text = _python(
        "train.py", *common, "--batch", "63", "--smoke", code=1, cwd=tmp_path
    )
    assert "--batch 63 cannot be split over 2 devices. Use 62." in text


@pytest.mark.slow
def test_train_with_jax(tmp_path):
    text = _python(
        "train.py", "--strategy", "jax", "--smoke", "--batch", "64", cwd=tmp_path
    )
    assert "val_accuracy" in text


@pytest.mark.slow
def test_without_a_tpu_the_tpu_strategy_says_so(tmp_path):
    text = _python("train.py", "--strategy", "tpu", "--smoke", code=1, cwd=tmp_path)
    assert "No TPU could be initialized" in text
    assert "--strategy cpu:2" in text


SAVE = """
import os, sys
os.environ["KERAS_BACKEND"] = sys.argv[1]
import keras
import keras_dlopt as dlopt
from keras_dlopt import tpu
keras.utils.set_random_seed(0)
model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(),
    keras.layers.Dense(32, "relu"), keras.layers.Dropout(0.1), keras.layers.Dense(10)])
model.compile(dlopt.optimizers.AdamW(1e-2, global_clipnorm=1.0),
    loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
tpu.save_step(model, "step.zip", batch=64)
"""


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["tensorflow", "jax"])
def test_a_saved_step_runs_with_jax_alone_and_resumes(backend, tmp_path):
    from keras_dlopt import data

    digits = data.load("digits")
    np.savez(tmp_path / "train.npz", x=digits.x_train, y=digits.y_train)
    _run(sys.executable, "-c", SAVE, backend, cwd=tmp_path)
    assert '"batch": 64' in _python(
        "run_step.py", "step.zip", "--dry-run", cwd=tmp_path
    )
    given = ("step.zip", "--data", "train.npz", "--strategy", "cpu:2")
    whole = _python(
        "run_step.py", *given, "--steps", "60", "--state", "whole.npz", cwd=tmp_path
    )
    last = json.loads(whole.strip().splitlines()[-1])
    assert last["devices"] == 2
    assert last["loss"] < 1.0
    for steps in ("25", "60"):
        _python(
            "run_step.py",
            *given,
            "--steps",
            steps,
            "--state",
            "parts.npz",
            cwd=tmp_path,
        )
    with np.load(tmp_path / "whole.npz") as a, np.load(tmp_path / "parts.npz") as b:
        assert sorted(a.files) == sorted(b.files)
        for name in a.files:
            np.testing.assert_array_equal(a[name], b[name])
    np.savez(tmp_path / "short.npz", x=digits.x_train, y=digits.y_train[:9])
    for options, text in (
        (("--state", "train.npz"), "train.npz is damaged, or of another step"),
        (("--data", "short.npz"), "the step takes batches of (64, 8, 8, 1) and (64,)"),
        (("--data", "whole.npz"), "whole.npz must be an .npz file with x and y"),
    ):
        told = _python(
            "run_step.py", *given, "--state", "new.npz", *options, code=1, cwd=tmp_path
        )
        assert text in told
