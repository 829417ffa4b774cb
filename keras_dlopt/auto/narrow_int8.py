"""An int8 file of fewer channels, as few as hold the accuracy."""

from pathlib import Path

from keras_dlopt.auto.candidates import Candidate, MadeSmall, Maker
from keras_dlopt.auto.compressed import Trial
from keras_dlopt.auto.training import Job
from keras_dlopt.auto.wanted import Goals, figures
from keras_dlopt.errors import ConfigError, ModelError
from keras_dlopt.files import write_atomic

_LEAST = 1 / 32  # of the parameters, below which no network is tried


def narrowed(
    job: Job, path: str, asked: Goals, trials: list[Trial], *, target: str
) -> tuple[MadeSmall | None, list[Trial], list[str]]:
    """The smallest int8 file that holds the goals, if one with fewer channels does.

    The share of the parameters is halved until the accuracy does not hold, then taken
    once between. A network is trained only where it does not hold at once.

    Args:
        job: how models are trained and judged.
        path: of the file, which is replaced.
        asked: what is to be held.
        trials: what was tried with all channels; the first holds.
        target: what runs the file.

    Returns:
        What was made, None if nothing holds; all trials, the chosen one first; and why.
    """
    before, _ = job.judged(job.model)
    maker, reasons = Maker(job, target=target), []

    def holds(trial: Trial) -> bool:
        return not asked.excess(trial, before)

    best: MadeSmall | None = None
    share, failed = 0.5, False
    while share >= _LEAST:
        candidate = Candidate(channels=share, way="int8", teacher=job.teacher)
        try:
            made = maker.made(candidate, job.epochs, holds)
        except (ConfigError, ModelError) as error:
            reasons.append(f"{candidate}: {error}")
            break
        trials = [*trials, made.trial]
        reasons.append(f"{made.trial.method}: {figures(made.trial)}")
        if holds(made.trial):
            best = made
        if failed:
            break
        failed = not holds(made.trial)
        share *= 2**0.5 if failed else 0.5
    if best is not None:
        write_atomic(Path(path), best.file)
        trials = [best.trial, *(one for one in trials if one is not best.trial)]
    return best, trials, reasons
