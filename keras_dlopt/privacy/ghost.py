r"""Norms of gradients of single examples from what layers take and what comes back.

Of a layer s = a W with inputs a and the gradient g of the loss by s, an example's
gradient is the sum over its places t of a_t g_t^T (Goodfellow 2015, arXiv:1510.01799).
Its squared norm is the sum of (a_t a_u)(g_t g_u) over pairs of places (ghost norm, Li
2022, arXiv:2110.05679), or that of the product itself, whichever takes fewer
operations (Bu 2022, arXiv:2205.10683). Once the factors are known, the sum over
examples is one product (book-keeping, Bu 2023, arXiv:2210.00038): there is no second
backward pass, and no gradient of an example is stored.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_dlopt import _compat
from keras_dlopt.errors import ModelError
from keras_dlopt.graph import hooks
from keras_dlopt.graph.walk import own_weights, walk
from keras_dlopt.privacy.clipping import finite

Tensor = Any
L = keras.layers
# Exactly these: a subclass may compute something else.
LAYERS = (L.Dense, L.Conv1D, L.Conv2D, L.Embedding)


def knows(layer: Any) -> bool:
    """Whether norms of this layer's gradients follow from its inputs and outputs."""
    if type(layer) not in LAYERS or getattr(layer, "lora_enabled", False):
        return False
    if isinstance(layer, L.Conv1D | L.Conv2D):
        last = layer.data_format == "channels_last"
        return last and layer.groups == 1 and layer.padding in ("same", "valid")
    return True


def unknown(model: Any) -> list[tuple[str, Any]]:
    """Paths and layers that are trained and of another kind."""
    found = []
    for path, layer, _ in walk(model):
        trained = [v for v in own_weights(layer) if v.trainable]
        if trained and not knows(layer):
            found.append((path or layer.name, layer))
    return found


@dataclasses.dataclass(eq=False)
class LayerCall:
    """One call of a layer.

    Attributes:
        layer: which.
        inputs: what it was given, (batch, places, ...).
        made: what it made before its activation.
    """

    layer: Any
    inputs: Tensor
    made: Tensor


@contextlib.contextmanager
def watching(model: Any) -> Iterator[list[LayerCall]]:
    """Inside, the calls of layers that are trained are noted."""
    seen: list[LayerCall] = []
    pairs = [
        (layer, _noting(layer, seen))
        for _, layer, _ in walk(model)
        if knows(layer) and any(v.trainable for v in own_weights(layer))
    ]
    with hooks.hooked(pairs):
        yield seen


def _noting(layer: Any, seen: list[LayerCall]) -> hooks.Hook:
    def note(call: hooks.Called, given: hooks.Given) -> Any:
        if any(one.layer is layer for one in seen):
            raise ModelError(
                f"The layer {layer.name!r} is called twice in one step, and norms of "
                "single examples' gradients do not follow from one call. Use "
                "private(model, method='vectorized')."
            )
        if isinstance(layer, L.Embedding):
            made = call(given)
            seen.append(LayerCall(layer, given.args[0], made))
            return made
        activation = layer.activation
        with _compat.changed(layer, activation=None):
            made = call(given)
        seen.append(LayerCall(layer, given.args[0], made))
        return made if activation is None else activation(made)

    return note


@dataclasses.dataclass(frozen=True, eq=False)
class LayerGhost:
    """What one layer adds: squared norms, and the weighted sum of gradients.

    Attributes:
        squares: of each example, (batch,).
        total: the gradients of the layer's weights for factors of the examples, in the
            order of `variables`; told whether all examples are finite numbers.
        variables: the trained weights of the layer.
    """

    squares: Tensor
    total: Callable[[Tensor, bool], list[Tensor]]
    variables: list[Any]


def part(seen: LayerCall, gradient: Tensor) -> LayerGhost:
    """What the layer of a call adds, from the gradient of what it made."""
    layer = seen.layer
    gradient = ops.cast(gradient, "float32")
    if isinstance(layer, L.Embedding):
        return _embedding(seen, gradient)
    taken = ops.cast(seen.inputs, "float32")
    restore: Callable[[Tensor], Tensor] = _as_it_is
    if not isinstance(layer, L.Dense):
        taken, restore = _patches(layer, taken)
    taken, gradient = _places(taken), _places(gradient)
    trained, squares, totals = [], [], []
    if layer.kernel.trainable:
        square, total = _product(taken, gradient)
        trained.append(layer.kernel)
        squares.append(square)
        totals.append(lambda f, c: restore(total(f, c)))
    if layer.use_bias and layer.bias.trainable:
        summed = ops.sum(gradient, axis=1)
        trained.append(layer.bias)
        squares.append(ops.sum(summed * summed, axis=1))
        totals.append(lambda f, c: _weighted(f, summed, c))

    def total_of(factor: Tensor, clean: bool) -> list[Tensor]:
        return [one(factor, clean) for one in totals]

    return LayerGhost(sum(squares), total_of, trained)


def by_variable(
    variables: list[Any], parts: list[LayerGhost], factor: Tensor, *, clean: bool
) -> list[Tensor]:
    """The weighted sums of gradients in the order of variables; 0 for those of none."""
    found: dict[int, Tensor] = {}
    for one in parts:
        values = one.total(factor, clean)
        found |= {id(v): t for v, t in zip(one.variables, values, strict=True)}
    zeros = {id(v): ops.zeros(v.shape, "float32") for v in variables}
    return list((zeros | found).values())


def _as_it_is(total: Tensor) -> Tensor:
    return total


def _product(
    taken: Tensor, gradient: Tensor
) -> tuple[Tensor, Callable[[Tensor, bool], Tensor]]:
    """Squared norms of sum_t a_t g_t^T, and their weighted sum."""
    places, a, b = taken.shape[1], taken.shape[2], gradient.shape[2]
    if places == 1:
        flat, back = ops.squeeze(taken, 1), ops.squeeze(gradient, 1)
        squares = ops.sum(flat * flat, axis=1) * ops.sum(back * back, axis=1)
    elif places is not None and 2 * places * (a + b) > a * b:
        # The smaller one first is faster.
        each = ops.matmul(ops.transpose(gradient, (0, 2, 1)), taken)
        squares = ops.sum(each * each, axis=(1, 2))
        return squares, lambda f, clean: ops.transpose(_weighted(f, each, clean))
    else:
        left = ops.matmul(taken, ops.transpose(taken, (0, 2, 1)))
        right = ops.matmul(gradient, ops.transpose(gradient, (0, 2, 1)))
        squares = ops.sum(left * right, axis=(1, 2))

    def total(factor: Tensor, clean: bool) -> Tensor:
        scaled = _scaled(factor, gradient, clean)
        rows = ops.reshape(taken if clean else finite(factor, taken), (-1, a))
        return ops.matmul(ops.transpose(rows), ops.reshape(scaled, (-1, b)))

    return squares, total


def _weighted(factor: Tensor, each: Tensor, clean: bool) -> Tensor:
    return ops.tensordot(factor, each if clean else finite(factor, each), axes=1)


def _scaled(factor: Tensor, gradient: Tensor, clean: bool) -> Tensor:
    gradient = gradient if clean else finite(factor, gradient)
    return gradient * ops.reshape(factor, (-1, 1, 1))


def _embedding(seen: LayerCall, gradient: Tensor) -> LayerGhost:
    """Rows of a table: places of equal numbers meet in one row."""
    table = seen.layer.embeddings
    ids = ops.cast(seen.inputs, "int32")
    gradient = _places(gradient)
    ids = ops.reshape(ids, (-1, int(np.prod(ids.shape[1:], dtype=int))))
    same = ops.cast(ops.expand_dims(ids, 2) == ops.expand_dims(ids, 1), "float32")
    gram = ops.matmul(gradient, ops.transpose(gradient, (0, 2, 1)))

    def total(factor: Tensor, clean: bool) -> list[Tensor]:
        scaled = _scaled(factor, gradient, clean)
        rows = ops.reshape(scaled, (-1, table.shape[1]))
        flat = ops.reshape(ids, (-1,))
        return [ops.segment_sum(rows, flat, num_segments=table.shape[0])]

    return LayerGhost(ops.sum(same * gram, axis=(1, 2)), total, [table])


def _places(values: Tensor) -> Tensor:
    """(batch, places, values)."""
    inner = values.shape[1:-1]
    size = -1 if None in inner else int(np.prod(inner, dtype=int))
    if size == -1:
        return ops.reshape(values, (ops.shape(values)[0], -1, values.shape[-1]))
    return ops.reshape(values, (-1, size, values.shape[-1]))


def _patches(layer: Any, images: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """What a convolution multiplies with its kernel at each place.

    Returns:
        (batch, rows, columns, inputs), and what brings a sum over places, (inputs,
        outputs), into the kernel's shape.
    """
    size, step, rate = layer.kernel_size, layer.strides, layer.dilation_rate
    if isinstance(layer, L.Conv1D):
        images = ops.expand_dims(images, 1)
        size, step, rate = (1, *size), (1, *step), (1, *rate)
    import tensorflow as tf

    shape = layer.kernel.shape
    s, (h, w) = step[0], size
    apart = s > 1 and step[0] == step[1] and rate == (1, 1)
    if not apart or h % s or w % s or None in images.shape[1:3]:
        found = tf.image.extract_patches(
            images,
            sizes=(1, *size, 1),
            strides=(1, *step, 1),
            rates=(1, *rate, 1),
            padding=layer.padding.upper(),
        )
        return found, lambda total: ops.reshape(total, shape)
    # A step of s over single pixels is one of 1 over blocks of s x s, whose patches are
    # cut out in longer pieces.
    images = _covered(images, size, s, same=layer.padding == "same")
    found = tf.image.extract_patches(
        tf.nn.space_to_depth(images, s),
        sizes=(1, h // s, w // s, 1),
        strides=(1, 1, 1, 1),
        rates=(1, 1, 1, 1),
        padding="VALID",
    )

    def restore(total: Tensor) -> Tensor:
        blocks = ops.reshape(total, (h // s, w // s, s, s, *shape[2:]))
        return ops.reshape(ops.transpose(blocks, (0, 2, 1, 3, 4, 5)), shape)

    return found, restore


def _covered(images: Tensor, size: Any, step: int, *, same: bool) -> Tensor:
    """The part of images that windows cover, with the zeros around it."""
    around: list[tuple[int, int]] = [(0, 0)]
    kept: list[slice] = [slice(None)]
    for length, window in zip(images.shape[1:3], size, strict=True):
        places = -(-length // step) if same else (length - window) // step + 1
        covered = (places - 1) * step + window
        missing = max(covered - length, 0)
        around.append((missing // 2, missing - missing // 2))
        kept.append(slice(0, covered))
    return ops.pad(images, (*around, (0, 0)))[tuple(kept)]
