"""Transforms of layer inputs and outputs, without touching any layer's config.

`call` is replaced on the layer *instance*, once, by a function that looks up what is
active in its thread: outside of a transformed model's own call that is nothing, and the
layer behaves as before. Keras honours an instance's `call` in Sequential, Functional,
subclassed and nested models alike.
"""

import contextlib
import functools
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras

# Per thread, as MirroredStrategy traces each replica in a thread of its own.
_ACTIVE = threading.local()
_HOOKED = "_dlopt_hooked"

Taps = dict[tuple[int, str], Callable[[Any], Any]]
# Called with the layer's own call, its arguments and what it returned.
Watchers = dict[int, Callable[[Callable[..., Any], tuple, dict[str, Any], Any], None]]


@contextlib.contextmanager
def active(taps: Taps) -> Iterator[None]:
    """Makes `taps` the transforms that hooked layers of this thread apply."""
    before = getattr(_ACTIVE, "taps", {})
    _ACTIVE.taps = taps
    try:
        yield
    finally:
        _ACTIVE.taps = before


@contextlib.contextmanager
def watched(watchers: Watchers) -> Iterator[None]:
    """Shows what hooked layers take and return, by the id of the layer.

    A watcher sees inputs after their quantizer and outputs before theirs. The layers
    must have been given to `install`.
    """
    before = getattr(_ACTIVE, "watchers", {})
    _ACTIVE.watchers = watchers
    try:
        yield
    finally:
        _ACTIVE.watchers = before


def install(layers: Iterable[keras.layers.Layer]) -> None:
    """Hooks the layers, each once."""
    for layer in layers:
        if not getattr(layer.call, _HOOKED, False):
            layer.call = _hook(layer, layer.call)


def tap(transform: Any, slot: Any, context: Any) -> Callable[[Any], Any]:
    """The function from tensor to tensor that a hooked layer applies."""

    def apply(x):
        return transform.apply(x, slot.tensors(), context)

    return apply


def _hook(layer, call):
    # `wraps` keeps the signature, which Keras reads for `training` and `mask`.
    @functools.wraps(call)
    def hooked(*args, **kwargs):
        taps = getattr(_ACTIVE, "taps", {})
        on_input = taps.get((id(layer), "input"))
        on_output = taps.get((id(layer), "output"))
        if on_input is not None and args:
            args = (_mapped(on_input, args[0]), *args[1:])
        outputs = call(*args, **kwargs)
        watch = getattr(_ACTIVE, "watchers", {}).get(id(layer))
        if watch is not None:
            watch(call, args, kwargs, outputs)
        return outputs if on_output is None else _mapped(on_output, outputs)

    setattr(hooked, _HOOKED, True)
    return hooked


def _mapped(function, structure):
    return keras.tree.map_structure(
        lambda x: function(x) if keras.backend.is_float_dtype(x.dtype) else x,
        structure,
    )
