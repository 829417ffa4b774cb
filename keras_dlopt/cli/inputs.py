"""What several commands take and give: models, examples, results as text or JSON."""

import contextlib
import contextvars
import dataclasses
import importlib
import json
import os
import pathlib
import re
import sys
from collections.abc import Iterator
from typing import Annotated, Any

import typer

MODEL = "A .keras, .h5 or .dlopt file, or a SavedModel of Keras 2."
EXAMPLES = (
    "digits, mnist, fashion_mnist, tfds:NAME, an .npz file, a .csv file (own.csv:name "
    "for the column of labels, else the last), a folder of images, one subfolder a "
    "class, or of idx files or shards, or module:function that returns (x, y) or a "
    "Dataset."
)
EPOCHS = "Of each training; by the data if left."
KERAS_FILES = (".keras", ".h5", ".hdf5")
FILES = "Files: .keras, .h5, .dlopt, .tflite, .onnx."
ANY = "A .dlopt file; or .keras, .h5 or .tflite."
Model = Annotated[pathlib.Path, typer.Argument(help=MODEL)]
AnyModel = Annotated[pathlib.Path, typer.Argument(help=ANY)]
Models = Annotated[list[pathlib.Path], typer.Argument(help=FILES)]
Data = Annotated[str, typer.Option("--data", help=EXAMPLES)]
Epochs = Annotated[int | None, typer.Option(help=EPOCHS)]
Target = Annotated[str, typer.Option(help="What runs the int8 file.")]
Seed = Annotated[int, typer.Option(help="Of weights and shuffling.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON alone.")]
UNSAFE = typer.Option("--unsafe", help="Run Python code that the model's file holds.")
Quiet = Annotated[bool, typer.Option("--quiet", help="Print no progress.")]
Html = Annotated[
    pathlib.Path | None, typer.Option("--html", help="File to write the report to.")
]


@dataclasses.dataclass(frozen=True)
class Trust:
    """What the user lets a model's file do.

    Attributes:
        unsafe: whether Python code in it is run.
        imports: modules with the classes that it names.
    """

    unsafe: bool = False
    imports: tuple[str, ...] = ()


TRUST: contextvars.ContextVar[Trust | None] = contextvars.ContextVar("TRUST")


def model_in(path: pathlib.Path, *, compiled: bool = False) -> Any:
    """The model in a file of Keras or of this package; compiled if that is known."""
    from keras_dlopt import interop, report
    from keras_dlopt.errors import ConfigError, DloptError, FormatError

    if not path.exists():
        raise ConfigError(f"There is no file {str(path)!r}.")
    trust = trusted()
    try:
        if path.is_dir() or path.suffix in KERAS_FILES:
            safe = not trust.unsafe
            return interop.load(path, compile=compiled, safe_mode=safe)
        return report.load(path)
    except DloptError as error:
        raise type(error)(_reason(path, error)) from error
    except Exception as error:  # of a dozen kinds, from zipfile to h5py
        raise FormatError(_reason(path, error)) from error


def trusted() -> Trust:
    """What the user allows; the modules that were named are imported."""
    trust = TRUST.get(None) or Trust()
    for module in trust.imports:
        _imported(module, f"--import {module}")
    return trust


def _reason(path: pathlib.Path, error: Exception) -> str:
    """Why a file gives no model, with the option that would mend it."""
    from keras_dlopt.errors import DloptError, FormatError

    cause = error.__cause__ if isinstance(error, FormatError) else error
    text = f"{error} {cause or ''}"
    if "safe_mode" in text or "holds Python code" in text:
        return (
            f"{str(path)!r} holds Python code, such as a Lambda layer's, which could "
            "do anything on this machine and was not run. If you trust where it comes "
            "from, add --unsafe."
        )
    unknown = re.search(r"(Could not locate|Unknown layer)[^.]*", text)
    if unknown:
        return (
            f"{str(path)!r} names a class that is not Keras' own: {unknown[0][:200]}. "
            "If it is yours, add --import MODULE, a module that registers it with "
            "keras.saving.register_keras_serializable."
        )
    if isinstance(error, DloptError):
        return str(error)
    lines = str(error).strip().splitlines() or [repr(error)]
    return f"{str(path)!r} is no model that can be read: {lines[0][:300]}"


def examples_in(given: str, model: Any = None) -> Any:
    """A data set by its name or path, or what a function returns.

    Args:
        given: as `EXAMPLES` says.
        model: that they are for; a data set by name or path is then as it takes them.
    """
    from keras_dlopt import auto, data

    path, label = given, None
    head, colon, tail = given.rpartition(":")
    if colon and head != "tfds" and not os.path.exists(given):
        if os.path.isfile(head):
            path, label = head, tail
        elif all(part.isidentifier() for part in head.split(".")):
            return _called(head, tail, given)
    if any(pathlib.Path(path).glob("shard-*")):
        return data.read_shards(path)
    if model is None:
        return data.load(path, label=label)
    found = auto.examples_for(model, path, label=label)
    for note in found.notes:
        typer.echo(f"Note: {note}", err=True)
    return found


def _called(module: str, name: str, given: str) -> Any:
    from keras_dlopt.errors import ConfigError

    with _here():
        found = _imported(module, f"--data {given!r}")
        function = getattr(found, name, None)
        if not callable(function):
            near = [n for n, v in vars(found).items() if callable(v) and n[0] != "_"]
            raise ConfigError(
                f"--data {given!r}: {module} has no function {name!r}. It has: "
                f"{', '.join(near[:10]) or 'none'}."
            )
        return function()


def _imported(module: str, option: str) -> Any:
    from keras_dlopt.errors import ConfigError

    try:
        with _here():
            return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"{option} names a module that is not found, or needs one that is not: "
            f"{error}."
        ) from error


@contextlib.contextmanager
def _here() -> Iterator[None]:
    """Modules are also looked for in the working directory."""
    folder = os.getcwd()
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # somebody took it out
            sys.path.remove(folder)


def parts_of(examples: Any) -> tuple[Any, Any]:
    """What to train on and what to judge on; None where one set is all there is."""
    if hasattr(examples, "train"):
        return examples.train, examples.val
    several = isinstance(examples, tuple | list) and len(examples) in (2, 3)
    if several and all(_is_set(part) for part in examples[:2]):
        return examples[0], examples[1]
    return examples, None


def _is_set(part: Any) -> bool:
    """Whether this is inputs with labels, and not inputs or labels alone."""
    pair = isinstance(part, tuple | list) and len(part) == 2
    return hasattr(part, "cardinality") or (pair and hasattr(part[1], "shape"))


def out_of(out: pathlib.Path | None, model: pathlib.Path, suffix: str) -> pathlib.Path:
    """The file to write: the given one, or one beside the model; not the model."""
    from keras_dlopt.errors import ConfigError

    path = out or model.with_suffix(suffix)
    if path.exists() and path.samefile(model):
        raise ConfigError(
            f"{str(path)!r} is the given model. Pass another file as --out."
        )
    return path


def of_export(report: Any) -> dict[str, Any]:
    """What an `ExportReport` tells, as plain data."""
    return {"path": report.path, "bytes": report.size, "verified": report.verified}


def say(result: Any, *, as_json: bool, text: str = "") -> None:
    """Prints a result: a dataclass or dict as JSON, or a text."""
    if as_json:
        from keras_dlopt.report import plain

        typer.echo(json.dumps(plain(result), indent=1, allow_nan=False))
    else:
        typer.echo(text or str(result))
