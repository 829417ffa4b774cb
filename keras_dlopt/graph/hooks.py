"""The one way to stand between a layer and its callers, without touching its config.

A hook is a function around a call: it gets what is called (the layer, or the hook
before it) and what that is given, and returns the outputs. While a layer is hooked its
instance has a `call` of its own, with the signature of the first one, which Keras
reads; Keras honours it in Sequential, Functional, subclassed and nested models alike.
When the last hook is gone the layer is as it was.

`hooked` is for a while and for the thread that asks, since strategies trace each
replica in a thread of its own; `attach` is for all threads. What comes last stands
outermost: it sees the arguments first and the outputs last.
"""

import contextlib
import dataclasses
import functools
import inspect
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

import keras
from keras import ops

from keras_dlopt import _compat

Tensor = Any  # of a backend, or Keras' symbolic one

_LOCK = threading.RLock()
_THREAD = threading.local()


@dataclasses.dataclass(frozen=True, eq=False)
class Given:
    """What one call of a layer or operation is given.

    Its inputs are the tensors among all arguments, by position or by keyword, but for
    masks and the states of recurrent layers and cells.

    Attributes:
        call: what is called.
        args: what it is given by position.
        kwargs: what it is given by name.
        site: which call of the layer it is, counted from 0 since `hooked` began; a
            shared layer has several in each run of its model.
    """

    call: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    site: int = 0

    def inputs(self) -> list[Tensor]:
        """The tensors that it takes."""
        found: list[Tensor] = []

        def note(x: Tensor) -> Tensor:
            found.append(x)
            return x

        self.mapped(note)
        return found

    def tensors(self) -> list[Tensor]:
        """All tensors that it is given: its inputs, and masks and states."""
        given = keras.tree.flatten((self.args, self.kwargs))
        return [x for x in given if _is_tensor(x)]

    def mapped(self, function: Callable[[Tensor], Tensor]) -> "Given":
        """The same with a function of each input in its place."""
        names = self._names() if len(self.args) > 1 else ()
        args = list(self.args)
        for i, value in enumerate(args):
            if i >= len(names) or _is_input(names[i]):
                args[i] = _mapped(function, value)
        kwargs = {
            name: _mapped(function, value) if _is_input(name) else value
            for name, value in self.kwargs.items()
        }
        return dataclasses.replace(self, args=tuple(args), kwargs=kwargs)

    def changed(self, name: str, value: Any) -> "Given":
        """The same with another value of one argument."""
        names = self._names()[: len(self.args)]
        if name not in names:
            return dataclasses.replace(self, kwargs=self.kwargs | {name: value})
        args = list(self.args)
        args[names.index(name)] = value
        return dataclasses.replace(self, args=tuple(args))

    def _names(self) -> tuple[str, ...]:
        parameters = inspect.signature(self.call).parameters.values()
        return tuple(p.name for p in parameters if p.kind <= p.POSITIONAL_OR_KEYWORD)


Called = Callable[[Given], Any]
Hook = Callable[[Called, Given], Any]


# What a recurrent layer and its cell begin with, which no quantizer of inputs rounds.
_STATES = ("states", "initial_state")


def _is_input(name: str) -> bool:
    return name not in _STATES and not name.endswith("mask")


def _mapped(function: Callable[[Any], Any], structure: Any) -> Any:
    def one(x: Any) -> Any:
        return function(x) if _is_tensor(x) else x

    return keras.tree.map_structure(one, structure)


def _is_tensor(x: Any) -> bool:
    return ops.is_tensor(x) or isinstance(x, keras.KerasTensor)


def on(
    end: str,
    function: Callable[[Tensor], Tensor],
    *,
    site: int | None = None,
    but: Collection[int] = (),
) -> Hook:
    """The hook that puts a function of each floating-point tensor in its place.

    Args:
        end: `"input"` or `"output"` of the layer.
        function: from tensor to tensor; called once for a tensor that is given twice.
        site: of the one call that is meant; None for all.
        but: sites of calls that are left as they are.
    """

    def once() -> Callable[[Tensor], Tensor]:
        known: dict[int, tuple[Any, Any]] = {}  # held, so that no id is used twice

        def change(x: Tensor) -> Tensor:
            if not keras.backend.is_float_dtype(x.dtype):
                return x
            if id(x) not in known:
                known[id(x)] = x, function(x)
            return known[id(x)][1]

        return change

    def hook(call: Called, given: Given) -> Any:
        if given.site in but or site not in (None, given.site):
            return call(given)
        if end == "input":
            return call(given.mapped(once()))
        return _mapped(once(), call(given))

    return hook


@dataclasses.dataclass(eq=False)
class _Passing:
    """The hooks of one `hooked`, and how often each layer was called since it began."""

    hooks: dict[int, tuple[Hook, ...]] = dataclasses.field(default_factory=dict)
    calls: dict[int, int] = dataclasses.field(default_factory=dict)

    def of(self, layer: Any) -> list[Hook]:
        """The hooks of a call that begins, each told of its site."""
        site = self.calls.get(id(layer), 0)
        self.calls[id(layer)] = site + 1
        return [_told(site, hook) for hook in self.hooks.get(id(layer), ())]


def _told(site: int, hook: Hook) -> Hook:
    return lambda call, given: hook(call, dataclasses.replace(given, site=site))


@contextlib.contextmanager
def hooked(hooks: Iterable[tuple[Any, Hook]]) -> Iterator[None]:
    """Inside, calls of these layers in this thread go through their hooks.

    Args:
        hooks: pairs of a layer, or an operation between layers, and its hook; several
            of one layer stand in their order, the last outermost.
    """
    mine, layers = _Passing(), dict[int, Any]()
    for layer, hook in hooks:
        mine.hooks[id(layer)] = (*mine.hooks.get(id(layer), ()), hook)
        layers[id(layer)] = layer
    before = getattr(_THREAD, "hooks", ())
    for layer in layers.values():
        _enter(layer)
    _THREAD.hooks = (*before, mine)
    try:
        yield
    finally:
        _THREAD.hooks = before
        for layer in layers.values():
            _leave(layer)


def attach(layer: Any, hook: Hook) -> Callable[[], None]:
    """Has all calls of a layer go through a hook.

    Returns:
        What takes the hook away again; to be called once.
    """
    with _LOCK:
        place = _enter(layer)
        place.attached = (*place.attached, hook)

    def detach() -> None:
        with _LOCK:
            place.attached = tuple(h for h in place.attached if h is not hook)
            _leave(layer)

    return detach


@dataclasses.dataclass(eq=False)
class _Place:
    """A layer that is hooked: its own call, what is attached, how many use it."""

    own: Any  # of the instance; None for its class'
    through: Any = None
    attached: tuple[Hook, ...] = ()
    users: int = 0


def _place(layer: Any) -> _Place | None:
    """How a layer is hooked; None if it is not."""
    call = _compat.instance_call(layer)
    place = getattr(call, "dlopt_place", None)
    # What wraps a hooked call may have copied its attributes.
    return place if place is not None and place.through is call else None


def _enter(layer: Any) -> _Place:
    with _LOCK:
        place = _place(layer)
        if place is None:
            place = _Place(_compat.instance_call(layer))
            place.through = _through(layer, layer.call, place)
            _compat.set_instance_call(layer, place.through)
        place.users += 1
        return place


def _leave(layer: Any) -> None:
    with _LOCK:
        place = _place(layer)
        if place is None:
            return  # someone else's `call` stands there now
        place.users -= 1
        if not place.users:
            _compat.set_instance_call(layer, place.own)


def _through(layer: Any, call: Callable[..., Any], place: _Place) -> Any:
    @functools.wraps(call)
    def hooked_call(*args: Any, **kwargs: Any) -> Any:
        mine = [hook for m in getattr(_THREAD, "hooks", ()) for hook in m.of(layer)]
        inner: Called = lambda given: call(*given.args, **given.kwargs)  # noqa: E731
        for hook in (*place.attached, *mine):
            inner = functools.partial(hook, inner)
        return inner(Given(call, args, kwargs))

    through: Any = hooked_call
    through.dlopt_place = place
    return through
