"""Functions that the tests of `run_tasks` run in other processes."""

import os
import sys
import time


def square(x, note=""):
    return float(x) ** 2


def detail(x):
    return {"value": x, "pid": os.getpid(), "slot": os.environ.get("SLOT")}


def picky(x):
    if x == 3:
        raise ValueError("three is refused")
    if x == 4:
        time.sleep(600)
    if x == 5:
        sys.exit(7)
    if x == 6:
        return "six"
    return x


def once(x, mark):
    """Fails the first time."""
    if not os.path.exists(mark):
        open(mark, "w").close()
        raise RuntimeError("not yet")
    return x


def other_kinds(kind):
    """Results that are no plain numbers."""
    import numpy as np

    made = {"value": np.float32(2.5), "curve": np.arange(2)}
    return {"array": made, "function": made.get, "text": input}[kind]


def leaves_a_child():
    import subprocess

    return subprocess.Popen(["sleep", "999"]).pid
