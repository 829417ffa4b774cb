"""The application: its subcommands, and how errors are shown."""

import functools
from collections.abc import Callable
from typing import Any

import typer
from rich.console import Console
from rich.text import Text

import keras_dlopt
from keras_dlopt.cli.compare import compare, sensitivity
from keras_dlopt.cli.compress import compress
from keras_dlopt.cli.demo import demo
from keras_dlopt.cli.doctor import doctor
from keras_dlopt.cli.export import export
from keras_dlopt.cli.inspect import decompress, inspect
from keras_dlopt.cli.measure import measure
from keras_dlopt.cli.plan import plan
from keras_dlopt.cli.quantize import quantize
from keras_dlopt.cli.tasks import tasks
from keras_dlopt.cli.tpu_check import tpu_check
from keras_dlopt.errors import DloptError

BAD_INPUT, INTERRUPTED = 2, 130

app = typer.Typer(
    name="keras-dlopt",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    # A traceback is for faults of the program; it stays as Python prints it.
    pretty_exceptions_enable=False,
)


def told(command: Callable[..., None]) -> Callable[..., None]:
    """The command with errors that the user can mend shown as one message.

    They end it with exit code 2, an interrupt with 130. Anything else is a fault of the
    program and shows its traceback.
    """

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            # Help has been shown by now, without Keras.
            keras_dlopt.register()
            command(*args, **kwargs)
        except DloptError as error:
            _say("Error", str(error))
            raise typer.Exit(BAD_INPUT) from None
        except KeyboardInterrupt:
            _say("Stopped", "nothing was written.")
            raise typer.Exit(INTERRUPTED) from None

    return wrapped


def _say(word: str, text: str) -> None:
    # Text: square brackets in a message are not markup.
    console = Console(stderr=True, soft_wrap=True)
    console.print(Text.assemble((f"{word}: ", "bold red"), text))


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"keras-dlopt {keras_dlopt.__version__}")
        raise typer.Exit()


@app.callback()
def _options(
    version: bool = typer.Option(
        False, "--version", callback=_show_version, is_eager=True, help="Show version."
    ),
) -> None:
    """Train Keras 3 models better, make them smaller and run them faster."""


for _command in (
    *(compress, quantize, export, inspect, decompress),
    *(compare, measure, doctor, sensitivity),
    *(tpu_check, plan, tasks, demo),
):
    app.command()(told(_command))


def main() -> None:
    """Runs the command and ends the process."""
    app()
