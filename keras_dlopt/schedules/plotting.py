"""A picture of any schedule."""

import os
from typing import Any

from keras_dlopt.drawing import AFTER, drawing, finished
from keras_dlopt.schedules.parts import as_schedule, check_steps, value_of


def plot(
    schedule: Any,
    steps: int,
    path: str | os.PathLike[str] | None = None,
    *,
    points: int = 1000,
    label: str | None = None,
) -> Any:
    """Draws a schedule over training steps.

    Args:
        schedule: any schedule, Keras' own included, or a float.
        steps: the curve goes from step 0 to this one.
        path: of the file to write, `.png` or `.svg`; None writes nothing.
        points: how many values are computed at most.
        label: of the y axis; "learning rate" if None.

    Returns:
        A matplotlib figure, not shown and not registered with pyplot.

    Raises:
        ConfigError: for no schedule, or no steps.

    Example:
        >>> from keras_dlopt.schedules import OneCycle
        >>> figure = plot(OneCycle(0.1, steps=100), 100)
        >>> len(figure.axes[0].lines[0].get_xdata())
        101
    """
    schedule = as_schedule(schedule)
    stride = max(
        check_steps(steps, name="steps") // check_steps(points, name="points"), 1
    )
    at = list(range(0, steps + 1, stride))
    figure, axes = drawing(3.2)
    axes.plot(at, [value_of(schedule, step) for step in at], color=AFTER)
    axes.set_xlabel("training step")
    axes.set_ylabel(label or "learning rate")
    axes.set_title(type(schedule).__name__)
    axes.grid(alpha=0.3)
    return finished(figure, path)
