"""An int8 file of fewer channels, as few as hold the accuracy."""

import tempfile
from pathlib import Path

from keras_dlopt.auto.candidates import Candidate, MadeSmall, Maker
from keras_dlopt.auto.compressed import Trial
from keras_dlopt.auto.small_int8 import LiteRTFile
from keras_dlopt.auto.training import Job
from keras_dlopt.auto.wanted import Goals, figures
from keras_dlopt.errors import ConfigError, ModelError
from keras_dlopt.files import write_atomic

_LEAST = 1 / 32  # of the parameters, below which no network is tried
_ERRORS = 2  # standard errors by which a drop must be kept


def narrowed(
    job: Job, path: str, asked: Goals, trials: list[Trial], *, target: str
) -> tuple[MadeSmall | None, list[Trial], list[str]]:
    """The smallest int8 file that holds the goals, if one with fewer channels does.

    The share of the parameters is halved until the accuracy does not hold, then taken
    once between. To hold, a drop must be kept by two standard errors: of several
    networks the smallest that seems to hold is often one that was lucky on these
    examples.

    Args:
        job: how models are trained and judged.
        path: of the file, which is replaced.
        asked: what is to be held; it has a drop.
        trials: what was tried with all channels; the first holds.
        target: what runs the file.

    Returns:
        What was made, None if nothing holds; all trials, the chosen one first; and why.
    """
    assert asked.drop is not None
    maker, reasons = Maker(job, target=target), []
    best: MadeSmall | None = None
    share, failed = 0.5, False
    while share >= _LEAST:
        candidate = Candidate(channels=share, way="int8", teacher=job.teacher)
        try:
            made = maker.made(candidate, job.epochs, lambda _: False)
        except (ConfigError, ModelError) as error:
            reasons.append(f"{candidate}: {error}")
            break
        lost, spread = _lost(job, made.file)
        trials = [*trials, made.trial]
        reasons.append(
            f"{made.trial.method}: {figures(made.trial)}, {spread:.2%} standard error"
        )
        holds = lost + _ERRORS * spread <= asked.drop + 1e-9
        if holds:
            best = made
        if failed:
            break
        failed = not holds
        share *= 2**0.5 if failed else 0.5
    if best is not None:
        write_atomic(Path(path), best.file)
        trials = [best.trial, *(one for one in trials if one is not best.trial)]
    return best, trials, reasons


def _lost(job: Job, file: bytes) -> tuple[float, float]:
    """By how much the accuracy of a file is less, and the standard error of that."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.tflite"
        path.write_bytes(file)
        return job.lost(LiteRTFile(str(path)))
