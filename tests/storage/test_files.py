import os
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest

from keras_dlopt import files
from keras_dlopt.errors import ConfigError
from keras_dlopt.files import write_atomic
from keras_dlopt.storage import ledger_of, load_compressed, save_compressed


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left")])
@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_a_failed_write_changes_nothing(error, where, tmp_path, monkeypatch):
    path = tmp_path / "m.dlopt"
    path.write_bytes(b"old")

    def fail(*args):
        raise error

    monkeypatch.setattr(files.os, where, fail)
    with pytest.raises((KeyboardInterrupt, ConfigError)) as caught:
        write_atomic(path, b"new")
    monkeypatch.undo()
    if not isinstance(error, type):
        assert "No space left. Nothing was changed" in str(caught.value)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["m.dlopt"]


def test_a_write_replaces(tmp_path):
    path = tmp_path / "m.dlopt"
    for data in (b"one", b"two"):
        write_atomic(path, data)
        assert path.read_bytes() == data
    assert os.listdir(tmp_path) == ["m.dlopt"]


@pytest.mark.parametrize("mode", [0o600, 0o664, 0o640])
def test_permissions_stay(mode, tmp_path):
    path = tmp_path / "m.dlopt"
    write_atomic(path, b"one")
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask
    path.chmod(mode)
    write_atomic(path, b"two")
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"two", mode)


def test_a_symbolic_link_stays(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "v1").write_bytes(b"one")
    link, dangling = tmp_path / "latest", tmp_path / "next"
    link.symlink_to("real/v1")
    dangling.symlink_to("real/v2")
    for path in (link, dangling):
        write_atomic(path, b"two")
        assert path.is_symlink()
        assert path.read_bytes() == b"two"
    assert sorted(os.listdir(tmp_path / "real")) == ["v1", "v2"]


@pytest.mark.skipif(not hasattr(os, "O_TMPFILE"), reason="no files without a name")
@pytest.mark.parametrize("old", [True, False])
def test_a_kill_leaves_nothing(old, tmp_path):
    if old:
        (tmp_path / "m").write_bytes(b"old")
    code = (
        "import os, pathlib, signal\n"
        "from keras_dlopt import files\n"
        "files.os.fsync = lambda number: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"files.write_atomic(pathlib.Path({str(tmp_path / 'm')!r}), b'new')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert os.listdir(tmp_path) == (["m"] if old else [])


def test_where_files_need_names(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_nameless", lambda folder: None)
    write_atomic(tmp_path / "m", b"one")
    write_atomic(tmp_path / "m", b"two")
    assert (tmp_path / "m").read_bytes() == b"two"
    assert os.listdir(tmp_path) == ["m"]


def test_no_more_memory_is_asked_for_than_the_file_has(tmp_path):
    """Within 1 GiB of address space, most of it taken by NumPy's libraries."""
    (tmp_path / "m").write_bytes(b"x" * 100)
    code = (
        "import pathlib, resource\n"
        "from keras_dlopt.files import read_limited\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))\n"
        f"assert len(read_limited(pathlib.Path({str(tmp_path / 'm')!r}), 2**31)) == 100"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_folders_that_cannot_be_written(tmp_path):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    with pytest.raises(ConfigError, match=r"Cannot write '.*none/m.dlopt': No such"):
        save_compressed(model, tmp_path / "none" / "m.dlopt")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigError, match="Not a directory. Nothing was changed"):
        save_compressed(model, tmp_path / "file" / "m.dlopt")
    with pytest.raises(ConfigError, match="Is a directory"):
        save_compressed(model, tmp_path)
    assert os.listdir(tmp_path) == ["file"]


def test_files_that_cannot_be_read(tmp_path, monkeypatch):
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(ConfigError, match=r"There is no file '.*written by save_"):
            load_compressed(path)
    (tmp_path / "m").write_bytes(b"x")

    def deny(*args):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", deny)
    with pytest.raises(ConfigError, match="Permission denied. Check its permissions"):
        ledger_of(str(tmp_path / "m"))


def test_lenet_sized_models_are_quick_and_near_their_bound(tmp_path):
    """13 thousand of 266 thousand weights left, 16 values: what pruning leaves."""
    import time

    model = keras.Sequential([keras.Input((784,))])
    for units in (300, 100, 10):
        model.add(keras.layers.Dense(units))
    rng = np.random.default_rng(0)
    for v in model.weights[::2]:
        index = np.clip(np.rint(rng.normal(7.5, 3, v.shape)), 0, 15).astype(int)
        values = np.sort(rng.normal(size=16)).astype("float32")
        kept = rng.random(v.shape) < (0.3 if v.shape[1] == 10 else 0.047)
        v.assign(np.where(kept, values[index], np.float32(0)))
    for v in model.weights[1::2]:
        v.assign(rng.normal(size=v.shape).astype("float32"))
    start = time.perf_counter()
    ledger = save_compressed(model, tmp_path / "m.dlopt")
    saved = time.perf_counter()
    load_compressed(tmp_path / "m.dlopt")
    loaded = time.perf_counter()
    # Measured 0.6 and 0.2 s on an idle core; the margin is for a busy machine.
    assert saved - start < 6
    assert loaded - saved < 4
    kernels, biases = ledger.rows[::2], ledger.rows[1::2]
    assert all(row.method == "sparse codebook" for row in kernels)
    coded = sum(row.positions + row.values for row in kernels)
    bound = sum(row.entropy_positions + row.entropy_values for row in kernels)
    assert coded < 1.012 * bound
    rest = 8 * ledger.file_bytes - coded - sum(row.bits for row in biases)
    # Header, three codebooks of 64 bytes, six Huffman tables.
    assert rest < 8 * 450
    assert ledger.file_bytes < ledger.gzip_bytes / 1.4
