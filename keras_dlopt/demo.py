"""The main job, end to end: train, compress, save, reload, export, report."""

import dataclasses
import functools
import json
import pathlib
import time

import keras

import keras_dlopt as dlopt
from keras_dlopt import checks, files, moved, report
from keras_dlopt.errors import ConfigError, DataError, require

PARENT, COMPRESSED, INT8 = "model.keras", "model.dlopt", "model.tflite"
FILES = (PARENT, COMPRESSED, INT8, "result.json", "report.html")
SMALL = 10_000  # training examples; above, fewer epochs are enough
BATCH = 256  # examples predicted at a time, here and in the fresh process
# Peak rates of Adam under cosine decay. A rule that follows the loss would fall while
# pruning raises it, so only the float training is driven by the loss.
COMPRESS_RATE, INT8_RATE = 3e-3, 1e-3
CURVES = (
    "The float training's rate follows its own loss: it climbs until the loss rises, "
    "then holds, then anneals. The compressed and the int8 model both start from the "
    "float one, with cosine decay."
)

__getattr__ = moved.names(__name__)


@dataclasses.dataclass(frozen=True)
class Settings:
    """Arguments of the demo.

    Attributes:
        data: name or path of a data set, as for `data.load`.
        epochs: of float training; compressing takes as many again and int8 a third.
            None chooses by the size of the data set.
        out: folder for the results; made if absent.
        quick: a smaller network and fewer epochs, to see that everything works.
        seed: of weights and shuffling.
    """

    data: str = "digits"
    epochs: int | None = None
    out: pathlib.Path = pathlib.Path("dlopt-demo")
    quick: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        checks.optional(checks.count, self.epochs, name="epochs")
        if not 0 <= self.seed < 2**32:
            wanted = "between 0 and 2**32 - 1"
            raise checks.refused(self.seed, name="seed", wanted=wanted)


@dataclasses.dataclass(frozen=True)
class DemoPlan:
    """The demo in numbers, for one data set.

    Attributes:
        width: filters of the network's first stage.
        batch_size: examples a step.
        steps: steps an epoch; a last incomplete batch is left out.
        epochs: of float training and of compressing.
        int8_epochs: of quantization-aware training.
        sparsity: final share of zeros in each kernel.
        clusters: shared values in each kernel, zero not counted.
    """

    width: int
    batch_size: int
    steps: int
    epochs: int
    int8_epochs: int
    sparsity: float = 0.8
    clusters: int = 16

    @property
    def prune_end(self) -> int:
        """Step at which the final sparsity is reached: half of the compressing."""
        return self.epochs * self.steps // 2

    @property
    def cluster_begin(self) -> int:
        """Step at which kernels are clustered: 70 % of the compressing."""
        return self.epochs * self.steps * 7 // 10


@dataclasses.dataclass(frozen=True)
class Result(report.Delivery):
    """What was asked, what that meant, and everything that was measured."""

    settings: Settings
    plan: DemoPlan
    data: str
    versions: dict[str, str]
    seconds: float

    def table(self, note: str = "") -> report.Table:
        """Accuracy, churn, bytes and ratio of the three."""
        settings = self.settings
        return super().table(f" of {settings.data}, one run with seed {settings.seed}")

    def page(self) -> report.Document:
        """The report."""
        plan, seed = self.plan, self.settings.seed
        marks = {"masks fixed": plan.prune_end, "clustered": plan.cluster_begin}
        versions = ", ".join(f"{k} {v}" for k, v in self.versions.items())
        return self.document(
            "keras_dlopt demo",
            f"A residual network was trained on {self.settings.data} ({self.data}), "
            f"then pruned to {plan.sparsity:.0%} zeros, clustered to {plan.clusters} "
            "values a layer and tuned under one recipe",
            phases={"compressing": {"pruning": 0, **marks}},
            curves=CURVES,
            footer=f"Seed {seed}, {self.seconds:.0f} s. {versions}.",
        )


def run(settings: Settings, *, progress: report.Progress | None = None) -> Result:
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
    progress, start = progress or report.Silent(), time.perf_counter()
    check(settings)
    progress.stage("loading the data", 0)
    dataset = dlopt.data.load(settings.data)
    numbers = plan(settings, dataset)
    fit = functools.partial(_fit, dataset, numbers, settings.seed, progress)
    x, y = dataset.test
    keras.utils.set_random_seed(settings.seed)
    with files.workspace(settings.out) as folder:
        # A float model, its learning rate driven by the loss.
        parent = dlopt.models.resnet(
            depth=8,
            width=numbers.width,
            input_shape=dataset.input_shape,
            classes=dataset.classes,
        )
        progress.stage("training in float", numbers.epochs * numbers.steps)
        follow = dlopt.callbacks.LossDrivenLearningRate()
        first = fit("float training", parent, numbers.epochs, 1e-3, follow)
        parent.save(folder / PARENT)
        before = parent.predict(x, batch_size=BATCH, verbose=0)

        # Pruned, then clustered, then tuned, by one recipe in one `fit`.
        transformed = dlopt.transform(parent, recipe(numbers))
        progress.stage("pruning, clustering, tuning", numbers.epochs * numbers.steps)
        second = fit("compressing", transformed, numbers.epochs, COMPRESS_RATE)
        progress.stage("saving, reading in a fresh process", 0)
        small = dlopt.finalize(transformed)
        ledger = dlopt.save_compressed(small, folder / COMPRESSED)
        after = report.predict_elsewhere(folder / COMPRESSED, x, batch_size=BATCH)
        report.check_equal(small.predict(x, batch_size=BATCH, verbose=0), after)

        # Trained on with int8 weights and activations.
        int8 = dlopt.transform(parent, dlopt.int8_recipe(parent))
        progress.stage("training for int8", numbers.int8_epochs * numbers.steps)
        third = fit("int8", int8, numbers.int8_epochs, INT8_RATE)
        progress.stage("exporting int8 LiteRT", 0)
        export = dlopt.export.litert(int8, folder / INT8, data=x)
        outputs = dlopt.export.run_litert(folder / INT8, x)

        progress.stage("writing the report", 0)
        reread = dlopt.load_compressed(folder / COMPRESSED)
        result = Result(
            parent=report.variant("float", before, y, parent),
            compressed=report.variant("compressed", after, y, reread, ledger=ledger),
            int8=report.variant("int8", outputs, y, int8, file=folder / INT8),
            compressed_changes=report.changes(before, after, y),
            int8_changes=report.changes(before, outputs, y),
            fresh_equal=True,
            export=export,
            histograms=report.histograms(parent, reread),
            traces=(first, second, third),
            settings=settings,
            plan=numbers,
            data=_in_words(dataset),
            versions=report.versions(),
            seconds=time.perf_counter() - start,
        )
        report.write_html(result.page(), folder / "report.html")
        text = json.dumps(result.to_dict(), indent=1, allow_nan=False)
        (folder / "result.json").write_text(text)
    return result


def recipe(plan: DemoPlan) -> dlopt.Recipe:
    """The demo's one recipe: every kernel is pruned on a schedule, then clustered."""
    sparsity = dlopt.schedules.PolynomialSparsity(
        plan.sparsity, end=plan.prune_end, frequency=max(1, plan.steps // 2)
    )
    clusters = dlopt.Cluster(plan.clusters, begin=plan.cluster_begin)
    return dlopt.Recipe([(dlopt.named("kernel"), dlopt.Prune(sparsity) >> clusters)])


def _fit(
    dataset: dlopt.data.Dataset,
    plan: DemoPlan,
    seed: int,
    progress: report.Progress,
    name: str,
    model: keras.Model,
    epochs: int,
    rate: float,
    *callbacks: keras.callbacks.Callback,
) -> report.Recording:
    """Trains; without a callback that drives the rate, under cosine decay."""
    cosine = keras.optimizers.schedules.CosineDecay(rate, epochs * plan.steps, 0.01)
    model.compile(
        optimizer=keras.optimizers.Adam(rate if callbacks else cosine),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    recorder = report.Recorder(progress)
    data = dlopt.data.batches(
        *dataset.train,
        batch_size=plan.batch_size,
        shuffle=True,
        drop_remainder=True,
        seed=seed,
    )
    rules = [*callbacks, recorder]
    # The batches are shuffled already.
    model.fit(data, epochs=epochs, shuffle=False, verbose=0, callbacks=rules)
    return recorder.recording(name)


def plan(settings: Settings, dataset: dlopt.data.Dataset) -> DemoPlan:
    """The demo in numbers.

    Raises:
        DataError: for a data set that the demo's network cannot take.
    """
    if len(dataset.input_shape) != 3 or not dataset.classes:
        raise DataError(
            "The demo trains a convolutional network and needs images of shape "
            f"(height, width, channels) with classes. {dataset.name} has examples of "
            f"shape {dataset.input_shape} and {dataset.classes} classes."
        )
    if not len(dataset.x_test):
        raise DataError(f"{dataset.name} has no test examples to report on.")
    examples = len(dataset.x_train)
    small = examples <= SMALL
    epochs = settings.epochs
    if epochs is None:
        epochs = (8 if small else 1) if settings.quick else (30 if small else 4)
    batch_size = min(32 if small else 128, examples)
    return DemoPlan(
        width=8 if settings.quick else 16,
        batch_size=batch_size,
        steps=examples // batch_size,
        epochs=epochs,
        int8_epochs=max(1, epochs // 3),
    )


def check(settings: Settings) -> None:
    """Finds out before the training what would fail after it.

    Raises:
        ConfigError: for another backend than TensorFlow, or a folder that cannot be
            written.
        MissingDependencyError: without the package `ai-edge-litert`.
    """
    if keras.backend.backend() != "tensorflow":
        raise ConfigError(
            "The demo writes a LiteRT file, which needs Keras' TensorFlow backend. "
            f"Received: {keras.backend.backend()!r}. Set the environment variable "
            "KERAS_BACKEND=tensorflow."
        )
    require("ai-edge-litert", extra="litert", purpose="The demo's int8 part")
    files.check_folder(settings.out, name="--out")


def _in_words(dataset: dlopt.data.Dataset) -> str:
    shape = " x ".join(str(n) for n in dataset.input_shape)
    return (
        f"{len(dataset.x_train):,} training images of {shape}, "
        f"{dataset.classes} classes"
    )
