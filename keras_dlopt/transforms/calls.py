"""How the layers of a wrapped model are called while their weights are computed."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras

from keras_dlopt import _compat
from keras_dlopt.errors import ModelError
from keras_dlopt.graph import hooks
from keras_dlopt.graph.targets import Target
from keras_dlopt.graph.walk import layers_below


class Calls:
    """What must be different in the calls of layers whose weights are computed.

    A `call` under `@tf.function` runs as the Python function behind it, since a trace
    of its own keeps the weights of one moment. A layer made under `keras.RematScope`
    keeps its activations: what is computed a second time, for the gradients, would see
    the weights without their transforms.

    Args:
        wrapped: the layer or model that is run.
        targets: where its transforms act.

    Raises:
        ModelError: for weights that their layer itself assigns in each call.
    """

    def __init__(self, wrapped: Any, targets: list[Target]):
        for target in targets:
            _refuse_self_written(target)
        self.taps = []
        for layer in (wrapped, *layers_below(wrapped)):
            plain = _compat.untraced_call(layer)
            if plain is not None:
                self.taps.append((layer, _instead(plain)))
        around = {id(p): p for t in targets for p in (*t.parents, t.layer)}
        self.recomputing = [p for p in around.values() if _compat.recomputes(p)]

    @contextlib.contextmanager
    def hooked(self, taps: list[Any]) -> Iterator[None]:
        """Inside, layers are called in that way, and with these hooks around it."""
        with (
            _compat.without_recomputing(self.recomputing),
            hooks.hooked([*self.taps, *taps]),
        ):
            yield


def _instead(plain: Callable[..., Any]) -> hooks.Hook:
    return lambda _call, given: plain(*given.args, **given.kwargs)


def _refuse_self_written(target: Target) -> None:
    writers = [
        p for p in target.parents if isinstance(p, keras.layers.SpectralNormalization)
    ]
    if writers and target.kind == "weight" and target.name != "bias":
        raise ModelError(
            f"{writers[-1].name!r}, a SpectralNormalization, assigns the weight "
            f"{target.path!r} in each training step, so no transform can compute it. "
            "Leave it out of the recipe, such as by & ~inside(keras.layers."
            "SpectralNormalization), or transform the layer inside of it alone."
        )
