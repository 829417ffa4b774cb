"""SavedModel folders, for TensorFlow Serving, TensorFlow.js and others."""

import contextlib
import os
import pathlib
import secrets
import shutil
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from keras_dlopt.errors import ConfigError, ExportError
from keras_dlopt.export.agreement import Agreement, agreement, worst
from keras_dlopt.export.arguments import check_arguments
from keras_dlopt.export.batches import encoded, in_order
from keras_dlopt.export.ends import Ends, ends_of
from keras_dlopt.export.litert import ExportReport
from keras_dlopt.export.quiet import silence
from keras_dlopt.export.runtime import End
from keras_dlopt.export.twin import Range, Twin, bake
from keras_dlopt.transforms import TransformedModel

# Mean difference to the model's outputs, in parts of the largest: another order of
# sums, and with quantizers a rounding that falls the other way.
_ROUNDING, _LEVELS = 1e-4, 1e-2
_EXAMPLES = 256
# A number that few other sizes have: Keras 3.15 adds (n, 1) to (n, n) as a row.
_MADE_UP = 7


def saved_model(
    model: keras.Model,
    path: str | os.PathLike[str],
    *,
    verify: bool = True,
    data: Any = None,
    example: Any = None,
) -> ExportReport:
    """Writes a model as a SavedModel of TensorFlow.

    Weights are baked in, as by `finalize`; 8-bit activation quantizers are there as
    operations with constant ranges, so that the folder computes what was trained, in
    float. Its signature `serving_default` has the model's names for inputs and
    outputs, and takes any number of examples. The folder is loaded again and its
    outputs are compared with the model's before it appears; an older SavedModel of
    this name is replaced as a whole.

    Args:
        model: a `TransformedModel`, or a built Keras model.
        path: of the folder; the one it lies in must exist.
        verify: whether to load and compare it.
        data: a batch of inputs to compare on; None makes some up where all sizes are
            known.
        example: a batch of inputs, for models that do not know their input's shape.

    Returns:
        The same report as `export.litert`.

    Raises:
        ConfigError: for a wrong argument, or a path where something else is.
        ExportError: if TensorFlow cannot write the model, or the folder computes
            something else; no folder is left.

    Example:
        >>> model = keras.Sequential([keras.Input((2,), name="x"), keras.layers.ReLU()])
        >>> dlopt.export.saved_model(model, "relu").verified
        True
    """
    path = os.fspath(path)
    check_arguments(model, path, suffix="", data=data, verify=verify)
    _check_place(path)
    import tensorflow as tf

    try:
        plain, ranges, _ = bake(model, example)
    except (
        ConfigError
    ):  # quantizers that int8 cannot express: they are kept as they are
        plain, ranges = model, []
    inside = plain.model if isinstance(plain, TransformedModel) else plain
    ends = ends_of(inside, example)
    twin = Twin(plain, ranges, ends)
    agree = None
    with _complete_or_absent(path) as temporary:
        _write(twin, temporary)
        given = _examples(ends, example if data is None else data)
        if verify and given is not None:
            agree = _compared(model, temporary, ends, given, ranges)
        size = sum(f.stat().st_size for f in temporary.rglob("*") if f.is_file())
    return ExportReport(
        path=path,
        size=size,
        quantized=False,  # it computes in float
        io="float",
        verified=agree is not None,
        ranges=len(ranges),
        agreement=agree,
        runtime=f"tensorflow {tf.__version__}" if agree else "",
    )


def _check_place(path: str) -> None:
    place = pathlib.Path(path)
    if place.is_dir() and not any(place.iterdir()):
        return
    if place.exists() and not (place / "saved_model.pb").is_file():
        raise ConfigError(
            f"{path!r} is there already, and is no SavedModel to replace. Choose "
            "another name."
        )


@contextlib.contextmanager
def _complete_or_absent(path: str) -> Iterator[pathlib.Path]:
    """A folder beside `path` that takes its place if all went well."""
    target = pathlib.Path(os.path.realpath(path))
    mark = secrets.token_hex(4)
    temporary, old = (target.with_name(f".{target.name}.{mark}.{s}") for s in "no")
    try:
        yield temporary
        if target.exists():
            os.replace(target, old)
        try:
            os.replace(temporary, target)
        except OSError:
            os.replace(old, target)
            raise
    finally:
        for folder in (temporary, old):
            shutil.rmtree(folder, ignore_errors=True)


def _write(twin: Twin, folder: pathlib.Path) -> None:
    try:
        with silence():
            twin.export(
                str(folder),
                format="tf_saved_model",
                verbose=False,
                input_signature=[twin.ends.signature(None)],
            )
    except Exception as error:
        raise ExportError(
            f"TensorFlow cannot write {twin.name!r} as a SavedModel "
            f"({type(error).__name__}): {str(error)[:1000]}"
        ) from error


def _examples(ends: Ends, given: Any) -> dict[str, np.ndarray] | None:
    """Inputs by name: those given, else made up; None where a size is open."""
    specs = keras.tree.flatten(ends.specs)
    taken = [
        End(name, tuple(spec.shape), np.dtype(spec.dtype))
        for name, spec in zip(ends.inputs, specs, strict=True)
    ]
    if given is not None:
        arrays = in_order(given, [_open(end) for end in taken], path="the model")
        return {e.name: encoded(a, e) for e, a in zip(taken, arrays, strict=True)}
    if any(None in end.shape[1:] for end in taken):
        return None
    normal = np.random.default_rng(0).normal
    sizes = [[_MADE_UP, *(n or 1 for n in end.shape[1:])] for end in taken]
    return {
        end.name: np.abs(normal(size=size)).astype(end.dtype)
        for end, size in zip(taken, sizes, strict=True)
    }


def _open(end: End) -> End:
    return End(end.name, (None, *end.shape[1:]), end.dtype)


def _compared(
    model: keras.Model,
    folder: pathlib.Path,
    ends: Ends,
    given: dict[str, np.ndarray],
    ranges: list[Range],
) -> Agreement:
    """Loads a folder, and compares its outputs with the model's."""
    import tensorflow as tf

    with silence():
        call = tf.saved_model.load(str(folder)).signatures["serving_default"]
    parts = []
    for start in range(0, len(next(iter(given.values()))), _EXAMPLES):
        few = {k: tf.constant(a[start : start + _EXAMPLES]) for k, a in given.items()}
        parts.append({k: v.numpy() for k, v in call(**few).items()})
    expected = keras.tree.flatten(model.predict(ends.structured(given), verbose=0))
    found = []
    for name, ours in zip(ends.outputs, expected, strict=True):
        got = np.concatenate([part[name] for part in parts])
        top = max(float(np.abs(ours).max()), 1e-30)
        off = float(np.abs(ours.astype("float64") - got).mean()) / top
        if not off <= (_LEVELS if ranges else _ROUNDING):
            raise ExportError(
                f"The output {name!r} of the SavedModel is off the model's by "
                f"{off:.2g} of its largest value, on average: TensorFlow wrote "
                "something else than what was trained. Report it with the versions of "
                "tensorflow and keras."
            )
        found.append(agreement(ours, got, lsb=1e-4 * top))
    return worst(found)
