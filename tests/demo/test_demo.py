"""The demo's order of work, on a small data set; and what stops it beforehand."""

import json
import pathlib
import sys

import keras
import numpy as np
import pytest

import keras_dlopt as dlopt
from keras_dlopt import demo
from keras_dlopt.errors import (
    ConfigError,
    DataError,
    FormatError,
    MissingDependencyError,
)
from keras_dlopt.files import workspace
from keras_dlopt.report import Recorder, Silent, fresh


def _toy(shape=(8, 8, 1), test=24):
    rng = np.random.default_rng(0)
    y = np.arange(96, dtype="int32") % 3
    x = rng.normal(size=(96, *shape)).astype("float32") * 0.3
    x[np.arange(96), y] += 1.0
    rest = x[64:], y[64:]
    return dlopt.data.Dataset(
        "toy", x[:64], y[:64], *rest, rest[0][:test], rest[1][:test], ("a", "b", "c")
    )


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """One whole run: its result, its folder, what was told while it ran."""
    pytest.importorskip("ai_edge_litert")
    out = tmp_path_factory.mktemp("demo") / "deep" / "out"
    told = []

    class Told:
        def stage(self, name, steps):
            told.append([name, steps, 0])

        def advance(self, note):
            told[-1][2] += 1

    toy = _toy()
    np.savez(
        out.parents[1] / "toy.npz",
        x_train=toy.x_train,
        y_train=toy.y_train,
        x_test=toy.x_test,
        y_test=toy.y_test,
    )
    wanted = demo.Settings(
        data=str(out.parents[1] / "toy.npz"), epochs=3, out=out, quick=True, seed=3
    )
    return demo.run(wanted, progress=Told()), out, told


def test_all_files_are_there_and_no_other(done):
    _, out, _ = done
    assert sorted(p.name for p in out.iterdir()) == sorted(demo.FILES)
    assert [p.name for p in out.parent.iterdir()] == ["out"]


def test_stages_tell_their_steps(done):
    result, _, told = done
    steps = result.plan.steps
    assert [t[1] for t in told if t[1]] == [3 * steps, 3 * steps, steps]
    assert all(t[1] == t[2] for t in told)


def test_compressed_file_gives_the_measured_model(done):
    result, out, _ = done
    model = dlopt.load_compressed(out / "model.dlopt")
    with np.load(out.parents[1] / "toy.npz") as data:
        x, y = data["x_test"], data["y_test"]
    labels = model.predict(x, verbose=0).argmax(-1)
    assert np.mean(labels == y) == result.compressed.quality.accuracy
    kernels = [v.numpy() for v in model.weights if v.name == "kernel"]
    for value in kernels:
        assert len(np.unique(value)) <= result.plan.clusters + 1
    zeros = sum((v == 0).sum() for v in kernels) / sum(v.size for v in kernels)
    assert result.compressed.sparsity == pytest.approx(zeros)
    assert zeros == pytest.approx(result.plan.sparsity, abs=0.01)


def test_result_file_holds_the_figures(done):
    result, out, _ = done
    data = json.loads((out / "result.json").read_text())
    assert data["compressed"]["ledger"]["file_bytes"] == (
        (out / "model.dlopt").stat().st_size
    )
    assert data["int8"]["file_bytes"] == (out / "model.tflite").stat().st_size
    assert data["settings"]["seed"] == 3
    assert data["fresh_equal"] is True
    assert len(data["traces"][0]["loss"]) == 3 * result.plan.steps
    assert data["compressed_changes"]["churn"] == result.compressed_changes.churn


def test_table_and_page_show_the_figures(done):
    result, out, _ = done
    rows = {row[0]: row[1:] for row in result.table().rows}
    assert rows["bytes on disk"][1] == f"{(out / 'model.dlopt').stat().st_size:,}"
    assert rows["bytes on disk"][2] == f"{(out / 'model.tflite').stat().st_size:,}"
    assert rows["churn"][0] == ""
    page = (out / "report.html").read_text()
    assert page.count("<svg ") == 3
    assert rows["bytes on disk"][1] in page
    assert "http" not in page


def test_traces_cover_every_step(done):
    result, *_ = done
    assert np.isfinite(result.traces[0].loss).all()
    assert result.traces[0].rate[0] == pytest.approx(1e-5)  # LossDriven's start


def test_recorder_undoes_the_running_mean():
    recorder = Recorder(Silent())
    losses = [4.0, 1.0, 2.5]
    for batch in range(3):
        recorder.on_train_batch_end(batch, {"loss": np.mean(losses[: batch + 1])})
    np.testing.assert_allclose(recorder.loss, losses)


def test_recipe_is_plain_data():
    plan = demo.DemoPlan(width=8, batch_size=32, steps=10, epochs=10, int8_epochs=3)
    recipe = demo.recipe(plan)
    assert dlopt.Recipe.from_json(recipe.to_json()) == recipe
    assert (plan.prune_end, plan.cluster_begin) == (50, 70)


def test_plan_follows_the_size_of_the_data():
    toy = _toy()
    assert demo.plan(demo.Settings(), toy).epochs == 30
    assert demo.plan(demo.Settings(quick=True), toy).epochs == 8
    assert demo.plan(demo.Settings(epochs=5), toy).int8_epochs == 1
    assert demo.plan(demo.Settings(), toy).batch_size == 32


@pytest.mark.parametrize(
    ("make", "kind", "text"),
    [
        (
            lambda: demo.Settings(epochs=0),
            ConfigError,
            "epochs must be .* 1 or greater, or None. Received: 0",
        ),
        (lambda: demo.Settings(seed=-1), ConfigError, r"between 0 and .* Received: -1"),
        (
            lambda: demo.plan(demo.Settings(), _toy(shape=(8,))),
            DataError,
            r"needs images .* toy has examples of shape \(8,\)",
        ),
        (
            lambda: demo.plan(demo.Settings(), _toy(test=0)),
            DataError,
            "toy has no test examples",
        ),
        (
            lambda: demo.check(demo.Settings(out=pathlib.Path(__file__))),
            ConfigError,
            "--out must be a folder. .* is a file",
        ),
        (
            lambda: demo.check(demo.Settings(out=pathlib.Path(__file__) / "a")),
            ConfigError,
            "cannot be written: no permission in .* Choose another with --out",
        ),
    ],
)
def test_refusals_come_before_the_training(make, kind, text):
    with pytest.raises(kind, match=text):
        make()


def test_missing_package_is_named_before_the_training(monkeypatch):
    monkeypatch.setitem(sys.modules, "ai_edge_litert", None)
    with pytest.raises(MissingDependencyError, match=r"keras-dlopt\[litert\]"):
        demo.check(demo.Settings())


def test_other_backends_are_refused(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(ConfigError, match="Received: 'jax'. Set .*KERAS_BACKEND"):
        demo.check(demo.Settings())


def test_workspace_leaves_no_trace_when_interrupted(tmp_path):
    def interrupted():
        with workspace(tmp_path / "a" / "b") as folder:
            (folder / "half").write_text("x")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_workspace_replaces_only_its_own_files(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("kept")
    (out / "model").write_text("old")
    with workspace(out) as folder:
        (folder / "model").write_text("new")
        assert (out / "model").read_text() == "old"
    assert {p.name: p.read_text() for p in out.iterdir()} == {
        "mine": "kept",
        "model": "new",
    }
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_workspace_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be made .*Choose another"):
        with workspace(tmp_path / "file" / "out"):
            pass


def test_a_model_that_came_back_changed_is_reported():
    with pytest.raises(FormatError, match="other outputs for 1 of 2 .* is 0.5"):
        fresh.check_equal(np.zeros((2, 3)), np.array([[0, 0, 0], [0, 0.5, 0]]))


def test_a_fresh_process_that_fails_is_reported(tmp_path):
    (tmp_path / "bad.dlopt").write_bytes(b"not a model")
    with pytest.raises(FormatError, match="fresh process could not load .*bad.dlopt"):
        fresh.predict_elsewhere(tmp_path / "bad.dlopt", np.zeros((1, 2)))
