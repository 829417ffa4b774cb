"""Killed and started again, training ends with the weights of an unbroken run."""

import errno
import json
import pathlib
import resource
import shutil
import signal

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_dlopt.distribute import fit, plan, run
from keras_dlopt.distribute.checkpoints import Checkpoints, Position
from keras_dlopt.errors import (
    ConfigError,
    DataError,
    DiskError,
    FormatError,
    ModelError,
)

TRAINER = pathlib.Path(__file__).with_name("trainer.py")
STEPS = 18  # three epochs of six batches


def load(path):
    with np.load(path) as stored:
        return [stored[name] for name in stored.files]


def same(left, right):
    pairs = zip(load(left), load(right), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


def unbroken(start, tmp_path, strategy):
    out = tmp_path / "unbroken.npz"
    done = start(TRAINER, strategy, tmp_path / "unbroken", "--out", out)
    assert done.returncode == 0, done.stderr[-3000:]
    return out


@pytest.mark.dist
@pytest.mark.timeout(600)
def test_sigterm_and_sigkill_change_no_bit(start, tmp_path):
    whole, out = unbroken(start, tmp_path, "cpu:2"), tmp_path / "broken.npz"
    ends = [("--term", "8", 143), ("--kill", "5", -signal.SIGKILL)]
    for option, step, code in ends:
        done = start(TRAINER, "cpu:2", tmp_path / "runs", option, step)
        assert done.returncode == code, done.stderr[-3000:]
        assert list((tmp_path / "runs").glob("step-*"))
    done = start(TRAINER, "cpu:2", tmp_path / "runs", "--out", out)
    assert done.returncode == 0, done.stderr[-3000:]
    assert same(whole, out)


@pytest.mark.slow
@pytest.mark.dist
@pytest.mark.timeout(2400)
def test_ten_kills_at_random_steps(start, tmp_path):
    whole = unbroken(start, tmp_path, "one_device")
    rng = np.random.default_rng(11)
    for number, step in enumerate(rng.integers(0, STEPS, 10)):
        folder, out = tmp_path / str(number), tmp_path / f"{number}.npz"
        done = start(TRAINER, "one_device", folder, "--kill", step)
        assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]
        done = start(TRAINER, "one_device", folder, "--out", out)
        assert done.returncode == 0, done.stderr[-3000:]
        assert same(whole, out), f"killed in step {step}"


@pytest.mark.slow
@pytest.mark.dist
@pytest.mark.timeout(1200)
def test_a_killed_worker_and_its_peer_go_on(tmp_path):
    def train(name, *options, restarts=0):
        out = tmp_path / f"{name}.npz"
        run(
            TRAINER,
            "multi_worker",
            str(tmp_path / name),
            "--out",
            str(out),
            *options,
            workers=2,
            seconds=500,
            restarts=restarts,
            logs=tmp_path / f"{name}-logs",
        )
        return out

    whole = train("whole")
    with_kill = ["--kill", "9", "--once", str(tmp_path / "killed")]
    assert same(whole, train("broken", *with_kill, restarts=2))
    assert (tmp_path / "killed").exists()


# -- without other processes -----------------------------------------------------------

FILES = ["position.json", "state.weights.h5", "metrics.npz", "seeds.npz"]
SMALL = plan("one_device", batch_size=5)


def _model(units=2):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(units)])
    model.compile("sgd", "mse", metrics=["mae"])
    return model


def _examples(count=10):
    return tf.data.Dataset.from_tensor_slices(
        (np.ones((count, 3)), np.ones((count, 2)))
    )


def test_a_finished_run_is_not_trained_again(tmp_path):
    options = {"directory": str(tmp_path), "epochs": 2, "verbose": 0}
    small = plan("one_device", batch_size=5)
    first = _model()
    assert len(fit(first, _examples(), small, **options).history["loss"]) == 2
    second = _model()
    assert fit(second, _examples(), small, **options).history == {}
    for a, b in zip(first.get_weights(), second.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_order_is_that_of_seed_and_epoch_alone(seed):
    from keras_dlopt.distribute.resume import _stream

    small = plan("one_device", batch_size=4)
    numbers = tf.data.Dataset.range(8)

    def order(position, global_seed):
        tf.random.set_seed(global_seed)
        data = _stream(numbers, small, 3, 8, seed, position)
        return [batch.numpy().tolist() for batch in data]

    whole = order(Position(), 0)
    assert len({str(whole[i : i + 2]) for i in (0, 2, 4)}) == 3
    assert order(Position(1, 1), 5) == whole[3:]


class Breaks(keras.callbacks.Callback):
    """Breaks the run off after a step, as a kill does."""

    def __init__(self, step):
        super().__init__()
        self.left = step

    def on_train_batch_end(self, batch, logs=None):
        self.left -= 1
        if self.left == 0:
            raise RuntimeError("broken off")


def _broken(tmp_path, **options):
    options = {"directory": str(tmp_path), "epochs": 2, "every": 1, **options}
    with pytest.raises(RuntimeError, match="broken off"):
        fit(_model(), _examples(), SMALL, callbacks=[Breaks(2)], verbose=0, **options)
    return options


def test_a_run_with_metrics_goes_on_within_its_epoch(tmp_path):
    whole = _model()
    whole_history = fit(
        whole, _examples(), SMALL, directory=f"{tmp_path}/whole", epochs=2, verbose=0
    )
    options = _broken(tmp_path / "broken")
    model = _model()
    history = fit(model, _examples(), SMALL, verbose=0, **options)
    assert history.history == whole_history.history
    for a, b in zip(whole.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_another_order_of_batches_is_refused_within_an_epoch(tmp_path):
    options = _broken(tmp_path)
    for examples, other, text in (
        (_examples(), {"shuffle": 4}, "shuffle=0, now 4"),
        (_examples(), {"shuffle": 4, "seed": 3}, "seed=0, now 3"),
        (_examples(20), {}, "examples=10, now 20"),
    ):
        with pytest.raises(ConfigError, match=f"broken off after batch 1.*{text}"):
            fit(_model(), examples, SMALL, **options, **other)
    with pytest.raises(ConfigError, match="batch_size=5, now 2.*in a new directory"):
        fit(_model(), _examples(), plan("one_device", batch_size=2), **options)


def test_other_data_is_welcome_where_an_epoch_begins(tmp_path):
    options = {"directory": str(tmp_path), "verbose": 0}
    fit(_model(), _examples(), SMALL, epochs=1, **options)
    history = fit(_model(), _examples(20), SMALL, epochs=2, shuffle=4, **options)
    assert len(history.history["loss"]) == 1


def test_another_optimizer_is_refused(tmp_path):
    options = _broken(tmp_path)
    model = _model()
    model.compile("adam", "mse", metrics=["mae"])
    with pytest.raises(FormatError, match="optimizer SGD there, Adam here"):
        fit(model, _examples(), SMALL, **options)


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_checkpoint_is_named(tmp_path, name):
    options = _broken(tmp_path)
    (folder,) = tmp_path.glob("step-*")
    whole = (folder / name).read_bytes()
    for damage in (b"", whole[: len(whole) // 2], b'{"epoch": -1}'):
        (folder / name).write_bytes(damage)
        with pytest.raises(FormatError, match="(?s)step-0.*is damaged.*delete that"):
            fit(_model(), _examples(), SMALL, verbose=0, **options)


def _flip(path, at):
    """Changes one bit, as a disk that ages does."""
    content = bytearray(path.read_bytes())
    content[at] ^= 0x40
    path.write_bytes(content)


@pytest.mark.parametrize("name", FILES)
def test_a_bit_that_changed_is_seen_wherever_it_is(tmp_path, name):
    store = Checkpoints(tmp_path)
    store.save(_model(), Position(1, 2, 12, data={"seed": 3}))
    folder = store.newest().folder
    whole = (folder / name).read_bytes()
    size = len(whole)
    for at in {*np.linspace(0, size - 1, 60).astype(int).tolist(), size // 2}:
        _flip(folder / name, at)
        with pytest.raises(FormatError, match="(?s)step-000001-000000002.*is damaged"):
            store.newest()
        (folder / name).write_bytes(whole)
    assert store.newest().data == {"seed": 3}
    (folder / name).unlink()
    with pytest.raises(FormatError, match="is damaged"):
        store.newest()


def test_an_older_checkpoint_is_taken_where_that_is_asked_for(tmp_path):
    options = {"directory": str(tmp_path), "epochs": 3, "every": 1, "verbose": 0}
    whole = _model()
    fit(whole, _examples(), SMALL, **options)
    _, newest = sorted(tmp_path.glob("step-*"))
    _flip(newest / "state.weights.h5", -100)
    with pytest.raises(FormatError, match="pass damaged='older' to distribute.fit"):
        fit(_model(), _examples(), SMALL, **options)
    model = _model()
    with pytest.warns(UserWarning, match=f"(?s){newest.name}.*An older checkpoint"):
        fit(model, _examples(), SMALL, damaged="older", keep=1, **options)
    for a, b in zip(whole.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert [p.parent.name[:8] for p in tmp_path.glob("*/step-*")] == ["damaged-"]
    assert Checkpoints(tmp_path).newest().epoch == 3


def test_if_all_are_damaged_the_newest_is_named(tmp_path):
    store, model = Checkpoints(tmp_path), _model()
    for batch in (1, 2):
        store.save(model, Position(0, batch, 0))
    for folder in tmp_path.glob("step-*"):
        _flip(folder / "seeds.npz", 1)
    with (
        pytest.raises(FormatError, match="step-000000-000000002"),
        pytest.warns(UserWarning, match="An older checkpoint is taken"),
    ):
        store.newest(damaged="older")
    with pytest.raises(ConfigError, match="damaged must be 'refuse' or 'older'"):
        store.newest(damaged="ignore")


def test_checkpoints_of_older_versions_have_no_sums_and_load(tmp_path):
    store, model = Checkpoints(tmp_path), _model()
    store.save(model, Position(0, 1, 0))
    path = store.newest().folder / "position.json"
    kept = json.loads(path.read_text())
    del kept["sha256"], kept["files"]
    path.write_text(json.dumps(kept))
    model.save_weights(path.parent / "state.weights.h5")  # as it was written
    other = _model()
    other.set_weights([w + 1 for w in other.get_weights()])
    store.load(other, store.newest())
    for a, b in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_full_disk_ends_in_an_error_and_leaves_the_earlier_checkpoint(tmp_path):
    store, model = Checkpoints(tmp_path), _model()
    store.save(model, Position(0, 1, 0))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (0, 1000, 4000, 10_000):  # in the first, second, ... file
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            with pytest.raises(OSError, match="checkpoint of") as caught:
                store.save(model, Position(0, 2, 0))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert isinstance(caught.value, DiskError)
        assert caught.value.errno == errno.EFBIG
        assert f"could not be written to {str(tmp_path)!r}: " in str(caught.value)
        assert [p.name for p in tmp_path.iterdir()] == ["step-000000-000000001"]
        assert store.newest().batch == 1
    shutil.rmtree(tmp_path)
    with pytest.raises(DiskError, match="No such file or directory"):
        store.save(model, Position(0, 2, 0))


def test_other_files_in_the_directory_are_left_alone(tmp_path):
    (tmp_path / "step-notes.txt").write_text("mine")
    (tmp_path / "step-best").mkdir()
    _broken(tmp_path)
    assert Checkpoints(tmp_path).newest().batch == 1
    assert (tmp_path / "step-best").is_dir()
    with pytest.raises(ConfigError, match="directory must be a folder"):
        Checkpoints(tmp_path / "step-notes.txt")


def test_sigterm_after_the_last_checkpoint_still_ends_the_process(tmp_path):
    class Late(Breaks):
        def on_train_end(self, logs=None):
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(SystemExit) as ended:
        fit(
            _model(),
            _examples(),
            SMALL,
            directory=str(tmp_path),
            callbacks=[Late(99)],
            verbose=0,
        )
    assert ended.value.code == 143


def test_checkpoints_are_whole_or_not_there(tmp_path):
    store, model = Checkpoints(tmp_path, keep=2), _model()
    assert store.newest() == Position()
    (tmp_path / ".writing-left-by-a-kill").mkdir()
    for batch in (2, 4, 6):
        store.save(model, Position(1, batch, 12))
    assert [p.name for p in sorted(tmp_path.iterdir())] == [
        "step-000001-000000004",
        "step-000001-000000006",
    ]
    newest = store.newest()
    assert (newest.epoch, newest.batch, newest.count_at_epoch) == (1, 6, 12)


def test_only_the_first_worker_writes(tmp_path):
    store = Checkpoints(tmp_path, write=False)
    store.save(_model(), Position(0, 1, 0))
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    store = Checkpoints(tmp_path)
    store.save(_model(2), Position(0, 1, 0))
    with pytest.raises(
        FormatError, match="(?s)does not fit this model.*in a new directory"
    ):
        store.load(_model(4), store.newest())


@pytest.mark.parametrize(
    ("options", "text", "kind"),
    [
        ({"every": 0}, "steps_per_execution must divide", ConfigError),
        (
            {"keep": 0},
            "keep must be .* 1 or greater. Received: 0",
            ConfigError,
        ),
    ],
)
def test_options_are_checked(tmp_path, options, text, kind):
    small = plan("one_device", batch_size=5)
    with pytest.raises(kind, match=text):
        fit(_model(), _examples(), small, directory=str(tmp_path), **options)


def test_data_and_model_are_checked(tmp_path):
    import keras

    small, where = plan("one_device", batch_size=5), {"directory": str(tmp_path)}
    with pytest.raises(DataError, match="must be known and fill a batch of 5"):
        fit(_model(), _examples().repeat(), small, **where)
    with pytest.raises(DataError, match="A tf.data.Dataset is needed. Received: tuple"):
        fit(_model(), (np.ones(3), np.ones(3)), small, **where)
    with pytest.raises(ConfigError, match="sets .* itself.*Received: batch_size"):
        fit(_model(), _examples(), small, batch_size=2, **where)
    with pytest.raises(ConfigError, match="The plan has no batch size"):
        fit(_model(), _examples(), plan("one_device"), **where)
    with pytest.raises(ModelError, match="must be built and compiled before"):
        fit(keras.Sequential([keras.layers.Dense(1)]), _examples(), small, **where)
