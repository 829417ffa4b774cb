"""`keras-dlopt tasks`: many trials of one function, from a file."""

import json
import pathlib
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from keras_dlopt.cli import inputs
from keras_dlopt.errors import ConfigError, DloptError
from keras_dlopt.files import MAX_JSON, parse_json, read_limited


def tasks(
    target: str = typer.Argument(help="file.py:function, or module:function"),
    file: pathlib.Path = typer.Argument(  # noqa: B008
        help="JSON list with the keyword arguments of each trial"
    ),
    store: pathlib.Path = typer.Option(  # noqa: B008
        pathlib.Path("tasks.db"), help="SQLite file; finished trials in it are kept"
    ),
    slots: int = typer.Option(0, help="Trials at a time; 0: one per GPU or two cores."),
    seconds: float = typer.Option(3600.0, help="Longest time of one trial."),
    retries: int = typer.Option(0, help="How often to run a failed trial again."),
    executor: str = typer.Option("processes", help="processes or ray"),
    as_json: inputs.Json = False,
) -> None:
    """Run a function once per task, in processes; resumable."""
    from keras_dlopt.trials import run_tasks

    console = Console()
    given = _read(file)
    try:
        done = run_tasks(
            target,
            given,
            store=store,
            slots=slots or None,
            seconds=seconds,
            retries=retries,
            executor=executor,
            progress=console.is_terminal and not as_json,
        )
    except KeyboardInterrupt:
        typer.echo(f"Stopped: finished trials are in {store}.", err=True)
        raise typer.Exit(130) from None
    table = Table("task", "value", "seconds", "state")
    for outcome in done:
        value = "" if outcome.value is None else f"{outcome.value:.6g}"
        state = outcome.state if not outcome.error else outcome.error.splitlines()[-1]
        table.add_row(json.dumps(outcome.task), value, f"{outcome.seconds:.1f}", state)
    if as_json:
        inputs.say({"trials": done}, as_json=True)
    else:
        console.print(table)
    if any(outcome.state != "done" for outcome in done):
        raise typer.Exit(1)


def _read(file: pathlib.Path) -> list[dict[str, Any]]:
    try:
        given = parse_json(read_limited(file, MAX_JSON))
    except DloptError as error:
        raise ConfigError(
            f"{file} must hold a JSON list of objects, one per trial ({error})."
        ) from None
    if not isinstance(given, list) or not all(isinstance(t, dict) for t in given):
        raise ConfigError(
            f"{file} must hold a JSON list of objects, one per trial, such as "
            '[{"seed": 0}, {"seed": 1}].'
        )
    return given
