"""Runs one trial and writes its result; started by `executors`."""

import importlib
import importlib.util
import json
import os
import pathlib
import signal
import sys
import threading
import time
from typing import Any


def call(target: str, task: Any) -> Any:
    """Calls the function that `target` names; what it returns, as JSON has it."""
    home, _, name = target.rpartition(":")
    if home.endswith(".py"):
        sys.path.insert(0, os.path.dirname(home))
        spec = importlib.util.spec_from_file_location("task_target", home)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    else:
        module = importlib.import_module(home)
    return json.loads(json.dumps(getattr(module, name)(**task), default=plain))


def plain(value: Any) -> Any:
    """A NumPy number or array, or a tensor, as numbers and lists."""
    value = value.numpy() if hasattr(value, "numpy") else value
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(
        "A trial must return a number, or a dictionary of numbers, texts and lists. "
        f"Returned: {type(value).__name__}."
    )


def end_with(parent: int) -> None:
    """Ends this process and what it started when `parent`, killed, cannot."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os.killpg(0, signal.SIGKILL)


def main(target: str, folder: str, parent: str) -> None:
    """Reads `task.json` in `folder` and writes `result.json`."""
    threading.Thread(target=end_with, args=(int(parent),), daemon=True).start()
    # This script's own folder must not hide other modules.
    own = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [p for p in sys.path if os.path.abspath(p or ".") != own]
    place = pathlib.Path(folder)
    result = call(target, json.loads((place / "task.json").read_text()))
    (place / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
