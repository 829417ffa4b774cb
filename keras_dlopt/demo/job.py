"""The demo's order of work. It keeps nothing unless it comes to its end."""

import contextlib
import gzip
import json
import os
import pathlib
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator

import keras
import numpy as np

import keras_dlopt
from keras_dlopt import data
from keras_dlopt.demo import fresh
from keras_dlopt.demo.progress import Progress, Silent
from keras_dlopt.demo.result import Result
from keras_dlopt.demo.settings import Settings, check, plan
from keras_dlopt.demo.training import Trainer
from keras_dlopt.errors import ConfigError, FormatError
from keras_dlopt.export import litert, run_litert
from keras_dlopt.report.comparison import Variant, ledger
from keras_dlopt.report.html import write_html
from keras_dlopt.report.quality import changes, quality
from keras_dlopt.report.weights import histograms, sparsity
from keras_dlopt.storage import load_compressed, save_compressed
from keras_dlopt.transforms import finalize

PARENT, COMPRESSED, INT8 = "model.keras", "model.dlopt", "model.tflite"
FILES = (PARENT, COMPRESSED, INT8, "result.json", "report.html")
BATCH = 256  # examples predicted at a time, here and in the fresh process


def run(settings: Settings, *, progress: Progress | None = None) -> Result:
    """Trains, compresses, saves, reloads, exports and reports.

    The results appear in `settings.out` together, at the end. Keras' global random
    seed is set.

    Args:
        settings: data set, number of epochs, folder, seed.
        progress: is told how far the work is.

    Raises:
        ConfigError: for settings that cannot work, found before anything is trained.
        DataError: if the data set is not found, or holds no images.
        MissingDependencyError: without the package `ai-edge-litert`.
        FormatError: if the model read back does not predict the same.
    """
    progress = progress or Silent()
    start = time.perf_counter()
    check(settings)
    progress.stage("loading the data", 0)
    dataset = data.load(settings.data)
    numbers = plan(settings, dataset)
    keras.utils.set_random_seed(settings.seed)
    trainer = Trainer(dataset, numbers, settings.seed, progress)
    with workspace(settings.out) as folder:
        x, y = dataset.test
        steps = numbers.steps
        progress.stage("training in float", numbers.epochs * steps)
        parent, trace = trainer.train_float()
        parent.save(folder / PARENT)
        parent_outputs = _predict(parent, x)

        progress.stage("pruning, clustering, tuning", numbers.epochs * steps)
        transformed, compress_trace = trainer.compress(parent)
        progress.stage("saving, reading in a fresh process", 0)
        small = finalize(transformed)
        account = save_compressed(small, folder / COMPRESSED)
        outputs = fresh.predict_elsewhere(folder / COMPRESSED, x, BATCH)
        _check_equal(_predict(small, x), outputs)

        progress.stage("training for int8", numbers.int8_epochs * steps)
        int8, int8_trace = trainer.quantize(parent)
        progress.stage("exporting int8 LiteRT", 0)
        export = litert(int8, folder / INT8, data=x)
        int8_outputs = run_litert(folder / INT8, x)

        progress.stage("writing the report", 0)
        reread = load_compressed(folder / COMPRESSED)
        int8_plain = finalize(int8)
        result = Result(
            settings=settings,
            plan=numbers,
            data=_in_words(dataset),
            versions=_versions(),
            seconds=time.perf_counter() - start,
            parent=Variant(
                "float", quality(parent_outputs, y), sparsity(parent), ledger(parent)
            ),
            compressed=Variant(
                "compressed", quality(outputs, y), sparsity(reread), account
            ),
            int8=Variant(
                "int8",
                quality(int8_outputs, y),
                sparsity(int8_plain),
                ledger(int8_plain),
            ),
            compressed_changes=changes(parent_outputs, outputs, y),
            int8_changes=changes(parent_outputs, int8_outputs, y),
            fresh_equal=True,
            export=export,
            int8_gzip_bytes=len(gzip.compress((folder / INT8).read_bytes(), 9)),
            histograms=histograms(parent, reread),
            traces=(trace, compress_trace, int8_trace),
        )
        write_html(result.document(), folder / "report.html")
        text = json.dumps(result.to_dict(), indent=1, allow_nan=False)
        (folder / "result.json").write_text(text)
    return result


@contextlib.contextmanager
def workspace(out: str | os.PathLike) -> Iterator[pathlib.Path]:
    """A temporary folder beside `out`; its files move there if all goes well.

    Files of the same names are replaced one by one, each whole. If anything fails, or
    the user interrupts, the temporary folder goes and `out` is as it was.

    Raises:
        ConfigError: if the folder cannot be made.
    """
    out = pathlib.Path(os.path.abspath(out))
    made = _missing_parents(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}.")
    except OSError as error:
        raise ConfigError(
            f"The folder {str(out)!r} cannot be made ({error.strerror}). Choose "
            "another."
        ) from error
    try:
        yield pathlib.Path(folder)
        out.mkdir(exist_ok=True)
        for file in sorted(pathlib.Path(folder).iterdir()):
            os.replace(file, out / file.name)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        for parent in made:
            with contextlib.suppress(OSError):  # somebody put something there
                parent.rmdir()
        raise
    shutil.rmtree(folder, ignore_errors=True)


def _missing_parents(path: pathlib.Path) -> list[pathlib.Path]:
    """The folders that have to be made for `path` to exist, deepest first."""
    return [folder for folder in (path, *path.parents) if not folder.exists()]


def _predict(model: keras.Model, x: np.ndarray) -> np.ndarray:
    return np.asarray(model.predict(x, batch_size=BATCH, verbose=0))


def _check_equal(here: np.ndarray, there: np.ndarray) -> None:
    if np.array_equal(here, there):
        return
    different = int((here != there).any(-1).sum())
    raise FormatError(
        f"The compressed file, read in a fresh process, gives other outputs for "
        f"{different} of {len(here)} test examples; the largest difference is "
        f"{np.abs(here - there).max():.3g}. Please report this."
    )


def _in_words(dataset: data.Dataset) -> str:
    shape = " x ".join(str(n) for n in dataset.input_shape)
    return (
        f"{len(dataset.x_train):,} training images of {shape}, "
        f"{dataset.classes} classes"
    )


def _versions() -> dict[str, str]:
    import ai_edge_litert
    import tensorflow

    modules = (keras, tensorflow, np, ai_edge_litert)
    own = {"python": platform.python_version(), "keras_dlopt": keras_dlopt.__version__}
    return own | {m.__name__: m.__version__ for m in modules}
