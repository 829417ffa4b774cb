"""Whole files: read with a limit, written all or not at all."""

import contextlib
import io
import json
import math
import os
import re
import secrets
import shutil
import stat
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import IO, Any

import filelock
import numpy as np

from keras_dlopt.errors import ConfigError, FormatError


def write_atomic(path: Path, data: bytes) -> None:
    """Writes beside the target, then moves into place; an old file survives failure.

    An old file's permissions stay, and where it is a symbolic link, what the link
    points to is replaced. While the data is written the new file has no name where the
    system can do that, so that nothing is left of a process that is killed.

    Raises:
        ConfigError: if the folder or file cannot be written.
    """
    try:
        target = Path(os.path.realpath(path))
        temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
        try:
            with _nameless(target.parent) or open(temporary, "xb") as file:
                file.write(data)
                file.flush()
                if target.exists():
                    os.fchmod(file.fileno(), stat.S_IMODE(target.stat().st_mode))
                os.fsync(file.fileno())
                if not temporary.exists():
                    _name(file.fileno(), temporary)
            os.replace(temporary, target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise ConfigError(
            f"Cannot write {str(path)!r}: {error.strerror or error}. Nothing was "
            "changed. Choose a folder that exists and that you may write to."
        ) from error


def _nameless(folder: Path) -> IO[bytes] | None:
    """A file in a folder that vanishes with this process unless it gets a name."""
    if not hasattr(os, "O_TMPFILE") or not os.path.exists("/proc/self/fd"):
        return None
    try:
        number = os.open(folder, os.O_TMPFILE | os.O_RDWR, 0o666)
    except OSError:  # a file system that cannot, or no such folder
        return None
    return open(number, "wb")


def _name(number: int, path: Path) -> None:
    """Gives a name to an open file that has none."""
    folder = os.open("/proc/self/fd", os.O_RDONLY)
    try:  # without a folder's number links are not followed, and this is one
        os.link(str(number), path, src_dir_fd=folder, follow_symlinks=True)
    finally:
        os.close(folder)


def read_limited(path: Path, max_bytes: int) -> bytes:
    """The contents of a regular file of at most `max_bytes`.

    Raises:
        ConfigError: if it cannot be read.
        FormatError: if it is larger.
    """
    try:
        if not path.is_file():
            raise ConfigError(
                f"There is no file {str(path)!r}. Pass the path of a file that exists."
            )
        with open(path, "rb") as file:
            # No more is asked for than is there: the buffer is allocated at once.
            size = os.fstat(file.fileno()).st_size
            data = file.read(min(size, max_bytes) + 1)
    except OSError as error:
        raise ConfigError(
            f"Cannot read {str(path)!r}: {error.strerror or error}. Check its "
            "permissions."
        ) from error
    if len(data) > max_bytes:
        raise FormatError(
            f"{str(path)!r} is larger than max_bytes={max_bytes}. If it comes from a "
            "source you trust, pass a larger max_bytes."
        )
    return data


def read_npz(
    data: bytes, *, wanted: Collection[str] | None = None
) -> dict[str, np.ndarray]:
    """The arrays of a NumPy archive, by name; arrays of objects are refused.

    Args:
        data: what the file holds.
        wanted: names of arrays to read, where they are there; None for all.

    Raises:
        FormatError: for anything else, or a damaged archive.

    Example:
        >>> memory = io.BytesIO()
        >>> np.savez(memory, x=np.arange(3))
        >>> read_npz(memory.getvalue())["x"].tolist()
        [0, 1, 2]
    """
    try:
        # From memory: NumPy leaves the file of a broken archive open.
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            names = [n for n in archive.files if wanted is None or n in wanted]
            return {name: np.asarray(archive[name]) for name in names}
    except Exception as error:  # zipfile, zlib and NumPy raise a dozen kinds
        told = str(error) or type(error).__name__
        raise FormatError(
            f"This is no .npz archive of plain arrays, or a damaged one: {told[:300]}. "
            "Write it again with np.savez(path, ...), without arrays of objects."
        ) from error


# Deeper than anything this package writes, and far from Python's own limit.
MAX_DEPTH = 100
MAX_JSON = 2**26
_IN_STRINGS = re.compile(r'"(?:[^"\\]++|\\.)*+"', re.DOTALL)


def parse_json(text: bytes | str, *, finite: bool = True) -> Any:
    """The value of a JSON text that somebody else may have written.

    Args:
        text: UTF-8.
        finite: whether NaN, infinities and numbers beyond float64 are refused.

    Raises:
        FormatError: for a text that is larger than 64 MiB, no UTF-8, no JSON or nested
            more than 100 deep, or in which an object has one name twice.

    Example:
        >>> parse_json(b'{"a": [1, 2]}')
        {'a': [1, 2]}
        >>> parse_json('{"a": 1, "a": 2}')
        Traceback (most recent call last):
        keras_dlopt.errors.FormatError: This is not valid JSON: a name is given twice \
among ['a', 'a'].
    """
    if not isinstance(text, bytes | str):
        raise FormatError(f"JSON is a text. Received: {type(text).__name__}.")
    if len(text) > MAX_JSON:
        raise FormatError(f"A JSON text of {len(text)} bytes is too large.")
    try:
        decoded = text.decode("utf-8") if isinstance(text, bytes) else text
        _check_depth(decoded)
        refuse: dict[str, Any] = (
            {"parse_constant": _finite, "parse_float": _finite} if finite else {}
        )
        return json.loads(decoded, object_pairs_hook=_once, **refuse)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"This is not valid JSON: {error}.") from error


def _check_depth(text: str) -> None:
    depth = 0
    for mark in re.findall(r"[\[\]{}]", _IN_STRINGS.sub("", text)):
        depth += 1 if mark in "[{" else -1
        if depth > MAX_DEPTH:
            raise ValueError(f"it is nested more than {MAX_DEPTH} deep")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; a name given twice would hide what was given first."""
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"a name is given twice among {names!s:.200}")
    return found


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:40]} is no finite number")
    return number


def check_folder(path: str | os.PathLike[str], *, name: str) -> None:
    """Finds out whether files can be written to a folder, which may be absent.

    Raises:
        ConfigError: if not; it calls the folder by `name`, the option that gave it.
    """
    out = Path(os.path.abspath(path))
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{name} must be a folder. {str(out)!r} is a file.")
    parent = next(p for p in (out, *out.parents) if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise ConfigError(
            f"The folder {str(out)!r} cannot be written: no permission in "
            f"{str(parent)!r}. Choose another with {name}."
        )


@contextlib.contextmanager
def workspace(out: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary folder beside `out`; its files move there if all goes well.

    Files of the same names are replaced one by one, each whole. If anything fails, or
    the user interrupts, the temporary folder goes and `out` is as it was. What a
    process that was killed left beside `out` is removed by the next one; a lock tells
    it from the folder of a process that is at work.

    Raises:
        ConfigError: if the folder cannot be made.
    """
    out = Path(os.path.abspath(out))
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _sweep(out)
        lock = _claim(out)
        folder = Path(lock.lock_file).with_suffix("")
        folder.mkdir()
    except OSError as error:
        raise ConfigError(
            f"The folder {str(out)!r} cannot be made ({error.strerror}). Choose "
            "another."
        ) from error
    try:
        yield folder
        out.mkdir(exist_ok=True)
        for file in sorted(folder.iterdir()):
            os.replace(file, out / file.name)
    except BaseException:
        _remove(folder, lock)
        for parent in made:
            with contextlib.suppress(OSError):  # somebody put something there
                parent.rmdir()
        raise
    _remove(folder, lock)


_LOCK = ".lock"


def _claim(out: Path) -> filelock.BaseFileLock:
    """A lock of a new name, held; the folder of that name is this process's."""
    while True:
        path = out.with_name(f".{out.name}.{secrets.token_hex(8)}{_LOCK}")
        lock = filelock.FileLock(path, blocking=False)
        with contextlib.suppress(filelock.Timeout):  # a sweep got there first
            lock.acquire()
            if path.exists():
                return lock
            lock.release()


def _sweep(out: Path) -> None:
    """Removes the folders of processes that ended without doing so."""
    ours = re.compile(re.escape(f".{out.name}.") + "[0-9a-f]{16}" + re.escape(_LOCK))
    for path in out.parent.iterdir():
        if ours.fullmatch(path.name):
            lock = filelock.FileLock(path, blocking=False)
            with contextlib.suppress(OSError, filelock.Timeout):  # it is at work
                lock.acquire()
                _remove(path.with_suffix(""), lock)


def _remove(folder: Path, lock: filelock.BaseFileLock) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    # While it is held: afterwards it could be another one's.
    with contextlib.suppress(OSError):  # an open file, on Windows
        os.unlink(lock.lock_file)
    lock.release()
