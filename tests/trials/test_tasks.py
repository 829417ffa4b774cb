"""Trials in processes: results kept, failures contained, resumed."""

import importlib.util
import os
import pathlib
import subprocess
import sys
import time

import pytest

from keras_dlopt.errors import ConfigError, FormatError, MissingDependencyError
from keras_dlopt.trials import executors, run_tasks
from keras_dlopt.trials.executors import target_of
from keras_dlopt.trials.store import Store, alone, key_of, value_of

TARGETS = pathlib.Path(__file__).with_name("task_targets.py")


def target(name):
    return f"{TARGETS}:{name}"


def test_results_come_in_the_order_of_the_tasks(tmp_path):
    given = [{"x": x} for x in (3, 1, 2)]
    done = run_tasks(target("square"), given, store=tmp_path / "s.db", slots=3)
    assert [outcome.value for outcome in done] == [9.0, 1.0, 4.0]
    assert [outcome.task for outcome in done] == given
    assert all(o.state == "done" and o.seconds > 0 for o in done)


def test_trials_run_in_their_slots(tmp_path):
    slots = [{"SLOT": "a"}, {"SLOT": "b"}]
    given = [{"x": x} for x in range(4)]
    done = run_tasks(target("detail"), given, store=tmp_path / "s.db", slots=slots)
    assert len({o.result["pid"] for o in done}) == 4
    assert {o.result["slot"] for o in done} == {"a", "b"}


def test_what_fails_does_not_stop_the_rest(tmp_path):
    given = [{"x": x} for x in (1, 3, 5, 6, 2)]
    done = run_tasks(target("picky"), given, store=tmp_path / "s.db", slots=2)
    assert [o.state for o in done] == ["done", *["failed"] * 3, "done"]
    assert "ValueError: three is refused" in done[1].error
    assert "exit code 7" in done[2].error
    assert "returned no finite number" in done[3].error
    hangs = [{"x": 4}]
    done = run_tasks(target("picky"), hangs, store=tmp_path / "s.db", seconds=1)
    assert done[0].error == "timed out after 1 s and was ended"


def test_results_are_made_plain_or_refused(tmp_path):
    given = [{"kind": "array"}, {"kind": "function"}]
    done = run_tasks(target("other_kinds"), given, store=tmp_path / "s.db", slots=2)
    assert done[0].result == {"value": 2.5, "curve": [0, 1]}
    assert "must return a number, or a dictionary of numbers" in done[1].error


def wait_for_end(pid, seconds):
    state = pathlib.Path(f"/proc/{pid}/stat")
    end = time.monotonic() + seconds
    while state.exists() and state.read_text().split()[2] != "Z":
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_trial_leaves_nothing_running(tmp_path):
    (done,) = run_tasks(target("leaves_a_child"), [{}], store=tmp_path / "s.db")
    wait_for_end(int(done.value), 30)


def test_a_trial_ends_when_its_scheduler_was_killed(tmp_path):
    (tmp_path / "task.json").write_text('{"x": 4}')
    arguments = [str(executors._SCRIPT), target("picky"), str(tmp_path)]
    code = (
        "import os, subprocess, sys\n"
        f"command = [sys.executable, *{arguments!r}, str(os.getpid())]\n"
        "print(subprocess.Popen(command, start_new_session=True).pid, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    wait_for_end(int(done.stdout), 60)


def test_a_study_is_of_one_target_direction_and_space(tmp_path):
    options = {"store": tmp_path / "s.db", "slots": 1}
    space = {"x": (-2.0, 2.0)}
    run_tasks(target("square"), trials=1, space=space, **options)
    with pytest.raises(ConfigError, match="results of 'task_targets.py:square', not"):
        run_tasks(target("picky"), [{"x": 1}], **options)
    with pytest.raises(ConfigError, match="has maximize=False, not True"):
        run_tasks(target("square"), [{"x": 1}], maximize=True, **options)
    with pytest.raises(ConfigError, match="has 'x' searched in FloatDistribution"):
        run_tasks(target("square"), trials=2, space={"x": [1, 2]}, **options)
    assert run_tasks(target("picky"), name="another", **options) == []


def test_a_store_serves_one_scheduler_at_a_time(tmp_path):
    store = tmp_path / "s.db"
    with (
        alone(store),
        pytest.raises(ConfigError, match="Another run_tasks is at work on the store"),
    ):
        run_tasks(target("square"), [{"x": 1}], store=store)
    assert run_tasks(target("square"), [{"x": 1}], store=store)[0].value == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s.db"]


def test_a_store_that_is_none_is_refused(tmp_path):
    (tmp_path / "notes.db").write_text("no database at all, but a text. " * 40)
    for store, kind, text in (
        (tmp_path / "notes.db", FormatError, "cannot be used: file is not a database"),
        (tmp_path, ConfigError, "store must be an SQLite file"),
        (tmp_path / "notes.db" / "s.db", ConfigError, "file that can be written"),
    ):
        with pytest.raises(kind, match=text):
            run_tasks(target("square"), [{"x": 1}], store=store, slots=1)


def test_finished_tasks_are_not_run_again(tmp_path):
    store, given = tmp_path / "s.db", [{"x": 1}, {"x": 3}]
    first = run_tasks(target("detail"), given[:1], store=store, slots=1)
    both = run_tasks(target("detail"), given, store=store, slots=1)
    assert both[0].result["pid"] == first[0].result["pid"]
    assert both[1].value == 3


def test_a_failed_task_is_tried_again(tmp_path):
    task = {"x": 2, "mark": str(tmp_path / "mark")}
    options = {"store": tmp_path / "s.db", "slots": 1}
    assert run_tasks(target("once"), [task], **options)[0].state == "failed"
    assert run_tasks(target("once"), [task], **options)[0].value == 2
    os.remove(tmp_path / "mark")
    other = {**task, "x": 5}
    done = run_tasks(target("once"), [other], retries=1, **options)
    assert (done[0].state, done[0].value) == ("done", 5)


@pytest.mark.slow
def test_a_killed_scheduler_goes_on(tmp_path):
    store = tmp_path / "s.db"
    code = (
        "from keras_dlopt.distribute import run_tasks\n"
        "tasks = [{'x': 1}, {'x': 4}]\n"
        f"run_tasks({target('picky')!r}, tasks, store={str(store)!r}, slots=1)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    try:
        for _ in range(900):
            if store.exists() and _states(store).count("COMPLETE") == 1:
                break
            time.sleep(0.1)
    finally:
        process.kill()
        process.wait()
    given = [{"x": 1}, {"x": 4}, {"x": 2}]
    done = run_tasks(target("picky"), given, store=store, slots=3, seconds=20)
    assert [o.state for o in done] == ["done", "failed", "done"]


def _states(store):
    import optuna

    try:
        study = optuna.load_study(study_name="tasks", storage=f"sqlite:///{store}")
        return [trial.state.name for trial in study.trials]
    except Exception:  # not written yet
        return []


def test_a_space_is_searched_and_the_search_resumed(tmp_path):
    options = {
        "store": tmp_path / "s.db",
        "space": {"x": (-2.0, 2.0), "note": ["a", "b"]},
        "slots": 2,
        "seed": 1,
    }
    done = run_tasks(target("square"), trials=4, **options)
    assert len(done) == 4
    assert all(-2 <= o.task["x"] <= 2 and o.task["note"] in "ab" for o in done)
    more = run_tasks(target("square"), trials=6, **options)
    assert [o.task for o in more[:4]] == [o.task for o in done]
    assert len(more) == 6


def test_a_resumed_search_has_as_many_outcomes_as_trials(tmp_path):
    def opened():
        space = {"x": (0.0, 1.0)}
        made = Store(
            tmp_path / "s.db", "tasks", space=space, maximize=False, seed=3, target=""
        )
        assert made.begin([], 4) == []
        return made

    book = opened()
    numbers = [book.ask() for _ in range(4)]
    book.finish(numbers[0], 0.5, "", 1.0, retries=0)
    book.finish(numbers[1], None, "broke", 1.0, retries=0)
    states = [one.state for one in book.outcomes([], 2)]
    assert states == ["done", "failed"]
    again = opened()  # two were killed
    while again.wants(4):
        again.finish(again.ask(), 0.25, "", 1.0, retries=0)
    found = again.outcomes([], 4)
    assert [(one.state, one.value) for one in found] == [
        ("done", 0.5),
        *[("done", 0.25)] * 3,
    ]
    assert again.outcomes([], 2) == found[:2]
    assert again.summary()[:2] == (4, 3)
    more = opened()
    last = more.finish(more.ask(), None, "broke", 1.0, retries=0)
    assert last is None
    assert [one.state for one in more.outcomes([], 9)] == [
        "done",
        *["failed"] * 3,
        *["done"] * 3,
        "failed",
    ]


@pytest.mark.parametrize("retries", [0, 1, 3])
def test_what_always_fails_is_tried_once_and_as_often_again(tmp_path, retries):
    book = Store(tmp_path / "s.db", "tasks", space={}, maximize=False, seed=1)
    (number,), tries = book.begin([{"x": 1}], 1), 1
    while (number := book.finish(number, None, "no", 1.0, retries=retries)) is not None:
        tries += 1
    assert tries == 1 + retries


@pytest.mark.parametrize(
    ("result", "value"),
    [
        (0.5, 0.5),
        (3, 3.0),
        ({"value": -1.5, "note": "x"}, -1.5),
        (float("inf"), None),
        ({"value": float("-inf")}, None),
        (float("nan"), None),
        (True, None),
        ("0.5", None),
        ({}, None),
    ],
)
def test_only_a_finite_number_is_a_value(result, value):
    assert value_of(result) == value


def test_a_resumed_search_draws_no_trial_twice(tmp_path):
    drawn = []
    for _ in range(3):
        book = Store(
            tmp_path / "s.db",
            "tasks",
            space={"x": (0.0, 1.0)},
            maximize=False,
            seed=1,
            target="",
        )
        book.begin([], 9)
        for _ in range(2):
            number = book.ask()
            drawn.append(book.task(number)["x"])
            book.finish(number, 1.0, "", 1.0, retries=0)
    assert len(set(drawn)) == 6


def test_progress_is_shown_on_stderr(tmp_path, capsys):
    run_tasks(
        target("square"), [{"x": 2}], store=tmp_path / "s.db", slots=1, progress=True
    )
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "1/1" in shown.err


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"executor": "threads"}, "executor must be 'processes' or 'ray'"),
        ({"trials": -1}, "trials must be a whole number, 0 or greater. Received: -1"),
        ({"seconds": 0}, "seconds must be a positive number. Received: 0"),
        ({"trials": 3}, "A search needs both a space and a number of trials"),
        ({"slots": 0}, "slots must be 1 or more, or a list of.*Received: 0"),
        ({"slots": "2"}, "Received: '2'"),
        ({"tasks": [[1]]}, "A task must be a dictionary.*it is of the type list"),
        (
            {"trials": 1, "space": {"x": (2, 1)}},
            r"The space of 'x' must be \(low, high\)",
        ),
    ],
)
def test_options_are_checked(tmp_path, options, text):
    with pytest.raises(ConfigError, match=text):
        run_tasks(target("square"), store=tmp_path / "s.db", **options)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ("square", "target must be 'module:function'"),
        ("nowhere.py:square", "There is no file 'nowhere.py'"),
        (lambda x: x, "Define it at the top of a file"),
    ],
)
def test_targets_are_checked(given, text):
    with pytest.raises(ConfigError, match=text):
        target_of(given)


def test_functions_are_found_by_their_module():
    assert target_of(key_of) == "keras_dlopt.trials.store:key_of"
    assert target_of("a.b:c") == "a.b:c"


def test_tasks_must_be_data():
    with pytest.raises(ConfigError, match="A task must be a dictionary that JSON can"):
        key_of({"x": object()})
    assert key_of({"a": 1, "b": 2}) == key_of({"b": 2, "a": 1})
    assert [value_of(v) for v in (2, True, "2", float("nan"), {"value": 1.5})] == [
        2.0,
        None,
        None,
        None,
        1.5,
    ]


def _hide(monkeypatch, package):
    find = importlib.util.find_spec
    hidden = lambda name: None if name == package else find(name)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", hidden)


def test_ray_is_asked_for_by_name_when_missing(tmp_path, monkeypatch):
    _hide(monkeypatch, "ray")
    with pytest.raises(MissingDependencyError, match=r"keras-dlopt\[ray\]"):
        run_tasks(target("square"), store=tmp_path / "s.db", executor="ray")


def test_optuna_is_asked_for_by_name_when_missing(tmp_path, monkeypatch):
    _hide(monkeypatch, "optuna")
    with pytest.raises(MissingDependencyError, match=r"keras-dlopt\[auto\]"):
        run_tasks(target("square"), store=tmp_path / "s.db")


@pytest.mark.skipif(not importlib.util.find_spec("ray"), reason="Ray is not installed")
@pytest.mark.slow
def test_trials_run_on_ray(tmp_path):
    given = [{"x": x} for x in (1, 3, 2)]
    done = run_tasks(
        target("picky"), given, store=tmp_path / "s.db", slots=2, executor="ray"
    )
    assert [o.state for o in done] == ["done", "failed", "done"]
    assert "three is refused" in done[1].error
