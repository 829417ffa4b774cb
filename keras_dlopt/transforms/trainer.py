"""The user's own training methods, run by the model that wraps theirs.

Each method of a Keras trainer that a subclass may override is in one of two tables:
`FORWARDED` ones run as the user wrote them, `REFUSED` ones would train the wrapped
model past its transforms and are refused by name.

A forwarded method gets, as `self`, the user's model as the wrapper sees it: with its
own attributes, layers and methods, while calling it, its variables, its losses and what
`compile` made are the wrapper's. In `train_step`, `test_step` and `predict_step` each
layer that is called has its transformed weights, and a weight that the step reads by
itself is the trained one, with a warning; in `compute_loss` and `compute_metrics` each
weight that is read has its transformed value.
"""

import contextlib
import functools
import inspect
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import keras

from keras_dlopt import _compat
from keras_dlopt.errors import ModelError
from keras_dlopt.graph import hooks
from keras_dlopt.graph.walk import children

STEPS = ("train_step", "test_step", "predict_step")
READING = ("compute_loss", "compute_metrics")
METRICS = ("metrics", "reset_metrics", "get_metrics_result")
FORWARDED = (*STEPS, *READING, *METRICS)
REFUSED = (
    "compile",
    "fit",
    "evaluate",
    "predict",
    "train_on_batch",
    "test_on_batch",
    "predict_on_batch",
    "make_train_function",
    "make_test_function",
    "make_predict_function",
    "stateless_compute_loss",
)
_VARIABLES = (
    "variables",
    "weights",
    "trainable_variables",
    "trainable_weights",
    "non_trainable_variables",
    "non_trainable_weights",
)

_LOSS_TAKES = ("x", "y", "y_pred", "sample_weight", "training")

_GIVEN = threading.local()


def overridden(model: Any, name: str) -> bool:
    """Whether a model's class, or the model itself, has its own method of a trainer."""
    return _of_class(type(model), name) is not _of_class(keras.Model, name) or (
        name in vars(model)
    )


def _of_class(cls: type, name: str) -> Any:
    return inspect.getattr_static(cls, name, None)


def forward(host: Any, model: Any) -> Any:
    """Has a host run what its model overrides.

    Args:
        host: a model with `run` and `seen_through`.
        model: the user's model.

    Returns:
        The user's model as its methods see it; None if it overrides nothing.

    Raises:
        ModelError: when a method is called that is overridden and cannot be forwarded.
    """
    for name in (*REFUSED, *FORWARDED):
        if name in vars(model) or (name in REFUSED and overridden(model, name)):
            _compat.replace_method(host, name, _refusal(host, model, name))
    own = [
        name
        for name in FORWARDED
        if overridden(model, name) and name not in vars(model)
    ]
    if keras.backend.backend() == "jax":
        for name in set(own) & set(STEPS):  # they are functions of all state there
            _compat.replace_method(host, name, _refusal(host, model, name))
            own.remove(name)
    if not own:
        return None
    attributes = _attributes(host)
    if "compute_loss" in own or hasattr(host, "around_loss"):
        attributes["compute_loss"] = _own_loss(host, type(model).compute_loss)
    view = _compat.seen_as(model, attributes)
    for name in own:
        if name != "metrics":
            method = functools.partial(_forwarded, host, view, name)
            _compat.replace_method(host, name, method)
    return view


def _refusal(host: Any, model: Any, name: str) -> Callable[..., Any]:
    def refuse(*_args: Any, **_kwargs: Any) -> Any:
        raise ModelError(
            f"{type(model).__name__} has its own {name}(), which would train or run "
            f"{host.name!r} without its transforms. Train in your own loop with "
            "update_transforms(step), or put what it does into train_step(), "
            "compute_loss() or callbacks."
        )

    return refuse


def _attributes(host: Any) -> dict[str, Any]:
    """What the view has of the host's."""

    def of_host(name: str) -> property:
        return property(
            lambda _: getattr(host, name),
            lambda _, value: _compat.set_attribute(host, name, value),
        )

    def call(_: Any, *args: Any, **kwargs: Any) -> Any:
        return host(*args, **kwargs)

    shared = (*_compat.TRAINER_STATE, *_VARIABLES)
    attributes: dict[str, Any] = {name: of_host(name) for name in shared}
    attributes["losses"] = property(lambda _: _losses(host))
    attributes["__call__"] = call
    return attributes


def _losses(host: Any) -> list[Any]:
    given = getattr(_GIVEN, "losses", None)
    return host.losses if given is None else given


@contextlib.contextmanager
def _given(losses: list[Any]) -> Iterator[None]:
    """Inside, these are the host's losses: a scope of its own would hide them."""
    before = getattr(_GIVEN, "losses", None)
    _GIVEN.losses = losses
    try:
        yield
    finally:
        _GIVEN.losses = before


def _forwarded(host: Any, view: Any, name: str, *args: Any, **kwargs: Any) -> Any:
    method = getattr(view, name)
    if name in STEPS:
        own = _each_transformed(host, training=name == "train_step")
        with hooks.hooked(own), _own_reads(host, name):
            return method(*args, **kwargs)
    if name == "compute_metrics":
        with _given(host.losses):
            return host.seen_through(lambda: method(*args, **kwargs))
    return method(*args, **kwargs)


def _own_loss(host: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    """The user's loss on transformed weights, also where the user's step calls it."""
    takes = inspect.signature(function).parameters

    def compute(model: Any, given: dict[str, Any]) -> Any:
        if "training" not in takes:
            given = {name: one for name, one in given.items() if name != "training"}
        return host.seen_through(lambda: function(model, **given))

    @functools.wraps(function)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = dict(zip(_LOSS_TAKES, args, strict=False)) | kwargs
        around = getattr(host, "around_loss", None)
        with _given(host.losses):
            if around is None:
                return compute(self, given)
            return around(lambda **given: compute(self, given), **given)

    return method


def _own_reads(host: Any, name: str) -> Any:
    """Has a step warn where it reads a weight that a transform changes for layers."""

    def hear(variable: Any) -> None:
        if not host.is_running():
            warnings.warn(
                f"{name}() of {host.name!r} reads {variable.path!r} itself, and gets "
                "the value that is trained, not the one that its transform makes of "
                "it and layers use. For a loss or a penalty read it in compute_loss(), "
                "where it has that value. Where the step means the trained value, "
                "filter this warning.",
                stacklevel=3,
            )

    slots = [
        s for g in host.groups if g.transform.kind != "activation" for s in g.slots
    ]
    return _compat.heard([s.target.variable for s in slots], hear)


def _each_transformed(host: Any, *, training: bool) -> list[tuple[Any, hooks.Hook]]:
    """Hooks by which layers that a step calls by themselves are transformed."""

    def hook(call, given):
        if host.is_running():
            return call(given)
        trains = given.kwargs.get("training")
        return host.run(
            lambda: call(given), training=training if trains is None else bool(trains)
        )

    return [(layer, hook) for layer in children(host.model)]
