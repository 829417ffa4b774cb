"""From a trained model to a small int8 file, exact steps first."""

import dataclasses
import os
from typing import Any, Literal

import keras
import numpy as np

from keras_dlopt.errors import ModelError
from keras_dlopt.export import ExportReport, litert
from keras_dlopt.graph.walk import as_functional
from keras_dlopt.interop.files import load
from keras_dlopt.post_training import fold, quantize
from keras_dlopt.post_training.data import Batches
from keras_dlopt.runtime.values import to_numpy
from keras_dlopt.select import Selector
from keras_dlopt.surgery import RemovalReport, remove_dead
from keras_dlopt.transforms import Transform, TransformedModel


@dataclasses.dataclass(frozen=True, eq=False)
class Int8File:
    """A model on its way to an int8 file.

    Attributes:
        model: the quantized model that the file holds; `fit` trains it on, and
            `save_compressed` takes it.
        export: what was written, and what was checked in it.
        parameters: step -> parameters after it, `"given"` first.
        removal: what left and what is held in place; None where nothing can be removed.
        moved: largest change of a float output by these steps on the first batch of
            data, relative to the largest output: float rounding.
        skipped: step -> why it was left out.
    """

    model: TransformedModel
    export: ExportReport
    parameters: dict[str, int]
    removal: RemovalReport | None
    moved: float
    skipped: dict[str, str]

    def __str__(self) -> str:
        lines = [f"{n:,} parameters {step}" for step, n in self.parameters.items()]
        lines += [f"without {step}: {why}" for step, why in self.skipped.items()]
        lines.append(f"float outputs moved by at most {self.moved:.1e} of the largest")
        checked = "verified" if self.export.verified else "not verified"
        lines.append(f"{self.export.path}: {self.export.size:,} bytes, {checked}")
        return "\n".join(lines)


def to_int8(
    model: keras.Model | str | os.PathLike[str],
    path: str | os.PathLike[str],
    data: Any,
    *,
    target: str = "xnnpack",
    io: str | None = None,
    storage: str | None = None,
    weights: Transform | None = None,
    activation_bits: int = 8,
    input_range: tuple[float, float] | None = None,
    observer: str = "mse",
    per_channel: bool | Literal["auto"] = True,
    correct_bias: bool = False,
    keep_float: Selector | None = None,
    mixed: Literal["auto"] | None = None,
    batch_size: int = 64,
    limit: int | None = None,
) -> Int8File:
    """A trained model as a small, verified int8 LiteRT file, in one call.

    What changes nothing comes first: channels that carry nothing leave
    (`surgery.remove_dead`), and normalizations and scalings of the inputs go into the
    kernels (`post_training.fold`). Then activations that int8 needs apart are split off
    and the model is quantized (`post_training.quantize`), written and read back
    (`export.litert`).

    Args:
        model: a trained, built Keras model, which stays as it is; or the path of its
            file, `.keras` or `.h5`, also of Keras 2, or of its SavedModel's folder.
        path: of the file to write, ending in `.tflite`.
        data: some hundred examples of what the model will see, without labels.
        target: what runs the file, such as `"ethos-u55"`; see `export.litert`.
        io: type of the file's inputs and outputs, `"float"`, `"int8"` or `"int16"`;
            None for float on CPUs and integers on other targets.
        storage: of the weights, such as `"int4"`; see `export.litert`.
        weights: for kernels and embeddings; None for `FakeQuant(bits=8)`.
        activation_bits: 8 or 16.
        input_range: (low, high) of the inputs; None calibrates it.
        observer: how ranges are chosen; see `post_training.calibrate`.
        per_channel: see `post_training.quantize`.
        correct_bias: whether to correct the biases; see `post_training.correct_bias`.
        keep_float: means what is not quantized; see `post_training.quantize`.
        mixed: `"auto"` leaves in float what hurts most on the data.
        batch_size: of the data.
        limit: how many examples are used at most; of arrays they are drawn.

    Raises:
        ConfigError: for what int8 LiteRT cannot express, or a wrong argument.
        DataError: for data that is empty or does not fit the model.
        ExportError: if the file is not what was quantized.
        FormatError: for a file that holds no model.
        ModelError: for a model that cannot be copied.

    Example:
        >>> import tempfile
        >>> net = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(8, 3),
        ...     keras.layers.BatchNormalization(), keras.layers.ReLU(),
        ...     keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(2)])
        >>> x = np.random.default_rng(0).random((64, 8, 8, 3)).astype("float32")
        >>> made = to_int8(net, os.path.join(tempfile.mkdtemp(), "net.tflite"), x)
        >>> made.export.verified, made.parameters["folded"]
        (True, 242)
    """
    if not isinstance(model, keras.Model):
        model = load(model)
    given = model
    parameters, skipped = {"given": model.count_params()}, {}
    removal = None
    try:
        model, removal = remove_dead(model)
        parameters["without dead channels"] = model.count_params()
    except ModelError as error:
        skipped["removal"] = str(error)
    if as_functional(model) is None:
        skipped["folding"] = f"{type(model).__name__} is a subclassed model"
    else:
        model = fold(model)
        parameters["folded"] = model.count_params()
    batches = Batches(model, data, batch_size=batch_size, limit=limit)
    quantized = quantize(
        model,
        batches,
        observer=observer,
        weights=weights,
        activation_bits=activation_bits,
        input_range=input_range,
        per_channel=per_channel,
        correct_bias=correct_bias,
        keep_float=keep_float,
        mixed=mixed,
        batch_size=batch_size,
    )
    first = batches.batches[0]
    report = litert(
        quantized,
        path,
        target=target,
        io=io,
        storage=storage,
        data=first,
        example=first,
    )
    moved = _moved(given, model, first)
    return Int8File(quantized, report, parameters, removal, moved, skipped)


def _moved(one: Any, other: Any, batch: Any) -> float:
    """The largest difference of outputs, relative to the largest output."""
    flat = [
        [np.asarray(to_numpy(y), "float64") for y in keras.tree.flatten(outputs)]
        for outputs in (one(batch, training=False), other(batch, training=False))
    ]
    apart = [np.abs(a - b).max() for a, b in zip(*flat, strict=True)]
    return float(max(apart) / max(*(np.abs(a).max() for a in flat[0]), 1e-30))
