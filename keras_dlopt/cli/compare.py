"""`keras-dlopt compare` and `sensitivity`."""

from typing import Annotated

import numpy as np
import typer
from rich.console import Console

from keras_dlopt.cli import inputs

TASK = "classification, multi-label, segmentation or regression; by the labels if left."


def compare(
    before: inputs.Model,
    after: inputs.Model,
    data: inputs.Data,
    task: Annotated[str | None, typer.Option(help=TASK)] = None,
    html: inputs.Html = None,
    as_json: inputs.Json = False,
) -> None:
    """Compare two models: accuracy, churn, calibration, bytes."""
    from keras_dlopt import auto, report

    first, second = (
        inputs.model_in(before, compiled=True),
        inputs.model_in(after, compiled=True),
    )
    examples = inputs.examples_in(data, first)
    test = examples.test if hasattr(examples, "test") else examples
    for one in (first, second):
        auto.check_fits(one, test)
    names = getattr(examples, "class_names", ())
    if task is None:
        # What no names of classes belong to, and is no batches, may be numbers.
        y = np.asarray(test[1]) if isinstance(test, tuple | list) else np.zeros(1)
        numbers = y.dtype.kind == "f" and not (y == np.rint(y)).all()
        task = "regression" if numbers else "classification"
    found = report.compare(
        first,
        second,
        test,
        task=task,
        names=(before.name, after.name),
        class_names=names
        if getattr(first, "output_shape", None) == (None, len(names))
        else (),
    )
    if as_json:
        inputs.say(found, as_json=True)
    else:
        Console().print(found)
    if html is not None:
        found.to_html(html)


def sensitivity(
    model: inputs.Model,
    data: inputs.Data,
    as_json: inputs.Json = False,
) -> None:
    """Measure what is lost when one weight at a time is compressed."""
    from keras_dlopt import auto
    from keras_dlopt.auto.training import known_loss

    given = inputs.model_in(model, compiled=True)
    train, val = inputs.parts_of(inputs.examples_in(data, given))
    judged = train if val is None else val
    auto.check_fits(given, judged)
    loss, _ = known_loss(given, judged, None)
    found = auto.sensitivity(given, judged, loss=loss)
    inputs.say(found, as_json=as_json, text=found.table())
