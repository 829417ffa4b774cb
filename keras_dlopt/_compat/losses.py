"""What Keras' trainer makes of compiled losses, and the means that it reports."""

import threading
from collections.abc import Callable
from typing import Any

import keras


class SeenLoss:
    """A compiled loss whose value can be changed, knowing what it was made of.

    Args:
        loss: a `keras.losses.Loss`.
        change: `change(value, *, loss, values, mask, sample_weight)` gives the value to
            use; `values` are those of the loss before any weight or mean.

    Relies on: `Loss.__call__` calls `self.call(y_true, y_pred)`, and masks are those
    of `y_pred` and of the values.
    """

    def __init__(self, loss: keras.losses.Loss, change: Callable[..., Any]):
        self.loss, self.change = loss, change
        # Each replica is traced in a thread of its own.
        self._seen = getattr(loss.call, "seen", None) or _kept_values(loss)

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        self._seen.wanted, self._seen.values = True, None
        value = self.loss(y_true, y_pred, sample_weight)
        values, self._seen.values = self._seen.values, None
        self._seen.wanted = False
        if values is None:  # a class with a `__call__` of its own
            return value
        masks: list[Any] = [mask_of(v) for v in (y_pred, values)]
        masks = [m for m in masks if m is not None]
        mask = masks[0] & masks[1] if len(masks) == 2 else next(iter(masks), None)
        return self.change(
            value,
            loss=self.loss,
            values=values,
            mask=mask,
            sample_weight=sample_weight,
        )


def mask_of(tensor: Any) -> Any:
    """The mask that Keras keeps with a tensor; None without one.

    Relies on: the attribute `_keras_mask`.
    """
    return getattr(tensor, "_keras_mask", None)


def _kept_values(loss: keras.losses.Loss) -> Any:
    """Has a loss object keep what its `call` gives, where that is wanted."""
    seen, plain = threading.local(), loss.call

    def call(*arguments, **options):
        values = plain(*arguments, **options)
        if getattr(seen, "wanted", False):
            seen.values = values
        return values

    call.seen = seen  # type: ignore[attr-defined]
    object.__setattr__(loss, "call", call)
    return seen


def see_losses(model: keras.Model, change: Callable[..., Any]) -> None:
    """Has `change` see, and change, what each compiled loss gives; see `SeenLoss`.

    Does nothing before Keras has built the losses, in the first `fit` or step, and
    nothing the second time.

    Relies on: `Model._compile_loss`, and in it `_flat_losses`, a list of tuples with
    the field `loss`, which is called with `(y_true, y_pred, sample_weight)`.
    """
    parts = getattr(getattr(model, "_compile_loss", None), "_flat_losses", None) or []
    for number, part in enumerate(parts):
        if isinstance(part.loss, keras.losses.Loss):
            parts[number] = part._replace(loss=SeenLoss(part.loss, change))


def weight_of_values(loss: Any, values: Any, mask: Any, sample_weight: Any) -> Any:
    """What Keras divides the sum of a loss by: all values that count, or their weights.

    Relies on: `keras.src.losses.loss.reduce_weighted_values`.
    """
    from keras.src.losses.loss import reduce_weighted_values

    return reduce_weighted_values(
        keras.ops.ones_like(values),
        sample_weight=sample_weight,
        mask=mask,
        reduction="sum",
        dtype=loss.dtype,
    )


def weigh_means_of_outputs(model: keras.Model, weight: Callable[[], Any]) -> None:
    """Has the mean that Keras keeps of each output's loss weigh a batch as told.

    Keras weighs by the static size of the batch, and by 1 where that is unknown.

    Args:
        model: compiled.
        weight: gives the weight of the batch of this moment; None for Keras' own.

    Relies on: `CompileLoss.metrics`, means that are updated as
    `update_state(value, sample_weight=...)`.
    """
    for metric in getattr(getattr(model, "_compile_loss", None), "metrics", ()):
        plain = metric.update_state
        if getattr(plain, "weighs", None):
            continue

        def update_state(values, sample_weight=None, plain=plain):
            own = weight()
            return plain(values, sample_weight=sample_weight if own is None else own)

        update_state.weighs = True  # type: ignore[attr-defined]
        object.__setattr__(metric, "update_state", update_state)


class SeenResults:
    """Tells which values in a step's logs are the results of which metrics.

    In a replica a metric's result is that of the replica's own share. Whoever knows
    the metric can ask for the result of all.

    Args:
        wanted: whether this is a place to look at.
    """

    def __init__(self, wanted: Callable[[], bool]):
        self._wanted = wanted
        self._seen = threading.local()

    def watch(self, model: keras.Model) -> None:
        """Watches the metrics of a model; nothing the second time.

        Relies on: a metric's `result`, looked up on the instance.
        """
        for metric in model.metrics:
            plain = metric.result
            if getattr(plain, "seen_by", None) is self:
                continue

            def result(plain=plain):
                value = plain()
                for key, part in _parts(value).items() if self._wanted() else ():
                    self._here()[id(part)] = (part, plain, key)
                return value

            result.seen_by = self  # type: ignore[attr-defined]
            object.__setattr__(metric, "result", result)

    def start(self) -> None:
        """Forgets what this thread has seen."""
        self._here().clear()

    def sources(self, logs: Any) -> dict[str, tuple[Callable[[], Any], Any]]:
        """For each key of the logs that holds a metric's result: how to ask for it."""
        seen = self._here()
        found = {}
        for name, value in logs.items() if isinstance(logs, dict) else ():
            if id(value) in seen:
                _, result, key = seen[id(value)]
                found[name] = (result, key)
        return found

    def _here(self) -> dict[int, Any]:
        return vars(self._seen).setdefault("results", {})


def _parts(value: Any) -> dict[Any, Any]:
    return value if isinstance(value, dict) else {None: value}


def compiled_loss(model: keras.Model, y: Any, y_pred: Any) -> Any:
    """The compiled loss of a batch alone, not divided by the replicas.

    Relies on: `Model._compile_loss`, called with `(y_true, y_pred)`, and
    `keras.src.losses.loss.unscale_loss_for_distribution`, the inverse of what means
    are multiplied with; losses with `reduction="sum"` are not.
    """
    from keras.src.losses.loss import unscale_loss_for_distribution

    compiled: Any = model._compile_loss
    value = compiled(y, y_pred)
    parts = [part.loss for part in compiled._flat_losses]
    if any(getattr(part, "reduction", None) == "sum" for part in parts):
        return value
    return unscale_loss_for_distribution(value)
