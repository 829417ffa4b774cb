"""Which weights a selector means, and the order in which a model's layers stand."""

import difflib
from collections.abc import Iterable, Sequence
from typing import Any

import keras

from keras_dlopt import checks
from keras_dlopt.errors import ConfigError, ModelError
from keras_dlopt.graph.targets import Target, weight_targets
from keras_dlopt.graph.walk import check_built, walk
from keras_dlopt.select import Selector, exact_paths
from keras_dlopt.transforms.updating import hosts

SHOWN = 20


def plain_part(model: Any) -> Any:
    """The model inside a transformed one, whose paths recipes speak of."""
    found = hosts(model)
    return found[0].model if found and found[0] is model else model


def weights_of(model: Any) -> list[Target]:
    """The floating-point weights of a built model, transformed or not."""
    check_built(model)
    return weight_targets(plain_part(model))


def selected(
    targets: Sequence[Target], selector: Any, *, name: str = "select"
) -> list[Target]:
    """The targets that a selector means.

    Raises:
        ConfigError: for anything but a selector, for one that means nothing, and for a
            path of `at` that is no weight; the text has the nearest ones.
    """
    checks.instance(
        selector,
        Selector,
        name=name,
        wanted="a selector",
        hint="Write for example keras_dlopt.named('kernel').",
    )
    paths = [target.path for target in targets]
    for path in sorted(exact_paths(selector) - set(paths)):
        raise ConfigError(
            f"{name} names {path!r}, which is no weight of the model. "
            f"{near(path, paths)}"
        )
    found = [target for target in targets if selector(target)]
    if not found:
        raise ConfigError(
            f"{name} {selector.to_dict()} means no weight of the model. "
            f"{near('', paths)}"
        )
    return found


def near(path: str, paths: Iterable[str]) -> str:
    """The sentence that names what is near a path, or else what there is."""
    known = list(dict.fromkeys(paths))
    close = difflib.get_close_matches(path, known, n=3) if path else []
    if close:
        return f"Near it: {', '.join(map(repr, close))}."
    more = " ..." if len(known) > SHOWN else ""
    return f"There are: {', '.join(map(repr, known[:SHOWN]))}{more}."


def layer_at(model: Any, path: str) -> tuple[Any, ...]:
    """The layer at a path with those around it, the model first.

    Raises:
        ConfigError: if there is none; the text has the nearest ones.
    """
    known = {place: parents for place, _, parents in walk(model) if place}
    if path not in known:
        raise ConfigError(
            f"There is no layer {path!r} in {model.name!r}. {near(path, known)}"
        )
    return known[path]


def by_depth(model: keras.Model) -> list[list[Target]]:
    """The weights in groups from the inputs to the outputs, a kernel a group.

    What belongs to no kernel of its own (biases, normalization) is in the group of the
    kernel before it.

    Raises:
        ModelError: for a model without weights of two dimensions.
    """
    groups: list[list[Target]] = []
    first: list[Target] = []
    layer: Any = None
    for target in weights_of(model):
        opens = target.layer is not layer and any(
            len(w.shape) > 1 for w in target.layer.weights
        )
        if opens:
            groups.append([])
        layer = target.layer
        (groups[-1] if groups else first).append(target)
    if not groups:
        raise ModelError(
            f"{model.name!r} has no kernel, so its layers have no order. Give the "
            "weights by selectors."
        )
    groups[0] = first + groups[0]
    return groups
