"""The application: its subcommands, and how errors are shown."""

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

import keras_dlopt
from keras_dlopt.cli import inputs
from keras_dlopt.cli.compare import compare, sensitivity
from keras_dlopt.cli.compress import compress
from keras_dlopt.cli.data import COMMANDS as DATA_COMMANDS
from keras_dlopt.cli.demo import demo
from keras_dlopt.cli.doctor import doctor
from keras_dlopt.cli.export import export
from keras_dlopt.cli.inspect import decompress
from keras_dlopt.cli.inspect import inspect as inspect_command
from keras_dlopt.cli.measure import measure
from keras_dlopt.cli.plan import plan
from keras_dlopt.cli.quantize import quantize
from keras_dlopt.cli.tasks import tasks
from keras_dlopt.cli.tpu_check import tpu_check
from keras_dlopt.cli.train import lr_find, prune, train
from keras_dlopt.errors import DloptError

FAULT, BAD_INPUT, INTERRUPTED = 1, 2, 130

app = typer.Typer(
    name="keras-dlopt",
    no_args_is_help=True,
    rich_markup_mode=None,
    # Errors are one line; `--debug` shows Python's own traceback.
    pretty_exceptions_enable=False,
)
_DEBUG = typer.Option("--debug", help="Show the traceback of an error.")
_IMPORT = typer.Option(
    "--import", metavar="MODULE", help="That registers classes of your own."
)


def told(command: Callable[..., None]) -> Callable[..., None]:
    """The command with errors as one message, and the options that all commands have.

    Errors that the user can mend end it with exit code 2, an interrupt with 130, and
    anything else, which may be a fault of the program, with 1.
    """
    kinds = list(command.__annotations__.values())
    takes_model = any(
        kind in kinds for kind in (inputs.Model, inputs.AnyModel, inputs.Models)
    )

    @functools.wraps(command)
    def wrapped(*args: Any, debug: bool = False, **kwargs: Any) -> Any:
        if takes_model:
            imports = tuple(kwargs.pop("module", None) or ())
            inputs.TRUST.set(inputs.Trust(kwargs.pop("unsafe", False), imports))
        try:
            # Help has been shown by now, without Keras.
            keras_dlopt.register()
            command(*args, **kwargs)
        except (typer.Exit, typer.Abort, typer.BadParameter):
            raise
        except KeyboardInterrupt:
            _say("Stopped", "nothing was written.")
            raise typer.Exit(INTERRUPTED) from None
        except Exception as error:
            if debug:
                raise
            # A file that is not there, or cannot be read or written.
            of_file = isinstance(error, OSError) and error.filename is not None
            mendable = isinstance(error, DloptError) or of_file
            _say("Error", str(error) if mendable else _in_one_line(error))
            raise typer.Exit(BAD_INPUT if mendable else FAULT) from None

    more: list[tuple[str, Any, Any]] = [("debug", Annotated[bool, _DEBUG], False)]
    if takes_model:
        more.append(("unsafe", Annotated[bool, inputs.UNSAFE], False))
        more.append(("module", Annotated[list[str] | None, _IMPORT], None))
    given = inspect.signature(command)
    added = [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind
        )
        for name, kind, default in more
    ]
    wrapped.__annotations__ = {**command.__annotations__} | {n: k for n, k, _ in more}
    wrapped.__signature__ = given.replace(  # type: ignore[attr-defined]
        parameters=[*given.parameters.values(), *added]
    )
    return wrapped


def _in_one_line(error: Exception) -> str:
    """An error that nobody foresaw; Keras' and TensorFlow's go over many lines."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = lines[0][:300] if lines else "no reason is given"
    return f"{type(error).__name__}: {told} (--debug shows where it comes from.)"


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
    *(compress, train, prune, quantize, export),
    *(inspect_command, decompress, compare, measure, doctor, sensitivity),
    *(lr_find, tpu_check, plan, tasks, demo),
):
    app.command()(told(_command))

_data = typer.Typer(rich_markup_mode=None, no_args_is_help=True)
for _of_data in DATA_COMMANDS:
    _data.command()(told(_of_data))
app.add_typer(_data, name="data", help="Data sets in compressed, checked files.")


def main() -> None:
    """Runs the command and ends the process."""
    app()
