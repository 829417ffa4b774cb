"""Progress on the terminal: bars there, plain lines elsewhere."""

import contextlib
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.progress import Progress


class Bars:
    """One bar a stage, drawn by rich."""

    def __init__(self, progress: Progress):
        self.progress = progress
        self.task: Any = None

    def stage(self, name: str, steps: int) -> None:
        """Ends the bar of the last stage and begins one."""
        self.finish()
        self.task = self.progress.add_task(name, total=steps or None, note="")

    def advance(self, note: str) -> None:
        """Moves the bar by one step."""
        self.progress.update(self.task, advance=1, note=note)

    def finish(self) -> None:
        """Fills the bar."""
        if self.task is not None:
            done = self.progress.tasks[-1].total or 1
            self.progress.update(self.task, total=done, completed=done)


class Lines:
    """One line a stage, for logs."""

    def __init__(self, console: Console):
        self.console = console
        self.number = 0

    def stage(self, name: str, steps: int) -> None:
        """Prints the stage's name and length."""
        self.number += 1
        length = f", {steps:,} steps" if steps else ""
        self.console.print(f"{self.number}. {name}{length}", highlight=False)

    def advance(self, note: str) -> None:
        """Prints nothing."""


@contextlib.contextmanager
def shown(quiet: bool = False) -> Iterator[Bars | Lines]:
    """Progress on stderr, so that stdout holds the results alone."""
    console = Console(stderr=True, quiet=quiet)
    if quiet or not console.is_terminal:
        yield Lines(console)
        return
    from keras_dlopt.trials.progress import bar

    with bar(console) as progress:
        bars = Bars(progress)
        yield bars
        bars.finish()
