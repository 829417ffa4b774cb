"""One call that trains a model under a recipe and writes its file."""

import dataclasses
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import keras

from keras_dlopt import checks
from keras_dlopt.auto.fitting import check_fits
from keras_dlopt.auto.named_recipes import recipe as named
from keras_dlopt.auto.training import job_for
from keras_dlopt.auto.wanted import check_model
from keras_dlopt.callbacks import LearningRateFinder, RangeTest
from keras_dlopt.distill import DistilledModel
from keras_dlopt.errors import ConfigError
from keras_dlopt.export import litert
from keras_dlopt.files import write_atomic
from keras_dlopt.graph.copying import copy_model
from keras_dlopt.int8 import split_activations
from keras_dlopt.optimizers import AdamW
from keras_dlopt.report import Progress, plain, sparsity
from keras_dlopt.storage import save_compressed
from keras_dlopt.transforms import Recipe, TransformedModel, finalize, transform
from keras_dlopt.transforms.host import hosts

SUFFIXES = (".keras", ".dlopt", ".tflite")


@dataclasses.dataclass(frozen=True, eq=False)
class Trained:
    """A model that was trained, and its file.

    Attributes:
        model: as trained: ordinary, or transformed where activations are quantized.
        path: of the file; None if none was asked for.
        bytes: of the file; None as above.
        recipe: it was trained under; None for none.
        sparsity: share of zeros among weights of two or more dimensions.
        accuracy: before and after, on the validation examples; None where the model
            does not classify.
        loss: before and after, on the validation examples.
        epochs: of the training.
        steps: of the training.
        seconds: that all of it took.
    """

    model: keras.Model
    path: str | None
    bytes: int | None
    recipe: Recipe | None
    sparsity: float
    accuracy: tuple[float, float] | None
    loss: tuple[float, float]
    epochs: int
    steps: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        data = {k: v for k, v in vars(self).items() if k != "model"}
        data["recipe"] = None if self.recipe is None else self.recipe.to_dict()
        found: dict[str, Any] = plain(data)
        return found

    def __str__(self) -> str:
        names = ("accuracy", "{:.2%}") if self.accuracy else ("loss", "{:.4g}")
        before, after = map(names[1].format, self.accuracy or self.loss)
        text = f"validation {names[0]} {before} became {after}"
        if self.sparsity:
            text += f"; {self.sparsity:.1%} zeros"
        if self.path is not None:
            text += f"\n{self.path}: {self.bytes:,} bytes"
        return text


def train(
    model: keras.Model,
    train: Any,
    val: Any = None,
    *,
    recipe: Recipe | str | os.PathLike[str] | None = None,
    path: str | os.PathLike[str] | None = None,
    epochs: int | None = None,
    rate: float = 1e-3,
    loss: Any = None,
    batch_size: int = 64,
    teacher: bool | None = None,
    target: str = "xnnpack",
    seed: int = 0,
    progress: Progress | None = None,
) -> Trained:
    """Trains a copy of a model, under a recipe or plain, and writes its file.

    The optimizer is AdamW, its rate falls to 0 by a cosine. Under a recipe the given
    model teaches, as in `compress`; without one nobody does.

    Args:
        model: a built Keras model, which stays as it is.
        train: `(x, y)`, a `data.Dataset`, or batches whose number is known.
        val: examples to judge on; None holds out a tenth of arrays, drawn by seed, or
            takes those of a `data.Dataset`.
        recipe: a `Recipe`, a name or a file; see `auto.recipe`. None trains the model
            as it is.
        path: of the file: `.keras`, `.dlopt`, or `.tflite`, which is int8 if the recipe
            is. Where activations are quantized, a `.keras` file holds the model under
            its recipe. None writes none.
        epochs: None for 10, and more where they are under 1,500 steps.
        rate: learning rate at the start.
        loss: None takes the compiled one, or the one that labels of classes mean.
        batch_size: for arrays.
        teacher: whether the given model teaches; None for all that classify, under a
            recipe.
        target: what runs a `.tflite` file; see `export.litert`.
        seed: of shuffling; Keras' global seed is set to it.
        progress: is told how far the work is.

    Raises:
        ConfigError: for a path or recipe that is not known.
        DataError: for data that does not fit.
        ExportError: if a `.tflite` file is not what was trained.
        ModelError: for a model that is not built, is transformed, or cannot be copied.

    Example:
        >>> digits = dlopt.data.load("digits")
        >>> net = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(),
        ...     keras.layers.Dense(10)])
        >>> made = dlopt.auto.train(net, digits, recipe="pruned-80", epochs=2)
        >>> round(made.sparsity, 2)
        0.8
    """
    start = time.perf_counter()
    check_model(model)
    file = _checked(path)
    check_fits(model, train, val)
    job = job_for(
        model,
        train,
        val,
        loss=loss,
        batch_size=batch_size,
        epochs=epochs,
        rate=rate,
        teacher=False if recipe is None else teacher,
        seed=seed,
        progress=progress,
    )
    before = job.judged(model)
    if recipe is None:
        made: Any = copy_model(model)
        job.fit(made, "training")
    else:
        recipe, made = _prepared(model, recipe, job.total)
        made = job.fit(made, "training under the recipe")
        if all(one.kind == "weight" for _, one in recipe.entries):
            made = finalize(made)
        elif isinstance(made, DistilledModel):
            made = _student(made)
    after = job.judged(made)
    size = None if file is None else _written(made, file, target)
    accuracy = None
    if before[0] is not None and after[0] is not None:
        accuracy = (before[0], after[0])
    return Trained(
        model=made,
        path=None if file is None else str(file),
        bytes=size,
        recipe=recipe,
        sparsity=sparsity(finalize(made) if hosts(made) else made),
        accuracy=accuracy,
        loss=(before[1], after[1]),
        epochs=job.epochs,
        steps=job.total,
        seconds=time.perf_counter() - start,
    )


def find_rate(
    model: keras.Model,
    train: Any,
    *,
    low: float = 1e-6,
    high: float = 1.0,
    steps: int = 100,
    loss: Any = None,
    batch_size: int = 64,
    seed: int = 0,
) -> RangeTest:
    """The learning-rate range test for `train`, on a copy of the model.

    Args:
        model: a built Keras model, which stays as it is.
        train: as in `train`.
        low: first rate.
        high: last rate.
        steps: steps of the test, at least 10.
        loss: None takes the compiled one, or the one that labels of classes mean.
        batch_size: for arrays.
        seed: of shuffling; Keras' global seed is set to it.

    Raises:
        ConfigError: for rates or steps out of range.
        DataError: for data that does not fit.
        ModelError: for a model that is not built, is transformed, or cannot be copied.

    Example:
        >>> digits = dlopt.data.load("digits")
        >>> net = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(),
        ...     keras.layers.Dense(10)])
        >>> 1e-6 < dlopt.auto.find_rate(net, digits).suggestion < 1
        True
    """
    check_model(model)
    check_fits(model, train)
    test = LearningRateFinder(low=low, high=high, steps=steps)
    job = job_for(
        model,
        train,
        None if hasattr(train, "val") or isinstance(train, tuple | list) else train,
        loss=loss,
        batch_size=batch_size,
        epochs=1,
        teacher=False,
        seed=seed,
    )
    keras.utils.set_random_seed(job.seed)
    copy = copy_model(model)
    copy.compile(AdamW(low), job.loss)
    if isinstance(job.train, tuple | list):
        return test.find(copy, *job.train, batch_size=job.batch_size)
    return test.find(copy, job.train, shuffle=False)


def _prepared(model: keras.Model, given: Any, steps: int) -> tuple[Recipe, Any]:
    """The recipe, and a copy of the model under it."""
    if isinstance(given, Recipe):
        return given, transform(model, given)
    if os.fspath(given).endswith("int8"):
        # A quantizer goes before an activation that int8 computes by itself.
        model = split_activations(model)
    recipe = named(given, model, steps=steps)
    return recipe, transform(model, recipe)


def _student(taught: DistilledModel) -> TransformedModel:
    """A model under its recipe, without its teachers."""
    states = taught.states
    taught.release()
    corrections = taught.corrections
    made = TransformedModel(taught.model, taught.recipe, corrections=corrections)
    for old, new in zip(states, made.states, strict=True):
        new.assign(old)
    return made


def _checked(path: str | os.PathLike[str] | None) -> Path | None:
    """The path, if a file of that kind can be written there."""
    if path is None:
        return None
    file = Path(path)
    checks.choice(
        file.suffix, name="the end of path", choices=SUFFIXES, hint=f"Given: {path!r}."
    )
    if not file.absolute().parent.is_dir():
        raise ConfigError(
            f"There is no folder {str(file.absolute().parent)!r} for the file. Make it "
            "first."
        )
    return file


def _written(model: keras.Model, path: Path, target: str) -> int:
    """The size of the file that is written, whole or not at all."""
    if path.suffix == ".tflite":
        return int(litert(model, path, target=target).size)
    if path.suffix == ".dlopt":
        return int(save_compressed(model, path).file_bytes)
    return save_keras(model, path)


def save_keras(model: keras.Model, path: str | os.PathLike[str]) -> int:
    """Writes a `.keras` file that appears whole or not at all; returns its size.

    Raises:
        ConfigError: if it cannot be written.
    """
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "model.keras"
        model.save(made)
        data = made.read_bytes()
    write_atomic(Path(path), data)
    return len(data)
