"""Where a trial runs: in a process of this machine, or on a Ray cluster."""

import inspect
import json
import os
import pathlib
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

from keras_dlopt import processes
from keras_dlopt.errors import ConfigError

# Run by path, not as a module: the package need not be imported for it.
_SCRIPT = pathlib.Path(__file__).with_name("_task_process.py")


def target_of(target: str | Callable[..., Any]) -> str:
    """Where a fresh process finds a function: `"module:name"` or `"file.py:name"`.

    Raises:
        ConfigError: for a function that only this process has.

    Example:
        >>> target_of("experiments.py:train")
        Traceback (most recent call last):
        ...
        keras_dlopt.errors.ConfigError: There is no file 'experiments.py'. ...
    """
    if isinstance(target, str):
        home, _, name = target.rpartition(":")
        if not home or not name.isidentifier():
            raise ConfigError(
                "target must be 'module:function' or 'file.py:function'. Received: "
                f"{target!r}."
            )
        if home.endswith(".py"):
            if not pathlib.Path(home).is_file():
                raise ConfigError(f"There is no file {home!r}. Pass its path.")
            return f"{pathlib.Path(home).absolute()}:{name}"
        return target
    name = getattr(target, "__qualname__", "")
    if not name.isidentifier():
        raise ConfigError(
            "A trial runs in a process of its own, which must find the function by its "
            f"name in a module. Received: {target!r}. Define it at the top of a file, "
            "not inside another function."
        )
    if target.__module__ == "__main__":
        return f"{pathlib.Path(inspect.getfile(target)).absolute()}:{name}"
    return f"{target.__module__}:{name}"


class Local:
    """Starts trials as processes of this machine.

    Args:
        target: from `target_of`.
    """

    def __init__(self, target: str):
        self.target = target

    def __call__(
        self, task: Mapping[str, Any], environment: Mapping[str, str]
    ) -> "Process":
        return Process(self.target, task, environment)


class Process:
    """A trial in a process."""

    def __init__(
        self, target: str, task: Mapping[str, Any], environment: Mapping[str, str]
    ):
        self._folder = tempfile.TemporaryDirectory(prefix="keras-dlopt-task-")
        folder = pathlib.Path(self._folder.name)
        (folder / "task.json").write_text(json.dumps(task))
        self._child = processes.Child(
            _SCRIPT,
            target,
            folder,
            os.getpid(),
            log=folder / "log.txt",
            environment={
                **os.environ,
                "PYTHONPATH": processes.python_path(),
                **environment,
            },
        )

    def poll(self) -> tuple[Any, str] | None:
        """Result and error text, or None while it runs."""
        code = self._child.code
        if code is None:
            return None
        processes.end([self._child])  # what the trial left running
        try:
            if code != 0:
                return None, f"exit code {code}: {self._child.tail(15)}"
            folder = pathlib.Path(self._folder.name)
            return json.loads((folder / "result.json").read_text()), ""
        except (OSError, ValueError) as error:
            return None, f"left no result: {error}"
        finally:
            self._folder.cleanup()

    def stop(self) -> None:
        """Ends the process and all that it started."""
        processes.end([self._child])
        self._folder.cleanup()


class Ray:
    """Starts trials on the cluster that Ray knows, or on this machine alone.

    A slot may hold `"ray_cpus"` and `"ray_gpus"`, what one trial occupies (1 and 0);
    the rest of it are environment variables. The target must be importable there.

    Args:
        target: from `target_of`.
    """

    def __init__(self, target: str):
        import ray

        self.target = target
        self._ray = ray
        if not ray.is_initialized():
            ray.init(log_to_driver=False)

    def __call__(
        self, task: Mapping[str, Any], environment: Mapping[str, str]
    ) -> "RayTask":
        variables = dict(environment)
        cpus = float(variables.pop("ray_cpus", "1"))
        gpus = float(variables.pop("ray_gpus", "0"))
        remote = self._ray.remote(
            num_cpus=cpus,
            num_gpus=gpus,
            max_retries=0,
            runtime_env={"env_vars": variables},
        )
        code = _SCRIPT.read_text()  # the package need not be installed there
        return RayTask(self._ray, remote(_on_ray).remote(code, self.target, dict(task)))


class RayTask:
    """A trial on a Ray cluster."""

    def __init__(self, ray: Any, reference: Any):
        self._ray = ray
        self._reference = reference

    def poll(self) -> tuple[Any, str] | None:
        """Result and error text, or None while it runs."""
        ready, _ = self._ray.wait([self._reference], timeout=0)
        if not ready:
            return None
        try:
            return self._ray.get(self._reference), ""
        except Exception as error:
            return None, f"{type(error).__name__}: {str(error)[-1500:]}"

    def stop(self) -> None:
        """Ends it."""
        self._ray.cancel(self._reference, force=True)


def _on_ray(code: str, target: str, task: dict[str, Any]) -> Any:
    """Runs on the cluster, in a process of its own."""
    names: dict[str, Any] = {"__name__": "keras_dlopt_task"}
    exec(compile(code, "_task_process.py", "exec"), names)
    return names["call"](target, task)
