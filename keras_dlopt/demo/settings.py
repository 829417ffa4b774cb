"""What the demo is asked to do, and how many steps that is."""

import dataclasses
import os
import pathlib

import keras

from keras_dlopt.data import Dataset
from keras_dlopt.errors import ConfigError, DataError, missing

SMALL = 10_000  # training examples; above, fewer epochs are enough


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

    Raises:
        ConfigError: for less than one epoch or a negative seed.
    """

    data: str = "digits"
    epochs: int | None = None
    out: pathlib.Path = pathlib.Path("dlopt-demo")
    quick: bool = False
    seed: int = 0

    def __post_init__(self):
        if self.epochs is not None and self.epochs < 1:
            raise ConfigError(f"epochs must be at least 1. Received: {self.epochs}.")
        if not 0 <= self.seed < 2**32:
            raise ConfigError(
                f"seed must be between 0 and 2**32 - 1. Received: {self.seed}."
            )


@dataclasses.dataclass(frozen=True)
class Plan:
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


def plan(settings: Settings, dataset: Dataset) -> Plan:
    """The demo in numbers.

    Raises:
        DataError: for a data set that the demo's network cannot take.
    """
    if len(dataset.input_shape) != 3:
        raise DataError(
            "The demo trains a convolutional network and needs images of shape "
            f"(height, width, channels). {dataset.name} has examples of shape "
            f"{dataset.input_shape}."
        )
    if not len(dataset.x_test):
        raise DataError(f"{dataset.name} has no test examples to report on.")
    examples = len(dataset.x_train)
    small = examples <= SMALL
    epochs = settings.epochs
    if epochs is None:
        epochs = (8 if small else 1) if settings.quick else (30 if small else 4)
    batch_size = min(32 if small else 128, examples)
    return Plan(
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
    try:
        import ai_edge_litert  # noqa: F401
    except ImportError as error:
        raise missing(
            "ai-edge-litert", extra="litert", purpose="The demo's int8 part"
        ) from error
    out = pathlib.Path(os.path.abspath(settings.out))
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out must be a folder. {str(out)!r} is a file.")
    parent = out
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise ConfigError(
            f"The folder {str(out)!r} cannot be written: no permission in "
            f"{str(parent)!r}. Choose another with --out."
        )
