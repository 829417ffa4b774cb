"""LiteRT (.tflite) files: float, or full int8 with the very scales trained."""

import contextlib
import dataclasses
import os
import tempfile
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from keras_dlopt import _compat
from keras_dlopt.errors import ConfigError, ExportError
from keras_dlopt.export.agreement import Agreement, agreement, worst
from keras_dlopt.export.contents import output_steps, read
from keras_dlopt.export.ends import Ends, arrange, ends_of
from keras_dlopt.export.predictor import Predictor
from keras_dlopt.export.quiet import silence
from keras_dlopt.export.runtime import litert_package
from keras_dlopt.export.twin import Twin, bake, one_scale_each
from keras_dlopt.export.verify import check
from keras_dlopt.graph.walk import check_built

IO = ("float", "int8")


@dataclasses.dataclass(frozen=True)
class ExportReport:
    """What was written, and what was checked in it.

    Attributes:
        path: of the file.
        size: of the file in bytes.
        quantized: whether it is a full int8 model.
        io: type of its inputs and outputs, `"float"` or `"int8"`.
        verified: whether the file was read back and compared.
        codes: int8 weight codes that were compared and are equal.
        ranges: activation scales and zero points that were found in the file.
        agreement: of its outputs with the model's on `data`; None without data.
    """

    path: str
    size: int
    quantized: bool
    io: str
    verified: bool
    codes: int = 0
    ranges: int = 0
    agreement: Agreement | None = None


def litert(
    model: keras.Model,
    path: str | os.PathLike[str],
    *,
    io: str = "float",
    verify: bool = True,
    data: Any = None,
    batch_size: int | None = 1,
    example: Any = None,
) -> ExportReport:
    """Writes a model as a LiteRT file for phones, microcontrollers and CPUs.

    A model that was trained with activation quantizers (see `int8_recipe`) becomes a
    full int8 file whose weight codes, scales and zero points are the trained ones;
    the file is read back and compared. Any other model becomes a float file. Nothing
    is printed, and the file appears only when it is complete and checked.

    Args:
        model: a `TransformedModel`, or a built Keras model.
        path: of the file, ending in `.tflite`; its folder must exist.
        io: type of the file's inputs and outputs: `"float"`, or `"int8"` for runtimes
            without float, where the caller scales with the file's input quantization.
        verify: whether to read the file back and compare, which needs the package
            `ai-edge-litert`. A float file is compared only on `data`.
        data: a batch of inputs on which to compare the outputs of file and model.
        batch_size: examples per call of the file; None leaves it open, at the price
            of some operations that compute shapes.
        example: a batch of inputs, for models that do not know their input's shape.

    Raises:
        ConfigError: for what int8 LiteRT cannot express, or a wrong argument.
        ExportError: if the converter fails, or the file is not what was trained; the
            text names the layer, and no file is left.
        MissingDependencyError: without `ai-edge-litert`, unless `verify=False`.
    """
    path = os.fspath(path)
    _check_arguments(model, path, io, data, verify)
    plain, ranges, kernels = bake(model, example)
    if io == "int8" and not ranges:
        raise ConfigError(
            f"io='int8' needs a quantized model, and {model.name!r} has no activation "
            "quantizers. Train transform(model, int8_recipe(model)) first, or use "
            "io='float'."
        )
    checks = verify and (bool(ranges) or data is not None)
    if checks:
        litert_package()  # before the work, not after it
    ends = ends_of(plain, example)
    twin = Twin(plain, ranges, ends)
    with _complete_or_absent(path) as temporary:
        options = _options(io, quantized=bool(ranges), one=one_scale_each(kernels))
        _convert(twin, temporary, batch_size, options)
        arrange(temporary, ends)
        codes, agree = 0, None
        if checks and ranges:
            codes = check(temporary, plain, ranges, kernels)
        if checks and data is not None:
            agree = _compare(model, temporary, data, ends)
        size = os.path.getsize(temporary)
    return ExportReport(
        path=path,
        size=size,
        quantized=bool(ranges),
        io=io,
        verified=checks,
        codes=codes,
        ranges=len(ranges) if checks else 0,
        agreement=agree,
    )


def _check_arguments(model: Any, path: str, io: str, data: Any, verify: bool) -> None:
    if keras.backend.backend() != "tensorflow":
        raise ConfigError(
            "LiteRT files are written by TensorFlow's converter, and this process runs "
            f"Keras on {keras.backend.backend()!r}. Save the model with "
            "model.save('model.keras'), and export it in a process started with "
            "KERAS_BACKEND=tensorflow."
        )
    check_built(model)
    if io not in IO:
        raise ConfigError(f"io must be 'float' or 'int8'. Received: {io!r}.")
    if not path.endswith(".tflite"):
        raise ConfigError(f"path must end in '.tflite'. Received: {path!r}.")
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder) or not os.access(folder, os.W_OK):
        raise ConfigError(
            f"Cannot write to the folder {folder!r}: it does not exist or is not "
            "writable. Create it first."
        )
    if data is not None and not verify:
        raise ConfigError(
            "data is compared only with verify=True. Pass one or neither."
        )


@contextlib.contextmanager
def _complete_or_absent(path: str) -> Iterator[str]:
    """A temporary file beside `path` that takes its place if all went well."""
    folder, name = os.path.split(os.path.abspath(path))
    handle, temporary = tempfile.mkstemp(
        dir=folder, prefix=f".{name}.", suffix=".tflite"
    )
    os.close(handle)
    try:
        yield temporary
        # mkstemp makes files for their owner only; give it what open() would.
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def _options(io: str, *, quantized: bool, one: bool) -> dict[str, Any]:
    """What the converter is told; `one` for dense kernels of one scale each."""
    import tensorflow as tf

    options: dict[str, Any] = {}
    if quantized:
        options["optimizations"] = [tf.lite.Optimize.DEFAULT]
    if io == "int8":
        options |= {"inference_input_type": tf.int8, "inference_output_type": tf.int8}
    if one:
        options |= _compat.one_scale_for_dense_kernels()
    return options


def _convert(twin: Twin, path: str, batch: int | None, options: dict[str, Any]) -> None:
    try:
        with silence():
            twin.export(
                path,
                format="litert",
                verbose=False,
                input_signature=[twin.ends.signature(batch)],
                **options,
            )
    except Exception as error:
        raise ExportError(
            f"The LiteRT converter refused {twin.name!r} ({type(error).__name__}): "
            f"{str(error)[:1000]}"
        ) from error


def _compare(model: keras.Model, path: str, data: Any, ends: Ends) -> Agreement:
    predictor = Predictor(path)
    given = dict(zip(ends.inputs, predictor.in_order(data), strict=True))
    got = predictor.named(given).values()
    expected = keras.tree.flatten(model.predict(ends.structured(given), verbose=0))
    parts = []
    for ours, theirs, step in zip(expected, got, output_steps(read(path)), strict=True):
        # Float outputs have no grid; a ten-thousandth of the largest stands for it.
        lsb = step or 1e-4 * max(float(np.abs(ours).max()), 1e-30)
        parts.append(agreement(ours, theirs, lsb=lsb))
    return worst(parts)
