"""Run as a program: loads a compressed file and predicts, in a process of its own."""

import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np

from keras_dlopt.errors import FormatError


def predict_elsewhere(path: pathlib.Path, x: np.ndarray, batch_size: int) -> np.ndarray:
    """Predictions of the model in `path`, made by a new Python process.

    Raises:
        FormatError: if that process fails; with the end of its own message.
    """
    with tempfile.TemporaryDirectory() as folder:
        given, made = (os.path.join(folder, n) for n in ("x.npy", "y.npy"))
        np.save(given, x)
        # -P: the installed package, not a folder of that name where we happen to be.
        command = [sys.executable, "-P", "-m", __name__]
        done = subprocess.run(
            [*command, os.fspath(path), given, made, str(batch_size)],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        if done.returncode:
            raise FormatError(
                f"A fresh process could not load {str(path)!r}:\n{done.stderr[-2000:]}"
            )
        return np.load(made, allow_pickle=False)


def main(path: str, given: str, made: str, batch_size: str) -> None:
    """Loads the model in `path`, predicts the array in `given`, writes `made`."""
    from keras_dlopt import load_compressed

    x = np.load(given, allow_pickle=False)
    model = load_compressed(path)
    np.save(made, model.predict(x, batch_size=int(batch_size), verbose=0))


if __name__ == "__main__":
    main(*sys.argv[1:])
