"""Python programs in processes of their own, ended with all that they started."""

import contextlib
import os
import pathlib
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

_POLL, _GRACE = 0.1, 5.0
TERMINATED = 143  # exit code of a process that SIGTERM ended


class Child:
    """A Python program that runs, with nothing to read on stdin.

    Args:
        *arguments: of the interpreter: a script, or `"-m"` and a module, and theirs.
        log: file to which it appends what it writes to stdout and stderr.
        environment: all its variables; None for those of this process.
    """

    def __init__(
        self,
        *arguments: Any,
        log: str | os.PathLike[str],
        environment: Mapping[str, str] | None = None,
    ):
        self.log = pathlib.Path(log)
        with self.log.open("ab") as file:
            self.process = subprocess.Popen(
                [sys.executable, *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # so that it can be ended with what it started
            )

    @property
    def code(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        return self.process.poll()

    def text(self) -> str:
        """What it has written."""
        return self.log.read_text(errors="replace")

    def tail(self, lines: int) -> str:
        """The last lines of what it has written."""
        return "\n".join(self.text().splitlines()[-lines:])

    def where(self) -> str:
        """Ends it, and tells where its main thread was; empty if that is not known.

        It must have been started with PYTHONFAULTHANDLER set.
        """
        known = self.log.stat().st_size
        with contextlib.suppress(OSError, ValueError, AttributeError):
            limits = resource.prlimit(self.process.pid, resource.RLIMIT_CORE)
            none = (0, limits[1])
            resource.prlimit(self.process.pid, resource.RLIMIT_CORE, none)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, signal.SIGABRT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(_GRACE)
        told = self.log.read_bytes()[known:].decode(errors="replace")
        # Threads come with the newest first, so that the main one is the last.
        stack = told.rpartition("(most recent call first)")[2]
        lines = re.findall(r'^  File "(.*)", line (\d+) in (.*)$', stack, re.MULTILINE)
        return ", called from ".join(f"{f}:{n} ({g})" for f, n, g in lines[:3])

    def problem(self, seconds: float) -> str:
        """What went wrong, for a child that was given so many seconds."""
        if self.code is None:
            return f"timed out after {seconds:g} s and was ended"
        return f"failed with exit code {self.code}"


@contextlib.contextmanager
def children() -> Iterator[list[Child]]:
    """A list to put children into; at the end of the block all of them are ended.

    Also when the block fails or SIGTERM ends this process.
    """
    started: list[Child] = []
    with ended_by_sigterm():
        try:
            yield started
        finally:
            end(started)


def wait(
    started: Sequence[Child],
    *,
    until: float,
    look: Callable[[], Any] = lambda: None,
) -> Child | None:
    """Until all have ended well, one has not, or time is up.

    Args:
        started: the children.
        until: time of `time.monotonic` at which to stop waiting.
        look: called again and again while waiting.

    Returns:
        None if all ended well; else the child that says most about why not: one that
        failed by itself, else one that a signal ended, else one that still runs.
    """
    while True:
        codes = [child.code for child in started]
        if all(code == 0 for code in codes):
            return None
        left = until - time.monotonic()
        if any(codes) and None in codes:
            # The others may be about to fail for the same reason, and say so better.
            time.sleep(max(0.0, min(1.0, left)))
        if any(codes) or left <= 0:
            break
        time.sleep(min(_POLL, left))
        look()
    worst = min(started, key=_telling)
    return worst if worst.code != 0 else None  # the last one ended well just now


def _telling(child: Child) -> int:
    code = child.code
    return 2 if code is None else 3 if code == 0 else 0 if code > 0 else 1


def end(started: Sequence[Child]) -> None:
    """Ends children with all they started, also what ended ones left running."""
    for signal_number in (signal.SIGTERM, signal.SIGKILL):
        running = [child for child in started if child.code is None]
        for child in started:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child.process.pid, signal_number)
        limit = time.monotonic() + _GRACE
        while time.monotonic() < limit and any(c.code is None for c in running):
            time.sleep(_POLL)
    for child in started:
        child.process.wait(_GRACE)


@contextlib.contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Inside, SIGTERM raises SystemExit, so that what was started is ended too.

    A handler that the program has set itself, and threads, are left as they are.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def stop(*_: Any) -> None:
        raise SystemExit(TERMINATED)

    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def python_path() -> str:
    """PYTHONPATH with which a new process finds the modules that this one finds."""
    return os.pathsep.join(path or os.getcwd() for path in sys.path)
