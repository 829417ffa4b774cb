"""`keras-dlopt compress`."""

import pathlib
from typing import Annotated

import typer

from keras_dlopt.cli import inputs
from keras_dlopt.cli.progress import shown

OUT = "File to write; beside the model, ending in .dlopt or .tflite, if left."
SIZE = "Share of the weights' bytes, such as 0.1."
DROP = "Largest loss of accuracy on the validation examples: 0.005 is half a point."


def compress(
    model: inputs.Model,
    data: inputs.Data,
    size: Annotated[float | None, typer.Option(help=SIZE)] = None,
    max_bytes: Annotated[int | None, typer.Option(help="Bytes of the file.")] = None,
    max_accuracy_drop: Annotated[float | None, typer.Option(help=DROP)] = None,
    int8: Annotated[
        bool, typer.Option("--int8", help="A LiteRT file of int8, not a .dlopt one.")
    ] = False,
    target: Annotated[
        str | None, typer.Option(help="What runs the int8 file; xnnpack if left.")
    ] = None,
    out: Annotated[pathlib.Path | None, typer.Option(help=OUT)] = None,
    epochs: inputs.Epochs = None,
    time_budget: Annotated[
        float | None, typer.Option(help="Seconds to search for the best way in.")
    ] = None,
    html: inputs.Html = None,
    as_json: inputs.Json = False,
    quiet: inputs.Quiet = False,
) -> None:
    """Make a trained model small: to a size, or as accuracy allows."""
    from keras_dlopt import auto

    given = inputs.model_in(model, compiled=True)
    train, val = inputs.parts_of(inputs.examples_in(data, given))
    path = inputs.out_of(out, model, ".tflite" if int8 else ".dlopt")
    with shown(quiet or as_json) as progress:
        found = auto.compress(
            given,
            train,
            val,
            size=size,
            max_bytes=max_bytes,
            max_accuracy_drop=max_accuracy_drop,
            int8=int8,
            target=target,
            path=path,
            epochs=epochs,
            time_budget=time_budget,
            progress=progress,
        )
    inputs.say(found, as_json=as_json, text=f"{found}\n{path}")
    if html is not None:
        found.to_html(html)
