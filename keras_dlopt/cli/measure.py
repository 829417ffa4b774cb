"""`keras-dlopt measure`."""

from typing import Annotated

import typer
from rich.console import Console

from keras_dlopt.cli import inputs

RUNTIMES = "graph, xla, litert, onnxruntime, openvino; each file's own if left."
NPU = "Estimate by Arm's Vela for .tflite files, such as ethos-u55-128."


def measure(
    files: inputs.Models,
    runtime: Annotated[list[str] | None, typer.Option(help=RUNTIMES)] = None,
    threads: Annotated[int, typer.Option(help="Of each runtime.")] = 1,
    calls: Annotated[int, typer.Option(help="Timed calls of each.")] = 50,
    no_time: Annotated[bool, typer.Option("--no-time", help="Count only.")] = False,
    npu: Annotated[str | None, typer.Option(help=NPU)] = None,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print Markdown, not a drawn table.")
    ] = False,
    as_json: inputs.Json = False,
) -> None:
    """Measure files side by side: MACs, memory, bytes, time."""
    from keras_dlopt import report

    report.limit_threads(threads)
    found = report.measure(
        files,
        runtimes=() if no_time else runtime,
        threads=threads,
        calls=calls,
        npu=npu,
        safe_mode=not inputs.trusted().unsafe,
    )
    if as_json:
        inputs.say(found, as_json=True)
    elif markdown:
        typer.echo(found.to_markdown())
    else:
        Console().print(report.rich_table(found.table()))
