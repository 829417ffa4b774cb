"""`check` without the compiler: what it refuses, and processes that go wrong."""

import importlib.util
import sys
import textwrap
import time

import keras
import pytest
from typer.testing import CliRunner

from keras_dlopt import errors, tpu
from keras_dlopt.cli import app
from keras_dlopt.tpu import checking, environment


@pytest.fixture(autouse=True)
def _compiler_present(monkeypatch):
    monkeypatch.setattr(checking, "require_compiler", lambda: None)


@pytest.fixture
def worker(monkeypatch, tmp_path):
    """Puts a script in the place of the compiling process."""

    def put(code):
        (tmp_path / "fake_worker.py").write_text(
            "import json, os, sys, time\n"
            "out = open(sys.argv[2], 'a', buffering=1)\n"
            "tell = lambda **data: out.write(json.dumps(data) + '\\n')\n"
            + textwrap.dedent(code)
        )
        monkeypatch.setattr(checking, "WORKER", "fake_worker")
        monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])

    return put


MODEL = "tell(event='model', name='net', parameters=3, note='')\n"
FITS = (
    "fits = dict(compiles=True, seconds=1., arguments=1, results=1, temporary=1, "
    "code=1, flops=1., moved=1., collectives=[], argument_values=1, argument_tiles=1)\n"
)


def _check(**kwargs):
    kwargs = {"time_limit": 60.0, "batch": 8, "backend": "jax", **kwargs}
    return tpu.check("lenet5", **kwargs)


@pytest.mark.parametrize("batch", [0, 12, -8, 2.5, True])
def test_the_batch_must_divide(batch):
    with pytest.raises(
        errors.ConfigError, match="must be a positive multiple of the 8"
    ):
        _check(batch=batch)


def test_the_nearest_batch_is_named():
    with pytest.raises(errors.ConfigError, match=r"Received: 1020\. Try 1016\."):
        _check(batch=1020)


def test_unknown_program():
    with pytest.raises(errors.ConfigError, match="must name 'train', 'inference'"):
        _check(programs=("fit",))
    with pytest.raises(errors.ConfigError, match="must name 'train', 'inference'"):
        _check(programs=())


def test_other_backends_are_refused():
    with pytest.raises(errors.ConfigError, match="Received: backend='torch'"):
        _check(backend="torch")


def test_an_unbuilt_model_is_refused():
    model = keras.Sequential([keras.layers.Dense(2)])
    with pytest.raises(errors.ModelError, match="is not built, so it has no shapes"):
        tpu.check(model, batch=8)


def test_other_objects_are_refused():
    with pytest.raises(errors.ModelError, match="must be a Keras model, a .keras file"):
        tpu.check(keras.layers.Dense(2), batch=8)


def test_a_model_that_cannot_be_saved(monkeypatch):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])

    def fails(*args, **kwargs):
        raise TypeError("no config")

    monkeypatch.setattr(model, "save", fails)
    with pytest.raises(errors.ModelError, match="could not be saved .* no config"):
        tpu.check(model, batch=8)


def test_a_missing_compiler_names_the_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(errors.MissingDependencyError) as error:
        environment.require_compiler()
    assert "pip install 'keras-dlopt[tpu]'" in str(error.value)


def test_the_time_limit_ends_everything(worker):
    worker(
        "import subprocess\n"
        "tell(event='stage', name='compiling the train step, batch 8')\n"
        "subprocess.Popen(['sleep', '900'])\n"
        "time.sleep(900)"
    )
    for limit in (2.0, 60.0):  # the longer for a busy machine
        start = time.monotonic()
        with pytest.raises(errors.ConfigError) as error:
            _check(time_limit=limit)
        assert time.monotonic() - start < limit + 60
        if "while starting" not in str(error.value):
            break
    text = f"time_limit={limit:g} seconds ended while compiling the train step"
    assert text in str(error.value)
    assert "raise time_limit, or pass search=False" in str(error.value)


def test_the_time_limit_in_the_search_keeps_what_is_known(worker):
    worker(
        MODEL
        + FITS
        + "tell(event='program', name='train', batch=8, **fits)\n"
        + "tell(event='stage', name='trying batch 16')\ntime.sleep(900)"
    )
    try:
        report = _check(time_limit=2.0, programs=("train",))
    except errors.ConfigError:  # a busy machine
        report = _check(time_limit=60.0, programs=("train",))
    assert report.step("train").fits
    assert report.largest_batch == 8
    assert report.notes == ("The time limit ended the search while trying batch 16.",)


def test_a_program_that_cannot_be_printed_has_a_note(worker):
    worker(
        MODEL
        + FITS
        + "tell(event='program', name='train', batch=8, printed=False, **fits)\n"
    )
    report = _check(programs=("train",), search=False)
    assert report.step("train").fits
    assert "compiles, but this JAX cannot print it" in report.notes[0]


def test_an_abort_of_the_compiler_is_a_result(worker):
    worker(
        MODEL
        + "print('F0000 Check failed: layout', file=sys.stderr, flush=True)\nos.abort()"
    )
    failure = _check(programs=("train",)).step("train").failure
    assert failure.operation == "compiler abort"
    assert failure.message == (
        "The compiler ended with code -6: F0000 Check failed: layout"
    )


def test_a_machine_without_the_memory_is_told_from_the_compiler(worker):
    worker(MODEL + "os.kill(os.getpid(), 9)")
    failure = _check(programs=("train",)).step("train").failure
    assert failure.operation == "killed here"
    assert "as systems do that run out of memory" in failure.message


def test_a_process_that_dies_at_once(worker):
    worker("raise SystemExit('no such thing')")
    with pytest.raises(errors.ModelError) as error:
        _check()
    assert "ended while starting, with code 1: no such thing" in str(error.value)


def test_a_topology_that_the_compiler_refuses(worker):
    worker("tell(event='topology', text='not divisible.')")
    with pytest.raises(errors.ConfigError) as error:
        _check(topology="v5e:3x3", batch=9)
    assert "does not know the topology 'v5e:3x3': not divisible." in str(error.value)
    assert "Some that it knows: v3:2x2" in str(error.value)


def test_errors_of_the_process_are_raised_here(worker):
    worker("tell(event='error', kind='ModelError', text='no shape')")
    with pytest.raises(errors.ModelError, match="^no shape$"):
        _check()


def test_command_line(worker, tmp_path):
    worker(
        MODEL
        + FITS
        + "tell(event='stage', name='compiling')\n"
        + "tell(event='program', name='train', batch=8, **fits)\n"
        + "a = dict(path='a', inputs=9, outputs=9, work=1)\n"
        + "tell(event='products', found=[a])\n"
        + "tell(event='largest', batch=8)"
    )
    files = {"json": tmp_path / "out.json", "plot": tmp_path / "out.png"}
    found = CliRunner().invoke(
        app.app,
        [
            *("tpu-check", "lenet5", "--batch", "8", "--program", "train"),
            *("--json", str(files["json"]), "--plot", str(files["plot"])),
        ],
    )
    assert found.exit_code == 0, found.output
    assert "roofline estimate" in found.output
    assert "outputs 9 -> 128 costs the same" in found.output
    assert files["json"].read_text().startswith("{")
    assert files["plot"].read_bytes().startswith(b"\x89PNG")


def test_command_line_code_when_it_does_not_compile(worker):
    worker(
        MODEL
        + "tell(event='program', name='train', batch=8, seconds=1., compiles=False, "
        + "operation='eig', layer='bad', message='no rule')"
    )
    found = CliRunner().invoke(
        app.app, ["tpu-check", "lenet5", "--batch", "8", "--program", "train"]
    )
    assert found.exit_code == 1
    assert "no: eig in bad" in found.output


def test_command_line_with_an_unknown_topology():
    found = CliRunner().invoke(app.app, ["tpu-check", "lenet5", "--topology", "v9"])
    assert found.exit_code == 2
    assert "Unknown topology 'v9'" in found.output


def test_command_line_looks_for_the_folders_before_it_compiles(tmp_path):
    for option in ("--json", "--plot"):
        file = tmp_path / "nowhere" / "report"
        found = CliRunner().invoke(app.app, ["tpu-check", "lenet5", option, str(file)])
        assert found.exit_code == 2
        assert "report is not there. Make it" in found.output.replace("\n", "")
