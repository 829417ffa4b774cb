"""LiteRT (.tflite) files: float, or int8 with the very codes and scales trained."""

import contextlib
import dataclasses
import os
import tempfile
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from keras_dlopt import checks
from keras_dlopt.errors import ConfigError, ExportError
from keras_dlopt.export import lookup, targets
from keras_dlopt.export.agreement import Agreement
from keras_dlopt.export.arguments import check_arguments
from keras_dlopt.export.batches import encoded
from keras_dlopt.export.checking import Checked, Made, checked
from keras_dlopt.export.ends import Ends, arrange, ends_of
from keras_dlopt.export.flat import Flat
from keras_dlopt.export.floating import chosen, float_file
from keras_dlopt.export.layerwise import Layerwise
from keras_dlopt.export.noise import OutputNoise
from keras_dlopt.export.predictor import Predictor
from keras_dlopt.export.runtime import litert_package
from keras_dlopt.export.storage import STORAGE, store
from keras_dlopt.export.twin import Range, Twin, bake
from keras_dlopt.export.verify import layer_of
from keras_dlopt.export.writer import Written, to_int8
from keras_dlopt.graph.copying import in_float32
from keras_dlopt.measure.npu import NpuEstimate

IO = ("float", "int8", "int16")
BACKENDS = ("tensorflow", "jax")


@dataclasses.dataclass(frozen=True)
class ExportReport:
    """What was written, and what was checked in it.

    Attributes:
        path: of the file.
        size: of the file in bytes.
        quantized: whether activations are in int8.
        io: type of its inputs and outputs, `"float"` or `"int8"`.
        verified: whether the file was read back and compared.
        codes: int8 weight codes that were compared and are equal.
        ranges: activation scales and zero points that were found in the file.
        agreement: of its outputs with the model's on `data`; None without data.
        islands: of a quantized model, each operation that stays in float, with the
            layer it came from and the reason.
        layers: how far each int8 operation is from what was simulated; None if nothing
            runs in int8, or nothing was checked.
        noise: how far its outputs are from the model's on `data`, beside the difference
            between the runtime's own kernels; None without data.
        runtime: the package on which it was checked, with its version.
        target: what it was written for.
        remarks: what the check for the target did and measured, a sentence each.
        npu: Vela's estimate, for an Ethos-U; None otherwise.
    """

    path: str
    size: int
    quantized: bool
    io: str
    verified: bool
    codes: int = 0
    ranges: int = 0
    agreement: Agreement | None = None
    islands: tuple[str, ...] = ()
    layers: Layerwise | None = None
    noise: OutputNoise | None = None
    runtime: str = ""
    target: str = "xnnpack"
    remarks: tuple[str, ...] = ()
    npu: NpuEstimate | None = None

    def __str__(self) -> str:
        kind = "int8" if self.quantized else "float"
        lines = [f"{self.path}: {self.size:,} bytes, {kind}, {self.io} ends"]
        if not self.verified:
            return f"{lines[0]}; not verified"
        lines.append(f"{self.codes:,} codes and {self.ranges} ranges as trained")
        lines += [f"in float: {island}" for island in dict.fromkeys(self.islands)]
        lines += [f"for {self.target}: {remark}" for remark in self.remarks]
        found = [str(one) for one in (self.layers, self.noise) if one is not None]
        return "\n  ".join([*lines, *found, f"measured with {self.runtime}"])


def litert(
    model: keras.Model,
    path: str | os.PathLike[str],
    *,
    target: str = "xnnpack",
    io: str | None = None,
    storage: str | None = None,
    full_integer: bool = False,
    lean: bool = True,
    verify: bool = True,
    data: Any = None,
    batch_size: int | None = 1,
    example: Any = None,
    converter: str = "auto",
) -> ExportReport:
    """Writes a model as a LiteRT file for phones, microcontrollers and CPUs.

    A model that was trained with activation quantizers (see `int8_recipe`) becomes an
    int8 file whose weight codes, scales and zero points are the trained ones; the file
    is read back and compared. What has no quantizer, or no int8 form in LiteRT, stays
    in float between conversions, and `ExportReport.islands` names it. A model whose
    weights alone are quantized becomes a float file with int8 weights, and any other
    one a float file. Nothing is printed, and the file appears only when it is complete
    and checked.

    Args:
        model: a `TransformedModel`, or a built Keras model.
        path: of the file, ending in `.tflite`; its folder must exist.
        target: what runs it. `"xnnpack"`: LiteRT on CPUs. `"ethos-u55"`, `"ethos-u65"`,
            `"ethos-u85"`: Arm's NPUs, checked with Vela (extra `npu`). `"tflm"`:
            microcontrollers, checked in TFLM's interpreter (extra `tflm`).
            `"edgetpu"`: checked against its published table, not compiled.
        io: type of the file's inputs and outputs: `"float"`, or `"int8"` for runtimes
            without float, where the caller scales with the file's input quantization;
            `"int16"` where activations have 16 bits. None for float on CPUs and
            integers on other targets.
        storage: of the weights, if not as they were trained. `"int4"`: codes that fit
            take half a byte. `"float16"`: float weights are rounded to half floats.
            `"dynamic"`: int8 kernels of a model with float activations compute in int8
            with what they take, rounded at run time to the range that it has.
            `"lookup"`, for TFLM alone: kernels of few values as tables and indices.
        full_integer: whether to refuse a model of which something stays in float.
        lean: whether to leave out the names of tensors, which only debuggers read;
            inputs and outputs keep theirs.
        verify: whether to read the file back and compare, which needs the package
            `ai-edge-litert`. A float file is compared only on `data`.
        data: a batch of inputs on which to compare the outputs of file and model.
        batch_size: examples per call of the file; None leaves it open, at the price
            of some operations that compute shapes.
        example: a batch of inputs, for models that do not know their input's shape.
        converter: what makes the float file into which codes are written: `"tf.lite"`,
            or `"stablehlo"`, which takes JAX and the package `litert-converter`, runs
            in processes of its own and works on either backend; `"auto"` takes the
            first where it is.

    Raises:
        ConfigError: for what LiteRT cannot express, or a wrong argument.
        ExportError: if the converter fails, the file is not what was trained, or the
            target does not run an operation of it; the text names the layer, and no
            file is left.
        MissingDependencyError: without `ai-edge-litert`, unless `verify=False`, and
            without the package that checks for the target.
    """
    path = os.fspath(path)
    check_arguments(
        model, path, suffix=".tflite", data=data, verify=verify, backends=BACKENDS
    )
    converter = chosen(converter)
    asked, io = io, _checked_io(target, io, batch_size, storage)
    model = in_float32(model)  # as the file computes
    plain, ranges, kernels = bake(model, example, bits=(8, 16))
    io = _as_wide(io, asked, ranges)
    if not ranges and (io != "float" or full_integer):
        raise _not_quantized(model, io if asked else target, full_integer)
    quantized = bool(kernels or ranges)
    verify = verify and (quantized or data is not None)
    if verify:
        litert_package()  # before the work, not after it
    ends = ends_of(plain, example)
    with _complete_or_absent(path) as temporary:
        file = float_file(Twin(plain, ranges, ends), temporary, batch_size, converter)
        arrange(file, ends)
        written = to_int8(file, kernels, ranges, io=io) if quantized else Written()
        islands = _islands(written, plain) if ranges else ()
        _check_written(file, islands, io, full_integer, target)
        ready = targets.own_operations(file)
        remarks = store(ready, storage) + targets.fit(ready, target)
        on_target = _check_target(ready, temporary, target, plain, data, ends)
        ready.write(temporary, lean=lean)
        found = Checked()
        if verify:
            made = Made(model, plain, ranges, ends, file, written)
            with _beside(path) as scratch:
                found = checked(made, temporary, scratch, data, example)
        remarks += _compressed(temporary, storage, data, ends)
    return ExportReport(
        path=path,
        size=os.path.getsize(path),
        quantized=bool(ranges),
        io=io,
        verified=verify,
        islands=islands,
        target=target,
        remarks=(*remarks, *on_target.remarks),
        npu=on_target.npu,
        **vars(found),
    )


def _checked_io(
    target: str, io: str | None, batch_size: int | None, storage: str | None
) -> str:
    """The type of the file's ends."""
    checks.choice(storage, name="storage", choices=(None, *STORAGE))
    checks.choice(target, name="target", choices=targets.TARGETS)
    if io not in (None, *IO):
        raise ConfigError(f"io must be 'float', 'int8' or 'int16'. Received: {io!r}.")
    return targets.check_options(target, io, batch_size, storage)


def _as_wide(io: str, asked: str | None, ranges: list[Range]) -> str:
    """The type of the file's ends, with integers as wide as the activations."""
    wanted = f"int{ranges[0].bits}" if ranges else io
    if io in ("float", wanted):
        return io
    if asked is None:
        return wanted
    raise ConfigError(
        f"The activations of this model are {wanted}, and so are its ends. Pass "
        f"io={wanted!r} or io='float'. Received: io={io!r}."
    )


def _not_quantized(model: keras.Model, asked: str, full: bool) -> ConfigError:
    wanted = f"io={asked!r}" if asked in IO else f"target={asked!r}"
    wanted = "full_integer=True" if asked in ("float", "xnnpack") and full else wanted
    return ConfigError(
        f"{wanted} needs a quantized model, and {model.name!r} has no activation "
        "quantizers. Train transform(model, int8_recipe(model)) first, or leave "
        f"{wanted} out."
    )


def _check_target(
    file: Flat, path: str, target: str, model: keras.Model, data: Any, ends: Ends
) -> targets.OnTarget:
    if target == "xnnpack":
        return targets.OnTarget()
    file.write(path, lean=False)  # the names tell of the layers
    batches = None if data is None else _batches(path, data, ends)
    return targets.check(
        file,
        path,
        target,
        batches=batches,
        layer=lambda names: layer_of(names, model),
        name=model.name,
    )


def _compressed(
    path: str, storage: str | None, data: Any, ends: Ends
) -> tuple[str, ...]:
    if storage != "lookup":
        return ()
    batches = None if data is None else _batches(path, data, ends)
    return (lookup.compress(path, batches),)


def _batches(path: str, data: Any, ends: Ends) -> list[list[np.ndarray]]:
    """The data in the file's types and batches; the first ones fill up the last."""
    predictor = Predictor(path)
    arrays = predictor.in_order(data)
    size, examples = predictor.inputs[0].shape[0] or 1, len(arrays[0])
    rows = [np.arange(n, n + size) % examples for n in range(0, examples, size)]
    return [
        [encoded(a[at], end) for a, end in zip(arrays, predictor.inputs, strict=True)]
        for at in rows
    ]


def _islands(written: Written, model: keras.Model) -> tuple[str, ...]:
    return tuple(
        f"{island.operator} from {layer_of(island.names, model)}: {island.reason}"
        for island in written.islands
    )


def _check_written(
    file: Flat, islands: tuple[str, ...], io: str, full_integer: bool, target: str
) -> None:
    """Raises for parts in float that the caller does not want."""
    if islands and target in targets.INTEGER_ONLY:
        raise ExportError(
            f"target={target!r} has no float, and these operations stay in float: "
            f"{'; '.join(dict.fromkeys(islands))}. Start from int8_recipe(model) or "
            "post_training.quantize, or write the file without target."
        )
    if islands and full_integer:
        raise ExportError(
            f"These operations stay in float: {'; '.join(dict.fromkeys(islands))}. "
            "An operation needs a quantizer on what it takes and on what it returns. "
            "Add the missing '<layer>/output' to the recipe, or start from "
            "int8_recipe(model). With full_integer=False the file keeps them in float."
        )
    ends = (("input", file.inputs), ("output", file.outputs))
    for what, tensors in ends if io != "float" else ():
        if any(file.is_float(i) for i in tensors):
            raise ConfigError(
                f"io={io!r} needs a quantizer at every {what} of the model, and one "
                f"{what} has none. Start from int8_recipe(model), or use io='float'."
            )


@contextlib.contextmanager
def _complete_or_absent(path: str) -> Iterator[str]:
    """A temporary file beside `path` that takes its place if all went well."""
    with _beside(path) as temporary:
        yield temporary
        # mkstemp makes files for their owner only; give it what open() would.
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)
        os.replace(temporary, path)


@contextlib.contextmanager
def _beside(path: str) -> Iterator[str]:
    """A file beside `path` that is gone in the end."""
    folder, name = os.path.split(os.path.abspath(path))
    handle, temporary = tempfile.mkstemp(
        dir=folder, prefix=f".{name}.", suffix=".tflite"
    )
    os.close(handle)
    try:
        yield temporary
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
