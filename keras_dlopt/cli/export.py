"""`keras-dlopt export`."""

import pathlib
from typing import Annotated

import typer

from keras_dlopt.cli import inputs

OUT = "A .tflite or .onnx file, or a folder for a SavedModel."


def export(
    model: inputs.Model,
    out: Annotated[pathlib.Path, typer.Argument(help=OUT)],
    as_json: inputs.Json = False,
) -> None:
    """Write a model for another runtime: LiteRT, ONNX, SavedModel."""
    from keras_dlopt import export as writers

    verbs = {".tflite": writers.litert, ".onnx": writers.onnx}
    report = verbs.get(out.suffix, writers.saved_model)(inputs.model_in(model), out)
    inputs.say(inputs.of_export(report), as_json=as_json, text=str(report))
