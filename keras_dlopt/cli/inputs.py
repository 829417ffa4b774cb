"""What several commands take and give: models, examples, results as text or JSON."""

import importlib
import json
import os
import pathlib
import sys
from typing import Annotated, Any

import typer

MODEL = "A .keras, .h5 or .dlopt file, or a SavedModel of Keras 2."
EXAMPLES = (
    "digits, mnist, fashion_mnist, an .npz file, a folder of idx files or images, or "
    "module:function that returns (x, y) or a Dataset."
)
Model = Annotated[pathlib.Path, typer.Argument(help=MODEL)]
Data = Annotated[str, typer.Option("--data", help=EXAMPLES)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON alone.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print no progress.")]
Html = Annotated[
    pathlib.Path | None, typer.Option("--html", help="File to write the report to.")
]


def model_in(path: pathlib.Path) -> Any:
    """The model in a file of Keras or of this package."""
    from keras_dlopt import interop, report
    from keras_dlopt.errors import ConfigError

    if not path.exists():
        raise ConfigError(f"There is no file {str(path)!r}.")
    is_saved = path.is_dir() or path.suffix == ".h5"
    return interop.load(path) if is_saved else report.load(path)


def examples_in(given: str) -> Any:
    """A data set by its name or path, or what a function returns."""
    from keras_dlopt import data
    from keras_dlopt.errors import ConfigError

    module, colon, name = given.partition(":")
    if not colon or os.path.exists(given) or not module.isidentifier():
        return data.load(given)
    sys.path.insert(0, os.getcwd())
    try:
        function = getattr(importlib.import_module(module), name, None)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"--data {given!r} names a module that is not found: {error}."
        ) from error
    finally:
        sys.path.pop(0)
    if not callable(function):
        raise ConfigError(f"--data {given!r}: {module} has no function {name!r}.")
    return function()


def parts_of(examples: Any) -> tuple[Any, Any]:
    """What to train on and what to judge on; None where one set is all there is."""
    if hasattr(examples, "train"):
        return examples.train, examples.val
    if isinstance(examples, tuple | list) and len(examples) in (2, 3):
        first = examples[0]
        if isinstance(first, tuple | list) or hasattr(first, "cardinality"):
            return examples[0], examples[1]
    return examples, None


def say(result: Any, *, as_json: bool, text: str = "") -> None:
    """Prints a result: its `to_dict()` as JSON, or a text."""
    if as_json:
        data = result if isinstance(result, dict) else result.to_dict()
        typer.echo(json.dumps(data, indent=1))
    else:
        typer.echo(text or str(result))
