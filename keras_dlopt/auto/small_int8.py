"""An int8 file that holds the accuracy: after training, and trained on if need be."""

import os
import tempfile
import time
from pathlib import Path
from typing import Any

from keras_dlopt.auto.compressed import Trial
from keras_dlopt.auto.int8 import to_int8
from keras_dlopt.auto.training import Job, drawn_inputs
from keras_dlopt.auto.wanted import Goals
from keras_dlopt.errors import ConfigError
from keras_dlopt.export import Predictor, litert
from keras_dlopt.files import write_atomic
from keras_dlopt.transforms import Recipe, TransformedModel

_EXAMPLES = 512  # to calibrate on
SLOWER = 0.1  # of the rate: ranges and codes are nearly right already
TRAININGS = {"int8 with training": SLOWER, "int8 with training at the full rate": 1.0}


class LiteRTFile:
    """A file that predicts as a model does."""

    def __init__(self, path: str):
        self.predict_on_batch = Predictor(path)

    def predict(self, x: Any, **options: Any) -> Any:
        return self.predict_on_batch(x)


def small_int8(
    job: Job, path: str, asked: Goals, *, target: str
) -> tuple[TransformedModel, Recipe, list[Trial], list[str]]:
    """The quantized model whose file is at `path`, its recipe, what was tried, and why.

    Raises:
        ConfigError: for a file above the goal, or a drop that could not be held.
    """
    with tempfile.TemporaryDirectory() as folder:
        made = os.path.join(folder, "model.tflite")
        small, trials, reasons = _made(job, made, asked.drop, asked.bytes, target)
        write_atomic(Path(path), Path(made).read_bytes())
    return small, small.recipe, trials, reasons


def _made(
    job: Job, path: str, drop: float | None, goal: int | None, target: str
) -> tuple[TransformedModel, list[Trial], list[str]]:
    before, _ = job.judged(job.model)
    begin = time.perf_counter()
    made = to_int8(job.model, path, inputs_of(job.train), target=target)
    trials = [_judged(job, path, "int8 after training", made.export.size, goal, begin)]
    small = made.model
    if drop is None or before is None or _holds(trials[-1], before, drop):
        return small, trials, [_told(trials[-1])]
    for method, rate in TRAININGS.items():
        begin = time.perf_counter()
        if len(trials) > 1:
            small = to_int8(job.model, path, inputs_of(job.train), target=target).model
        small = job.fit(small, method, rate=rate * job.rate)
        report = litert(small, path, target=target)
        trials.append(_judged(job, path, method, report.size, goal, begin))
        if _holds(trials[-1], before, drop):
            # The chosen one first.
            return small, trials[::-1], [_told(one) for one in trials]
    raise ConfigError(
        f"In float {before:.2%} of the validation examples come out right; "
        f"{', '.join(map(_told, trials))}: more than the drop of {drop:.2%} was lost. "
        "Allow more, train longer with epochs=, or keep what hurts in float with "
        "post_training.quantize(model, x, mixed='auto')."
    )


def _holds(trial: Trial, before: float, drop: float) -> bool:
    return trial.accuracy is not None and trial.accuracy >= before - drop - 1e-9


def _told(trial: Trial) -> str:
    if trial.accuracy is None:
        return f"{trial.method}: loss {trial.loss:.4g}"
    return f"{trial.method}: {trial.accuracy:.2%}"


def _judged(
    job: Job, path: str, method: str, size: int, goal: int | None, begin: float
) -> Trial:
    if goal is not None and size > goal:
        raise ConfigError(
            f"The file of {method} has {size:,} bytes, more than the goal of {goal:,}. "
            "Remove channels first (prune_channels), or leave int8 out for a coded "
            ".dlopt file."
        )
    accuracy, loss = job.judged(LiteRTFile(path))
    seconds = time.perf_counter() - begin
    return Trial(method, goal or 0, size, accuracy, loss, seconds)


def inputs_of(train: Any) -> Any:
    """Some hundred examples without labels, as an array or as batches."""
    return drawn_inputs(train, _EXAMPLES)
