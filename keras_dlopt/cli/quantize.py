"""`keras-dlopt quantize`."""

import pathlib
from typing import Annotated

import typer

from keras_dlopt.cli import inputs

STORAGE = "int4, float16, dynamic or lookup; as quantized if left."
EXAMPLES = "To calibrate on, without labels."


def quantize(
    model: inputs.Model,
    data: inputs.Data,
    out: Annotated[
        pathlib.Path | None, typer.Option(help="File ending in .tflite.")
    ] = None,
    target: inputs.Target = "xnnpack",
    io: Annotated[
        str | None, typer.Option(help="float or int8; by the target if left.")
    ] = None,
    storage: Annotated[str | None, typer.Option(help=STORAGE)] = None,
    mixed: Annotated[
        bool, typer.Option("--mixed", help="Leave in float what hurts most.")
    ] = False,
    examples: Annotated[int, typer.Option(help=EXAMPLES)] = 512,
    as_json: inputs.Json = False,
) -> None:
    """Write a model as a checked int8 LiteRT file, without training."""
    from keras_dlopt import auto

    given = inputs.model_in(model, compiled=True)
    train, _ = inputs.parts_of(inputs.examples_in(data, given))
    auto.check_fits(given, train)
    found = auto.to_int8(
        given,
        out or model.with_suffix(".tflite"),
        train[0] if isinstance(train, tuple | list) else train,
        target=target,
        io=io,
        storage=storage,
        mixed="auto" if mixed else None,
        limit=examples,
    )
    report = found.export
    plain = inputs.of_export(report)
    plain |= {"islands": list(report.islands), "parameters": found.parameters}
    inputs.say(plain, as_json=as_json, text=f"{found}\n{report}")
