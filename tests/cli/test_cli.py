"""The command as a user meets it: help, errors, interruption."""

import os
import signal
import subprocess
import sys
import time

import pytest
import rich.console
from typer.testing import CliRunner

from keras_dlopt.cli import app, progress
from keras_dlopt.errors import ConfigError


def _run(*arguments):
    return CliRunner().invoke(app.app, list(arguments))


def test_help_names_every_option():
    found = _run("demo", "--help")
    assert found.exit_code == 0
    for option in ("--data", "--epochs", "--out", "--quick", "--seed"):
        assert option in found.output


def test_version():
    assert _run("--version").output.startswith("keras-dlopt 0.")


def test_errors_are_one_message_and_code_2(tmp_path):
    found = _run("demo", "--data", str(tmp_path / "none"), "--out", str(tmp_path / "o"))
    assert found.exit_code == 2
    assert found.output.count("Error: ") == 1
    assert "is not a data set. Tried, in order" in found.output
    assert "Traceback" not in found.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            ("demo", "--epochs", "0"),
            "Error: epochs must be a whole number, 1 or greater, or None.",
        ),
        (("demo", "--epochs", "many"), "'--epochs'"),
        (
            (
                "demo",
                "--quik",
            ),
            "--quik",
        ),
        (("dem",), "dem"),
    ],
)
def test_wrong_arguments(arguments, text):
    found = _run(*arguments)
    assert found.exit_code == 2
    assert text in found.output


def test_brackets_in_a_message_are_not_markup(capsys):
    def fails():
        raise ConfigError("pip install 'keras-dlopt[litert]'")

    with pytest.raises(Exception, match="2"):
        app.told(fails)()
    assert "keras-dlopt[litert]" in capsys.readouterr().err


def test_an_interrupt_is_code_130(capsys):
    def stops():
        raise KeyboardInterrupt

    with pytest.raises(Exception, match="130"):
        app.told(stops)()
    assert capsys.readouterr().err == "Stopped: nothing was written.\n"


def test_a_fault_is_one_line_unless_debugged(capsys):
    def breaks():
        raise ZeroDivisionError("by\n\nnothing")

    with pytest.raises(Exception, match="^1$"):
        app.told(breaks)()
    told = capsys.readouterr().err
    assert told == "Error: ZeroDivisionError: by (--debug shows where it comes from.)\n"
    with pytest.raises(ZeroDivisionError):
        app.told(breaks)(debug=True)


def test_an_error_of_the_user_is_a_traceback_too_if_debugged(tmp_path):
    found = _run("inspect", str(tmp_path / "none.dlopt"), "--debug")
    assert isinstance(found.exception, ConfigError)
    assert _run("inspect", str(tmp_path / "none.dlopt")).exit_code == 2


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_for_shells(shell, monkeypatch):
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    found = _run("--show-completion", shell)
    assert found.exit_code == 0
    assert "KERAS_DLOPT_COMPLETE" in found.output


def test_progress_in_a_log_is_a_line_a_stage(capsys):
    with progress.shown() as told:
        told.stage("training", 1200)
        told.advance("loss 1")
        told.stage("saving", 0)
    found = capsys.readouterr()
    assert found.err.splitlines() == ["1. training, 1,200 steps", "2. saving"]
    assert found.out == ""


def test_progress_on_a_terminal_is_a_bar(monkeypatch, capsys):
    console = rich.console.Console(stderr=True, force_terminal=True, width=100)
    monkeypatch.setattr(progress, "Console", lambda **_: console)
    with progress.shown() as told:
        told.stage("training", 2)
        told.advance("loss 1")
        told.advance("loss 2")
        told.stage("saving", 0)
    text = capsys.readouterr().err
    assert "training" in text
    assert "2/2" in text
    assert "loss 2" in text


def test_interrupted_while_training_leaves_nothing(tmp_path):
    pytest.importorskip("ai_edge_litert")
    # Shells start background jobs with SIGINT ignored, which is inherited. Undone in
    # the process itself: `preexec_fn` would fork, of which a loaded JAX warns.
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "from keras_dlopt.cli import main; main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, "demo", "--quick", "--out", tmp_path / "out"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONSAFEPATH": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        lines = iter(process.stderr.readline, "")
        assert any("training in float" in line for line in lines)
        time.sleep(3)
        # The work goes on in a folder of its own, with its lock beside it.
        assert {p.name[:5] for p in tmp_path.iterdir()} == {".out."}
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    assert err.splitlines()[-1] == "Stopped: nothing was written."
    assert out == ""
    assert list(tmp_path.iterdir()) == []
