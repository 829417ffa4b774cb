"""`keras-dlopt compare` and `sensitivity`."""

from rich.console import Console

from keras_dlopt.cli import inputs


def compare(
    before: inputs.Model,
    after: inputs.Model,
    data: inputs.Data,
    html: inputs.Html = None,
    as_json: inputs.Json = False,
) -> None:
    """Compare two models on test examples: accuracy, churn, calibration, bytes."""
    from keras_dlopt import auto, report

    examples = inputs.examples_in(data)
    test = examples.test if hasattr(examples, "test") else examples
    first, second = inputs.model_in(before), inputs.model_in(after)
    for one in (first, second):
        auto.check_fits(one, test)
    found = report.compare(first, second, test, names=(before.name, after.name))
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
    """Measure what the model loses when one weight at a time is compressed."""
    from keras_dlopt import auto
    from keras_dlopt.auto.training import known_loss

    train, val = inputs.parts_of(inputs.examples_in(data))
    judged = train if val is None else val
    given = inputs.model_in(model)
    auto.check_fits(given, judged)
    loss, _ = known_loss(given, judged, None)
    found = auto.sensitivity(given, judged, loss=loss)
    inputs.say(found, as_json=as_json, text=found.table())
