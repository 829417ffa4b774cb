"""What a stream's samples are, and refusing what does not fit."""

from typing import Any

import keras
import numpy as np

from keras_dlopt.errors import DataError
from keras_dlopt.graph.walk import is_functional
from keras_dlopt.transforms.model import TransformedModel

# Wider types than what Keras computes in.
_NARROW = {"float64": "float32"}


class Samples:
    """The form of a stream's samples, as the first ones have it.

    Args:
        model: whose inputs they are.

    Attributes:
        x: shape and type of each input of one sample, in the inputs' structure; None
            before the first.
        y: the same of the labels.
    """

    def __init__(self, model: Any):
        self._model = inside(model)
        self.x: Any = None
        self.y: Any = None

    def checked(self, x: Any, y: Any) -> tuple[Any, Any, int]:
        """Samples as arrays, and how many; their form is not taken on yet.

        Raises:
            DataError: for none at all, other lengths, shapes or types than before or
                than the model's, and for numbers that are not finite.
        """
        x, n = self.inputs(x)
        y = _arrays(y, "y")
        lengths = {len(a) for a in keras.tree.flatten(y)}
        if lengths != {n}:
            raise DataError(
                f"x has {n} samples and y has {sorted(lengths)}. Give each sample its "
                "label."
            )
        _same(self.y, y, "y")
        return x, y, n

    def take_on(self, x: Any, y: Any) -> None:
        """Has all later samples be of this form."""
        self.x, self.y = form(x), form(y)

    def inputs(self, x: Any) -> tuple[Any, int]:
        """Inputs alone, as arrays, and how many."""
        x = _arrays(x, "x")
        lengths = {len(a) for a in keras.tree.flatten(x)}
        if len(lengths) != 1:
            raise DataError(
                f"The inputs have {sorted(lengths)} samples. Give all inputs the same "
                "number."
            )
        _fits(self._model, x)
        _same(self.x, x, "x")
        return x, lengths.pop()


def inside(model: Any) -> Any:
    """The model that a `TransformedModel` runs; another as it is."""
    return model.model if isinstance(model, TransformedModel) else model


def _arrays(given: Any, name: str) -> Any:
    return keras.tree.map_structure(lambda one: _array(one, name), given)


def _array(given: Any, name: str) -> np.ndarray:
    array = np.asarray(given)
    if array.dtype.kind not in "biuf" and str(array.dtype) != "bfloat16":
        raise DataError(
            f"{name} must be arrays of numbers. Received: {array.dtype}. Convert "
            "texts and objects to numbers first."
        )
    if array.ndim == 0 or len(array) == 0:
        raise DataError(
            f"{name} has no samples: its shape is {array.shape}. Pass arrays of the "
            "shape (samples, ...) with at least one."
        )
    if array.dtype.kind == "f":
        bad = ~np.isfinite(array.reshape(len(array), -1)).all(axis=1)
        if bad.any():
            raise DataError(
                f"{name} has numbers that are not finite, first in row "
                f"{int(np.argmax(bad))} of {len(array)}. Nothing of this call was "
                "learned. Remove those rows, or fill the gaps."
            )
    return array.astype(_NARROW.get(str(array.dtype), array.dtype), copy=False)


def form(arrays: Any) -> Any:
    """Shape and type of one sample, in the arrays' structure."""
    return keras.tree.map_structure(
        lambda a: keras.InputSpec(shape=a.shape[1:], dtype=str(a.dtype)), arrays
    )


def _same(known: Any, new: Any, name: str) -> None:
    if known is not None and shown(known) != shown(form(new)):
        raise DataError(
            f"{name} has samples of {shown(form(new))}, and earlier ones were "
            f"{shown(known)}. Cast or reshape them to that."
        )


def shown(form: Any) -> str:
    """A form in words, its structure and for each array its type and shape."""
    return str(
        keras.tree.map_structure(lambda s: f"{s.dtype}{[*s.shape]}", form)
    ).replace("'", "")


def _fits(model: Any, x: Any) -> None:
    if not is_functional(model):
        return
    wanted = [tuple(i.shape[1:]) for i in model.inputs]
    given = [a.shape[1:] for a in keras.tree.flatten(x)]
    if len(wanted) != len(given) or any(
        len(a) != len(b) or any(n not in (None, m) for n, m in zip(a, b, strict=True))
        for a, b in zip(wanted, given, strict=True)
    ):
        raise DataError(
            f"{model.name!r} takes samples of the shape {wanted}. Received: {given}. "
            "Reshape them, with the samples along the first axis."
        )


def to_data(form: Any) -> Any:
    """A form as JSON-ready data."""
    if isinstance(form, dict):
        return {"dict": {k: to_data(v) for k, v in form.items()}}
    if isinstance(form, list | tuple):
        return {"list": [to_data(v) for v in form]}
    return {"shape": list(form.shape), "dtype": form.dtype}


def from_data(data: Any) -> Any:
    """The form that `to_data` wrote."""
    if "dict" in data:
        return {k: from_data(v) for k, v in data["dict"].items()}
    if "list" in data:
        return tuple(from_data(v) for v in data["list"])
    return keras.InputSpec(shape=tuple(data["shape"]), dtype=data["dtype"])
