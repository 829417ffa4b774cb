"""ONNX files: float, or int8 with quantize and dequantize and the scales trained."""

import os
import pathlib
import tempfile
from typing import Any

import keras
import numpy as np

from keras_dlopt import checks
from keras_dlopt.errors import ExportError, require
from keras_dlopt.export.agreement import Agreement, agreement, worst
from keras_dlopt.export.arguments import check_arguments
from keras_dlopt.export.ends import Ends, ends_of
from keras_dlopt.export.litert import ExportReport
from keras_dlopt.export.noise import OutputNoise
from keras_dlopt.export.onnx_codes import Found, put
from keras_dlopt.export.onnx_graph import Graph
from keras_dlopt.export.onnx_runtime import OnnxRuntime
from keras_dlopt.export.predictor import Predictor
from keras_dlopt.export.quiet import silence
from keras_dlopt.export.twin import Twin, bake
from keras_dlopt.export.verify import layer_of
from keras_dlopt.files import write_atomic
from keras_dlopt.graph.copying import in_float32

# The first operator set with a scale per channel is 13.
_OPSET = 15
# Roundings multiply with depth. Two ways of running one file differ by 2 levels on
# ResNet-20, file and model by 3; on an untrained MobileNetV2 by 19 and 42.
_SLACK = 5
_UNKNOWN = "the converter wrote this kernel in a form that holds no codes"


def onnx(
    model: keras.Model,
    path: str | os.PathLike[str],
    *,
    verify: bool = True,
    data: Any = None,
    batch_size: int | None = None,
    example: Any = None,
) -> ExportReport:
    """Writes a model as an ONNX file, for ONNX Runtime, OpenVINO and others.

    A model that was trained with activation quantizers becomes a file of int8 weights
    and biases of int32 with `DequantizeLinear`, a scale per output channel, and pairs
    of `QuantizeLinear` and `DequantizeLinear` where the quantizers are, all with the
    trained codes, scales and zero points; runtimes compute it in int8. Any other model
    becomes a float file. Inputs and outputs are floats, with the model's names and in
    its order. The file appears only when it is complete and checked.

    Args:
        model: a `TransformedModel`, or a built Keras model.
        path: of the file, ending in `.onnx`; its folder must exist.
        verify: whether to open the file in ONNX Runtime, and to compare its outputs
            where there are data.
        data: a batch of inputs on which to compare the outputs of file and model.
        batch_size: examples per call of the file; None leaves it open.
        example: a batch of inputs, for models that do not know their input's shape.

    Returns:
        The same report as `export.litert`.

    Raises:
        ConfigError: for what int8 cannot express, or a wrong argument.
        ExportError: if the converter fails, or the file is not what was trained; no
            file is left.
        MissingDependencyError: without the packages of the extra `onnx`.
    """
    path = os.fspath(path)
    check_arguments(model, path, suffix=".onnx", data=data, verify=verify)
    checks.optional(checks.count, batch_size, name="batch_size")
    require("onnx", "tf2onnx", extra="onnx", purpose="Writing .onnx files")
    if verify:
        require("onnxruntime", extra="onnx", purpose="Checking .onnx files")
    model = in_float32(model)  # as the file computes
    plain, ranges, kernels = bake(model, example)
    ends = ends_of(plain, example)
    proto = _converted(Twin(plain, ranges, ends), batch_size)
    graph = Graph(proto.graph)
    graph.fold()
    found = put(graph, ranges, kernels) if ranges or kernels else Found()
    graph.finish()
    _name_ends(proto, ends, batch_size)
    written = _serialized(proto, plain)
    agree, noise, runtime = None, None, ""
    if verify:
        agree, noise, runtime = _checked(model, written, data, ends, graph)
    write_atomic(pathlib.Path(path), written)
    return ExportReport(
        path=path,
        size=len(written),
        quantized=bool(ranges),
        io="float",
        verified=verify and data is not None,
        codes=sum(k.codes.size for k in found.kernels),
        ranges=found.ranges,
        agreement=agree,
        noise=noise,
        runtime=runtime,
        islands=tuple(f"{path}: {_UNKNOWN}" for path in found.missing),
    )


def _converted(twin: Twin, batch: int | None) -> Any:
    """The float graph, with a pair for each activation quantizer."""
    import onnx

    with tempfile.TemporaryDirectory() as folder:
        file = os.path.join(folder, "model.onnx")
        try:
            with silence():
                twin.export(
                    file,
                    format="onnx",
                    verbose=False,
                    input_signature=[twin.ends.signature(batch)],
                    opset_version=_OPSET,
                )
            proto = onnx.shape_inference.infer_shapes(onnx.load(file))
        except Exception as error:
            raise ExportError(
                f"The ONNX converter refused {twin.name!r} ({type(error).__name__}): "
                f"{str(error)[:1000]}"
            ) from error
    strange = [n for n in proto.graph.node if not onnx.defs.has(n.op_type, n.domain)]
    if strange:
        found = [f"{layer_of([n.name], twin.model)} ({n.op_type})" for n in strange]
        raise ExportError(
            f"ONNX has no operation for these layers of {twin.name!r}: "
            f"{', '.join(dict.fromkeys(found))}. Write them with other layers."
        )
    return proto


def _name_ends(proto: Any, ends: Ends, batch: int | None) -> None:
    """Puts inputs and outputs into the order of the model's, and names the batch."""
    for listed, names in (
        (proto.graph.input, ends.inputs),
        (proto.graph.output, ends.outputs),
    ):
        by_name = {one.name: one for one in listed}
        if sorted(by_name) != sorted(names):
            raise ExportError(
                f"The file names {sorted(by_name)}, and the model {sorted(names)}. A "
                "converter of another version wrote it; report it with the versions of "
                "tensorflow, keras and tf2onnx."
            )
        ordered = [by_name[name] for name in names]
        del listed[:]
        listed.extend(ordered)
        for one in listed:
            sizes = one.type.tensor_type.shape.dim
            if batch is None and sizes:
                sizes[0].dim_param = "batch"


def _serialized(proto: Any, model: keras.Model) -> bytes:
    import onnx

    try:
        onnx.checker.check_model(proto)
        written: bytes = proto.SerializeToString()
    except Exception as error:  # of the checker, or of a model beyond 2 GB
        raise ExportError(
            f"{model.name!r} has no valid ONNX form: {str(error)[:1000]}"
        ) from error
    return written


class _Plain(Predictor):
    """Runs every operation of a file by itself, in float between the quantizers."""

    def _open(self, kind: str, threads: int) -> OnnxRuntime:
        return OnnxRuntime(self.path, threads, optimized=False)


def _checked(
    model: keras.Model, written: bytes, data: Any, ends: Ends, graph: Graph
) -> tuple[Agreement | None, OutputNoise | None, str]:
    """Opens a file in ONNX Runtime, and compares its outputs with the model's."""
    import onnxruntime

    runtime = f"onnxruntime {onnxruntime.__version__}"
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "model.onnx"
        file.write_bytes(written)
        predictor = Predictor(file)
        if data is None:
            return None, None, runtime
        given = dict(zip(ends.inputs, predictor.in_order(data), strict=True))
        got, plain = predictor.named(given), _Plain(file).named(given)
    expected = keras.tree.flatten(model.predict(ends.structured(given), verbose=0))
    parts, noises = [], []
    for name, ours in zip(ends.outputs, expected, strict=True):
        # Float outputs have no grid; a ten-thousandth of the largest stands for it.
        lsb = graph.grid(name) or 1e-4 * max(float(np.abs(ours).max()), 1e-30)
        parts.append(agreement(ours, got[name], lsb=lsb))
        own = agreement(plain[name], got[name], lsb=lsb).largest_lsb
        noises.append(_judged(name, parts[-1], own, lsb))
    return worst(parts), max(noises, key=lambda n: n.levels), runtime


def _judged(name: str, found: Agreement, own: int, lsb: float) -> OutputNoise:
    """Raises where an output is further off than the runtime is from itself."""
    noise = OutputNoise(
        levels=found.largest_lsb,
        own=own,
        rounding=0,
        allowed=_SLACK * max(own, 1),
        examples=found.examples,
        kernels=("optimized", "plain"),
    )
    if noise.levels > noise.allowed:
        raise ExportError(
            f"The output {name!r} of the file is up to {noise.levels} levels of "
            f"{lsb:.3g} off the model's, and two ways of running the file differ by "
            f"{own}: it does not compute what was trained. Report it with the versions "
            "of onnx, onnxruntime and tf2onnx."
        )
    return noise
