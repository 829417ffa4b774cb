"""`keras-dlopt data write`, `info` and `verify`: data sets as shards."""

import pathlib
from typing import Annotated, Any

import numpy as np
import typer

from keras_dlopt.cli import inputs

FOLDER = "Folder of the shards."
PART = "Of a data set with several: train, val or test."
CODING = "For the examples: png, webp, 'jpeg 90', 'levels 8'; without loss if left."
Folder = Annotated[pathlib.Path, typer.Argument(help=FOLDER)]


def write(
    folder: Folder,
    data: inputs.Data,
    part: Annotated[str, typer.Option(help=PART)] = "train",
    coding: Annotated[str | None, typer.Option(help=CODING)] = None,
    shard_examples: Annotated[int, typer.Option(help="Examples a file.")] = 16_384,
    level: Annotated[int, typer.Option(help="Of zstandard, 1 (fast) to 22.")] = 22,
    as_json: inputs.Json = False,
) -> None:
    """Write a data set as shards. What is there already stays."""
    from keras_dlopt import checks
    from keras_dlopt.data import write_shards

    checks.choice(part, name="part", choices=("train", "val", "test"))
    given = inputs.examples_in(data)
    examples = getattr(given, part) if hasattr(given, "train") else given
    try:
        report = write_shards(
            examples,
            folder,
            coding=coding if coding is None else (coding, None),
            shard_examples=shard_examples,
            level=level,
        )
    except KeyboardInterrupt:
        typer.echo(f"Stopped: {folder} has whole shards; write goes on.", err=True)
        raise typer.Exit(130) from None
    inputs.say(report, as_json=as_json)


def info(folder: Folder, as_json: inputs.Json = False) -> None:
    """Tell what shards hold, from their headers."""
    from keras_dlopt.data.shards.whole import opened_ones, whole_ones

    header, blocks = opened_ones(folder, skip=False)
    files = whole_ones(folder)
    arrays = [(np.dtype(a.dtype).name, a.shape, a.filter) for a in header.arrays]
    keys = ("dtype", "shape", "coding")
    found: dict[str, Any] = {
        "examples": sum(one.examples for one in blocks),
        "files": len(files),
        "bytes": sum(path.stat().st_size for path in files),
        "arrays": [dict(zip(keys, one, strict=True)) for one in arrays],
    }
    lines = [f"{found['examples']:,} examples in {len(files)} shards"]
    lines[0] += f", {found['bytes']:,} bytes"
    lines += [f"{name} {shape}, coded as {how!r}" for name, shape, how in arrays]
    inputs.say(found, as_json=as_json, text="\n".join(lines))


def verify(folder: Folder, as_json: inputs.Json = False) -> None:
    """Read all shards and compare every array with its SHA-256."""
    from keras_dlopt.data import verify_shards

    count = verify_shards(folder)
    text = f"{count:,} examples, all as they were written"
    inputs.say({"examples": count, "verified": True}, as_json=as_json, text=text)


COMMANDS = (write, info, verify)
