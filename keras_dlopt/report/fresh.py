"""Whether a compressed file gives the same predictions in a process of its own."""

import os
import pathlib
import sys
import tempfile
import time

import numpy as np

from keras_dlopt import processes
from keras_dlopt.errors import FormatError


def predict_elsewhere(
    path: str | os.PathLike[str],
    x: np.ndarray,
    *,
    batch_size: int = 256,
    seconds: float = 3600.0,
) -> np.ndarray:
    """Predictions of the model in `path`, made by a new Python process.

    Raises:
        FormatError: if that process fails; with the end of its own message.
    """
    with tempfile.TemporaryDirectory() as folder:
        given, made = (os.path.join(folder, n) for n in ("x.npy", "y.npy"))
        np.save(given, x)
        with processes.children() as started:
            # -P: the installed package, not a folder of that name where we are.
            command = ("-P", "-m", __name__, os.path.abspath(path), given, made)
            log = pathlib.Path(folder, "log.txt")
            started.append(processes.Child(*command, batch_size, log=log))
            worst = processes.wait(started, until=time.monotonic() + seconds)
            if worst is not None:
                raise FormatError(
                    f"A fresh process could not load {str(path)!r}: it "
                    f"{worst.problem(seconds)}\n{worst.text()[-2000:]}"
                )
        return np.asarray(np.load(made, allow_pickle=False))


def check_equal(here: np.ndarray, there: np.ndarray) -> None:
    """Compares predictions of this process with those of a fresh one, bit for bit.

    Raises:
        FormatError: if any differs.
    """
    if np.array_equal(here, there):
        return
    different = int((here != there).any(-1).sum())
    raise FormatError(
        f"The compressed file, read in a fresh process, gives other outputs for "
        f"{different} of {len(here)} test examples; the largest difference is "
        f"{np.abs(here - there).max():.3g}. Please report this."
    )


def main(path: str, given: str, made: str, batch_size: str) -> None:
    """Loads the model in `path`, predicts the array in `given`, writes `made`."""
    from keras_dlopt.storage import load_compressed

    x = np.load(given, allow_pickle=False)
    model = load_compressed(path)
    np.save(made, model.predict(x, batch_size=int(batch_size), verbose=0))


if __name__ == "__main__":
    main(*sys.argv[1:])
