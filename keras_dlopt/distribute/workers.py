"""Several local processes that train together, for trials and tests."""

import contextlib
import dataclasses
import json
import os
import pathlib
import random
import socket
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

from keras_dlopt import checks, processes
from keras_dlopt.errors import ConfigError, RunError

# Below the ports that Linux gives to outgoing connections, which could take one before
# the worker that it was chosen for listens.
_PORTS = range(10_000, 32_000)
# So that a worker writes down where it is when it is ended.
_TELLS = {"PYTHONFAULTHANDLER": "1"}
_WAITING = f"{os.sep}tensorflow{os.sep}"


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
    checks.count(workers, name="workers")
    checks.whole(restarts, name="restarts", least=0)
    path = pathlib.Path(script)
    if not path.is_file():
        raise ConfigError(f"There is no script {str(path)!r}. Pass a Python file.")
    folder = pathlib.Path(logs or tempfile.mkdtemp(prefix="keras-dlopt-run-"))
    folder.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + seconds
    variables = {name: str(value) for name, value in (environment or {}).items()}
    for left in range(restarts, -1, -1):
        try:
            return _once([path, *arguments], workers, seconds, end, folder, variables)
        except RunError:
            if left == 0 or time.monotonic() >= end:
                raise
    raise AssertionError("unreachable")


def _once(
    command: Sequence[Any],
    workers: int,
    seconds: float,
    end: float,
    folder: pathlib.Path,
    environment: Mapping[str, str],
) -> list[WorkerResult]:
    addresses = [f"127.0.0.1:{port}" for port in free_ports(workers)]
    with processes.children() as started:
        for index in range(workers):
            config = {
                "cluster": {"worker": addresses},
                "task": {"type": "worker", "index": index},
            }
            own = {"TF_CONFIG": json.dumps(config)} if workers > 1 else {}
            started.append(
                processes.Child(
                    *command,
                    log=folder / f"worker-{index}.log",
                    environment={**_TELLS, **os.environ, **environment, **own},
                )
            )
        worst = processes.wait(started, until=end)
        if worst is not None and worst.code is None:
            raise RunError(_late(started, seconds))
        if worst is not None:
            raise RunError(
                f"Worker {started.index(worst)} of {workers} {worst.problem(seconds)}. "
                f"Its log is {worst.log}; the last lines:\n{worst.tail(20)}"
            )
        return [WorkerResult(i, c.code or 0, c.log) for i, c in enumerate(started)]


def _late(started: Sequence[processes.Child], seconds: float) -> str:
    """What to say when time is up: the workers that hang, not those that wait for them.

    Each is asked where it is. One that waits for another is inside TensorFlow.
    """
    written = {child: child.tail(20) for child in started}
    stands = {
        number: child.where()
        for number, child in enumerate(started)
        if child.code is None
    }
    busy = [n for n, place in stands.items() if place and _WAITING not in place]
    late = busy if busy and len(busy) < len(stands) else list(stands)
    first = started[late[0]]
    numbers = " and ".join(map(str, late))
    told = "".join(
        f"\nWorker {n} {'is' if n in late else 'waits'} at: {place or 'not known'}"
        for n, place in stands.items()
    )
    return (
        f"Worker {numbers} of {len(started)} timed out after {seconds:g} s and was "
        f"ended. Allow more seconds if it was only slow.{told}\nThe log of worker "
        f"{late[0]} is {first.log}; the last lines:\n{written[first]}"
    )


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
