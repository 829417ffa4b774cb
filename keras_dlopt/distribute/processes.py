"""Several local processes that train together, for trials and tests."""

import contextlib
import dataclasses
import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from keras_dlopt.errors import ConfigError, DloptError

_POLL, _GRACE = 0.1, 5.0
_TERMINATED = 143  # exit code of a process that SIGTERM ended
# Below the ports that Linux gives to outgoing connections, which could take one before
# the worker that it was chosen for listens.
_PORTS = range(10_000, 32_000)


class RunError(DloptError, RuntimeError):
    """A process that was started failed, or did not end in time."""


@dataclasses.dataclass(frozen=True)
class WorkerResult:
    """How one process ended.

    Attributes:
        index: of the worker.
        returncode: of the process; negative for a signal.
        log: file that holds what it wrote to stdout and stderr.
    """

    index: int
    returncode: int
    log: pathlib.Path

    def text(self) -> str:
        """What the process wrote."""
        return self.log.read_text(errors="replace")


def run(
    script: str | os.PathLike,
    *arguments: Any,
    workers: int = 2,
    seconds: float = 600.0,
    logs: str | os.PathLike | None = None,
    environment: Mapping[str, str] | None = None,
    restarts: int = 0,
) -> list[WorkerResult]:
    """Runs a script in several processes of this machine that train together.

    Every process gets a TF_CONFIG of its own; the script builds its strategy with
    `keras_dlopt.distribute.strategy("multi_worker")`. If one process fails, the others,
    which would wait for it, are ended too; with `restarts`, all are started again, and
    a script that trains with `keras_dlopt.distribute.fit` goes on where it was.

    Args:
        script: Python file.
        *arguments: of the script, as text. It can read nothing from stdin.
        workers: number of processes, 1 or more.
        seconds: longest time for all of it; then every process is ended.
        logs: folder for `worker-0.log` and so on; None for a temporary one.
        environment: variables to set beside those of this process.
        restarts: how often to start all processes again after a failure.

    Returns:
        A result per process.

    Raises:
        ConfigError: for a script that is not there, or fewer than one worker.
        RunError: if a process fails or time is up; the text ends with its last lines.
    """
    whole = isinstance(workers, int) and isinstance(restarts, int)
    if not whole or workers < 1 or restarts < 0:
        raise ConfigError(
            "workers must be 1 or more and restarts 0 or more. Received: "
            f"workers={workers!r}, restarts={restarts!r}."
        )
    path = pathlib.Path(script)
    if not path.is_file():
        raise ConfigError(f"There is no script {str(path)!r}. Pass a Python file.")
    folder = pathlib.Path(logs or tempfile.mkdtemp(prefix="keras-dlopt-run-"))
    folder.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + seconds
    command = [sys.executable, str(path), *map(str, arguments)]
    variables = {name: str(value) for name, value in (environment or {}).items()}
    for left in range(restarts, -1, -1):
        results = _once(command, workers, end, folder, variables)
        failed = [r for r in results if r.returncode != 0]
        if not failed:
            return results
        late = time.monotonic() >= end
        if late or left == 0:
            raise _error(results, seconds if late else None)
    raise AssertionError("unreachable")


def _once(
    command: Sequence[str],
    workers: int,
    end: float,
    folder: pathlib.Path,
    environment: Mapping[str, str],
) -> list[WorkerResult]:
    addresses = [f"127.0.0.1:{port}" for port in free_ports(workers)]
    started: list[Any] = []
    with contextlib.ExitStack() as held:
        held.enter_context(ended_by_sigterm())
        held.callback(end_processes, started)
        for index in range(workers):
            log = held.enter_context((folder / f"worker-{index}.log").open("ab"))
            config = {
                "cluster": {"worker": addresses},
                "task": {"type": "worker", "index": index},
            }
            own = {"TF_CONFIG": json.dumps(config)} if workers > 1 else {}
            started.append(
                subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, **environment, **own},
                    start_new_session=True,
                )
            )
        _wait(started, end)
    return [
        WorkerResult(i, p.returncode, folder / f"worker-{i}.log")
        for i, p in enumerate(started)
    ]


def _wait(started: list[Any], end: float) -> None:
    """Until all have ended well, one has not, or time is up."""
    while time.monotonic() < end:
        codes = [p.poll() for p in started]
        if any(code not in (None, 0) for code in codes):
            # The others may be about to fail for the same reason, and say so better.
            time.sleep(min(1.0, max(0.0, end - time.monotonic())))
            return
        if all(code == 0 for code in codes):
            return
        time.sleep(_POLL)


@contextlib.contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Inside, SIGTERM raises SystemExit, so that what was started is ended too.

    A handler that the program has set itself, and threads, are left as they are.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def end(*_):
        raise SystemExit(_TERMINATED)

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def end_processes(started: Sequence[Any]) -> None:
    """Ends processes that lead a session of their own, with all they started.

    Also what processes that have ended left running.
    """
    for signal_number in (signal.SIGTERM, signal.SIGKILL):
        running = [p for p in started if p.poll() is None]
        for process in started:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal_number)
        limit = time.monotonic() + _GRACE
        while any(p.poll() is None for p in running) and time.monotonic() < limit:
            time.sleep(_POLL)
    for process in started:
        process.wait(_GRACE)


def free_ports(count: int) -> list[int]:
    """So many TCP ports of the loopback interface that nobody listens on."""
    found: list[int] = []
    for port in random.SystemRandom().sample(_PORTS, 1000):
        with socket.socket() as one, contextlib.suppress(OSError):
            one.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == count:
            return found
    raise RunError(
        f"No {count} free ports between {_PORTS[0]} and {_PORTS[-1]} were found. End "
        "processes that listen there."
    )


def _error(results: list[WorkerResult], seconds: float | None) -> RunError:
    first = next(r for r in results if r.returncode != 0)
    # A worker that was ended says less than one that failed by itself.
    first = next((r for r in results if r.returncode > 0), first)
    what = (
        f"did not end within {seconds:g} s and was ended"
        if seconds is not None
        else f"failed with exit code {first.returncode}"
    )
    tail = "\n".join(first.text().splitlines()[-20:])
    return RunError(
        f"Worker {first.index} of {len(results)} {what}. Its log is {first.log}; the "
        f"last lines:\n{tail}"
    )
