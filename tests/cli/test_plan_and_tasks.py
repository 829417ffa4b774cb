"""The subcommands `plan` and `tasks`."""

import json
import pathlib

from typer.testing import CliRunner

from keras_dlopt import trials
from keras_dlopt.cli.app import app

TARGETS = pathlib.Path(__file__).parents[1] / "trials" / "task_targets.py"


def invoke(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_plan_is_told():
    done = invoke("plan", "cpu:2", "--batch-size", 32, "--per-replica")
    assert done.exit_code == 0
    assert "64 (32 per replica)" in done.stdout
    assert invoke("plan", "nothing").exit_code == 2


def test_tasks_are_run_and_listed(tmp_path):
    file = tmp_path / "tasks.json"
    file.write_text(json.dumps([{"x": 2}, {"x": 3}]))
    store = tmp_path / "s.db"
    done = invoke("tasks", f"{TARGETS}:picky", file, "--store", store, "--slots", 2)
    assert done.exit_code == 1  # one failed
    assert "three is refused" in done.stdout
    assert "done" in done.stdout


def test_an_interrupt_tells_where_the_results_are(tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(trials, "run_tasks", interrupted)
    file = tmp_path / "tasks.json"
    file.write_text("[]")
    done = invoke("tasks", f"{TARGETS}:picky", file, "--store", "some.db")
    assert done.exit_code == 130
    assert done.stderr == "Stopped: finished trials are in some.db.\n"


def test_what_is_no_list_of_tasks_is_told(tmp_path):
    file = tmp_path / "tasks.json"
    for text in ("{", "{}", "[1]"):
        file.write_text(text)
        done = invoke("tasks", "a:b", file)
        assert done.exit_code == 2
        assert "must hold a JSON list of objects" in done.stderr
