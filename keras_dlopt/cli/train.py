"""`keras-dlopt train`, `prune` and `lr-find`."""

import pathlib
from typing import Annotated

import typer

from keras_dlopt.cli import inputs
from keras_dlopt.cli.progress import shown

OUT = "File to write: .keras, .dlopt, or .tflite. Beside the model if left."
RECIPE = (
    "int8, pruned-80, clustered-16, deep-compression, pruned-80-int8 and the like with "
    "other numbers, or a .json file; plain training if left."
)
Out = Annotated[pathlib.Path | None, typer.Option(help=OUT)]
Rate = Annotated[float, typer.Option(help="At the start; it falls to 0.")]
Batch = Annotated[int, typer.Option(help="Examples a step.")]


def train(
    model: inputs.Model,
    data: inputs.Data,
    recipe: Annotated[str | None, typer.Option(help=RECIPE)] = None,
    out: Out = None,
    epochs: inputs.Epochs = None,
    rate: Rate = 1e-3,
    batch_size: Batch = 64,
    target: inputs.Target = "xnnpack",
    seed: inputs.Seed = 0,
    as_json: inputs.Json = False,
    quiet: inputs.Quiet = False,
) -> None:
    """Train a model on, plain or under a recipe, and write its file."""
    from keras_dlopt import auto

    path = inputs.out_of(out, model, ".trained.keras")
    given = inputs.model_in(model, compiled=True)
    train, val = inputs.parts_of(inputs.examples_in(data, given))
    with shown(quiet or as_json) as progress:
        found = auto.train(
            given,
            train,
            val,
            recipe=recipe,
            path=path,
            epochs=epochs,
            rate=rate,
            batch_size=batch_size,
            target=target,
            seed=seed,
            progress=progress,
        )
    inputs.say(found, as_json=as_json, text=str(found))


def prune(
    model: inputs.Model,
    data: inputs.Data,
    sparsity: Annotated[float, typer.Option(help="Share of zeros, such as 0.8.")],
    int8: Annotated[
        bool, typer.Option("--int8", help="Weights and activations of 8 bits, too.")
    ] = False,
    out: Out = None,
    epochs: inputs.Epochs = None,
    rate: Rate = 1e-3,
    batch_size: Batch = 64,
    target: inputs.Target = "xnnpack",
    seed: inputs.Seed = 0,
    as_json: inputs.Json = False,
    quiet: inputs.Quiet = False,
) -> None:
    """Train a model with more and more zeros, and write its file."""
    from keras_dlopt import checks

    percent = 100 * checks.fraction(sparsity, name="sparsity")
    train(
        model,
        data,
        recipe=f"pruned-{percent:.5g}{'-int8' if int8 else ''}",
        out=inputs.out_of(out, model, ".tflite" if int8 else ".pruned.keras"),
        epochs=epochs,
        rate=rate,
        batch_size=batch_size,
        target=target,
        seed=seed,
        as_json=as_json,
        quiet=quiet,
    )


def lr_find(
    model: inputs.Model,
    data: inputs.Data,
    low: Annotated[float, typer.Option(help="First rate.")] = 1e-6,
    high: Annotated[float, typer.Option(help="Last rate.")] = 1.0,
    steps: Annotated[int, typer.Option(help="Steps of the test.")] = 100,
    batch_size: Batch = 64,
    plot: Annotated[
        pathlib.Path | None, typer.Option(help="PNG file to draw the test to.")
    ] = None,
    seed: inputs.Seed = 0,
    as_json: inputs.Json = False,
) -> None:
    """Find a rate for train: a short test while the rate grows."""
    from keras_dlopt import auto

    given = inputs.model_in(model, compiled=True)
    examples, _ = inputs.parts_of(inputs.examples_in(data, given))
    found = auto.find_rate(
        given,
        examples,
        low=low,
        high=high,
        steps=steps,
        batch_size=batch_size,
        seed=seed,
    )
    told = {"suggestion": found.suggestion, "diverged": found.diverged}
    curve = {"rates": found.rates.tolist(), "losses": found.losses.tolist()}
    if found.suggestion is None:
        text = "The loss fell at no rate. Look at the data, or at --low and --high."
    else:
        text = f"suggested rate: {found.suggestion:.2g} (train --rate)"
    if found.diverged is not None:
        text += f"\nthe loss exploded from: {found.diverged:.2g}"
    if plot is not None:
        found.plot(plot)
    inputs.say(told | curve, as_json=as_json, text=text)
