"""Several local processes that train together, for trials and tests."""

import dataclasses
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

from keras_dlopt.errors import ConfigError, DloptError

_POLL, _GRACE = 0.1, 5.0


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
    *arguments: str,
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
        *arguments: of the script.
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
    if workers < 1 or restarts < 0:
        raise ConfigError(
            "workers must be 1 or more and restarts 0 or more. Received: "
            f"workers={workers}, restarts={restarts}."
        )
    path = pathlib.Path(script)
    if not path.is_file():
        raise ConfigError(f"There is no script {str(path)!r}. Pass a Python file.")
    folder = pathlib.Path(logs or tempfile.mkdtemp(prefix="keras-dlopt-run-"))
    folder.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + seconds
    command = [sys.executable, str(path), *arguments]
    for left in range(restarts, -1, -1):
        results = _once(command, workers, end, folder, environment or {})
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
    started, files = [], []
    try:
        for index in range(workers):
            log = folder / f"worker-{index}.log"
            files.append(log.open("ab"))
            config = {
                "cluster": {"worker": addresses},
                "task": {"type": "worker", "index": index},
            }
            own = {"TF_CONFIG": json.dumps(config)} if workers > 1 else {}
            started.append(
                subprocess.Popen(
                    command,
                    stdout=files[-1],
                    stderr=subprocess.STDOUT,
                    env={**os.environ, **environment, **own},
                    start_new_session=True,
                )
            )
        _wait(started, end)
    finally:
        end_processes(started)
        for file in files:
            file.close()
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


def end_processes(started: Sequence[Any]) -> None:
    """Ends processes that lead a session of their own, with all they started."""
    running = [p for p in started if p.poll() is None]
    for signal_number in (signal.SIGTERM, signal.SIGKILL):
        for process in running:
            try:
                os.killpg(process.pid, signal_number)
            except ProcessLookupError:
                continue
        limit = time.monotonic() + _GRACE
        while any(p.poll() is None for p in running) and time.monotonic() < limit:
            time.sleep(_POLL)
        running = [p for p in running if p.poll() is None]
    for process in running:
        process.wait(_GRACE)


def free_ports(count: int) -> list[int]:
    """So many TCP ports of the loopback interface that nobody listens on."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


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
