"""`doctor`: looks a model over in seconds, and names the call for what it finds."""

import time
from collections.abc import Callable, Iterable
from typing import Any

import keras

from keras_dlopt import checks
from keras_dlopt.errors import ModelError
from keras_dlopt.graph.trace import trace
from keras_dlopt.measure.costs import check_sizes, costs
from keras_dlopt.post_training.data import Batches
from keras_dlopt.report.health import activations, channels, integers, numbers
from keras_dlopt.report.health.findings import KINDS, Examination, Finding
from keras_dlopt.report.variants import plain_model
from keras_dlopt.surgery.dependencies import dependencies

TARGETS = ("float", "int8", "ethos-u")


def doctor(
    model: keras.Model, data: Any = None, target: str | None = None
) -> Examination:
    """Examines a model: what is dead, doubled, at the edge, or in the way of int8.

    Without data, from the graph and the weights alone:

    - channels that are zero, constant or never read, and what leaves with them;
    - channels that carry what another one carries; outputs that no input moves;
    - layers that LiteRT's int8 has no form of here, and the way out; what folds;
    - weights that are not finite or denormal, kernels too small for int8, variances
      below epsilon, normalizations with huge factors;
    - where parameters and multiply-accumulates are.

    With data also the ranges of activations: outliers, saturation, silent channels.
    Nothing is predicted that was not tried: for an NPU, Arm's compiler has the figures.

    Args:
        model: a built Keras model; it stays as it is. A `TransformedModel` is examined
            as `finalize` makes it.
        data: a batch of inputs or some batches, without labels; 256 examples are used.
        target: `"float"`, `"int8"` or `"ethos-u"`; None looks at int8 too.

    Raises:
        ModelError: for a model that is not built, or whose inputs are not known.
        DataError: for data that is empty or does not fit the model.
        ConfigError: for another target.

    Example:
        >>> net = keras.Sequential([
        ...     keras.Input((8,)), keras.layers.Dense(4, activation="relu", name="a"),
        ...     keras.layers.Dense(2, name="b")])
        >>> kernel = net.layers[0].kernel.numpy()
        >>> kernel[:, 1] = 0
        >>> net.layers[0].set_weights([kernel, np.zeros(4)])
        >>> found = doctor(net)
        >>> [(f.kind, f.where, f.remedy) for f in found.findings]
        [('dead channels', 'a', 'small, report = dlopt.surgery.remove_dead(model)')]
        >>> found.removable_parameters
        11
    """
    began = time.perf_counter()
    if target is not None:
        checks.choice(target, name="target", choices=TARGETS)
    model = plain_model(model)
    batches = None
    if data is not None:  # read once, since a generator ends
        batches = Batches(model, data, limit=activations.EXAMPLES)
    example = None if batches is None else next(iter(batches))
    check_sizes(model, example)
    graph = trace(model, example)
    counted = costs(model, example, graph=graph)
    notes: list[str] = []
    findings, removable = _channels(model, example, notes)
    looks: list[Callable[[], Iterable[Finding]]] = [
        lambda: channels.constant_results(model, graph),
        lambda: numbers.risky(model),
        lambda: integers.foldings(model, graph),
    ]
    if target != "float":
        looks.append(lambda: integers.blockers(graph, npu=target == "ethos-u"))
        looks.append(lambda: integers.scales(model))
    seen = [] if batches is None else activations.look(model, graph, batches)
    looks.append(lambda: activations.judged(seen, graph))
    for look in looks:
        findings += look()
    return Examination(
        model=model.name,
        costs=counted,
        findings=tuple(sorted(findings, key=lambda f: KINDS.index(f.kind))),
        removable_channels=removable.channels,
        removable_parameters=removable.parameters,
        removable_macs=removable.macs,
        ranges=tuple(one.range for one in seen),
        notes=tuple(notes),
        seconds=time.perf_counter() - began,
    )


def _channels(
    model: Any, example: Any, notes: list[str]
) -> tuple[list[Finding], channels.Removable]:
    try:
        found = dependencies(model, example=example)
    except ModelError as error:
        notes.append(f"Channels were not looked at: {error}")
        return [], channels.Removable(0, 0, 0)
    findings, removable = channels.dead(found)
    return [*findings, *channels.twins(found)], removable
