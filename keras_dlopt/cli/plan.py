"""`keras-dlopt plan`: what this machine would train on, and why."""

import typer

from keras_dlopt.cli import inputs


def plan(
    kind: str = typer.Argument("auto", help="auto, mirrored, tpu, multi_worker, cpu:N"),
    batch_size: int = typer.Option(0, help="Examples in one step; 0: not given."),
    per_replica: bool = typer.Option(False, help="The batch is of one replica."),
    rate_rule: str = typer.Option("linear", help="linear, sqrt or none"),
    as_json: inputs.Json = False,
) -> None:
    """Show the devices, batch and learning rate of a training here."""
    from keras_dlopt import distribute

    made = distribute.plan(
        kind,
        batch_size=batch_size or None,
        per_replica=per_replica,
        rate_rule=rate_rule,
    )
    inputs.say(made, as_json=as_json)
