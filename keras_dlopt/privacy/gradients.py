"""The sum of the clipped gradients of a batch, and what else a step shows."""

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_dlopt import _compat, runtime
from keras_dlopt.errors import ModelError
from keras_dlopt.privacy import clipping, ghost
from keras_dlopt.privacy.clipping import alone, first

# Apart, so that no two examples draw alike; Keras counts the second word up.
_STRIDE = 7919


@dataclasses.dataclass(frozen=True, eq=False)
class BatchGradient:
    """What one batch, or a part of one, gives.

    Attributes:
        sums: of clipped gradients, one for each trained variable, float32.
        losses: of each example, (batch,), float32.
        outputs: of the model.
    """

    sums: list[Any]
    losses: Any
    outputs: Any


def of_ghosts(model: Any, x: Any, y: Any, mask: Any) -> BatchGradient:
    """By inputs and gradients of outputs of layers; TensorFlow."""
    import tensorflow as tf

    with tf.GradientTape() as tape:
        with ghost.watching(model.model) as seen:
            outputs = model(x, training=True)
        check_losses(model)
    losses, steep = _loss_gradients(model, y, outputs)
    back = tape.gradient(
        keras.tree.flatten(outputs),
        [one.made for one in seen],
        output_gradients=steep,
        unconnected_gradients="zero",
    )
    parts = [ghost.part(one, g) for one, g in zip(seen, back, strict=True)]
    squares = sum(one.squares for one in parts)
    factor = clipping.factors(squares, mask, model.clip)

    def totals(clean: bool) -> list[Any]:
        return ghost.by_variable(model.trainable_variables, parts, factor, clean=clean)

    # To look at each number costs as much as a layer: only where there is a need.
    clean = tf.reduce_all(tf.math.is_finite(squares))
    sums = tf.cond(clean, lambda: totals(True), lambda: totals(False))
    return BatchGradient(sums, losses, outputs)


def vectorized(model: Any, x: Any, y: Any, mask: Any) -> BatchGradient:
    """Of each example by itself; TensorFlow."""
    import tensorflow as tf

    natives = [runtime.native(v) for v in model.trainable_variables]
    seeds = seed_states(model)

    def one(x: Any, y: Any, index: Any) -> Any:
        mapping = _drawn(seeds, index)
        with keras.StatelessScope(mapping, collect_losses=True) as scope:
            with tf.GradientTape() as tape:
                outputs = model(alone(x), training=True)
                check_losses(model)
                loss = ops.cast(
                    _compat.compiled_loss(model, alone(y), outputs), "float32"
                )
            gradients = tape.gradient(loss, natives, unconnected_gradients="zero")
            after = [scope.get_current_value(v) for v in seeds]
        gradients = [tf.cast(runtime.densify(g), "float32") for g in gradients]
        return gradients, loss, first(outputs), after

    index = tf.range(tf.shape(mask)[0])
    gradients, losses, outputs, after = clipping.mapped(one, (x, y, index))
    for variable, value in zip(seeds, after, strict=True):
        variable.assign(value[0])
    return BatchGradient(
        clipping.clipped_sum(gradients, mask, model.clip), losses, outputs
    )


def example_losses(model: Any, y: Any, outputs: Any) -> Any:
    """The compiled loss of each example by itself, which no other example enters."""

    def one(y: Any, outputs: Any) -> Any:
        with keras.StatelessScope():  # means of single outputs are not kept
            loss = _compat.compiled_loss(model, alone(y), alone(outputs))
        return ops.cast(loss, "float32")

    return clipping.mapped(one, (y, outputs))


def _loss_gradients(model: Any, y: Any, outputs: Any) -> tuple[Any, list[Any]]:
    """The losses of examples, and their gradients by each of the outputs.

    Each is differentiated inside the map: the gradient of what is mapped has sums over
    axes that XLA takes for constants, and it would compile anew in every step.
    """
    import tensorflow as tf

    def one(y: Any, outputs: Any) -> Any:
        flat = keras.tree.flatten(outputs)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(flat)
            with keras.StatelessScope():
                loss = _compat.compiled_loss(model, alone(y), alone(outputs))
        steep = tape.gradient(loss, flat, unconnected_gradients="zero")
        return ops.cast(loss, "float32"), steep

    losses, steep = clipping.mapped(one, (y, outputs))
    return losses, steep


def seed_states(model: Any) -> list[Any]:
    """The variables of generators of random numbers."""
    return [
        v for v in model.non_trainable_variables if "seed_generator_state" in v.path
    ]


def _drawn(seeds: list[Any], index: Any) -> list[tuple[Any, Any]]:
    """Each generator's state for one example, another one for each."""
    return [(v, for_example(ops.convert_to_tensor(v), index)) for v in seeds]


def for_example(state: Any, index: Any) -> Any:
    """The state of a generator for one example of a batch; that of the first is it."""
    shift = ops.cast(index, "uint32") * ops.cast(_STRIDE, "uint32")
    return state + ops.stack([shift, ops.zeros_like(shift)])


def check_losses(model: Any, added: Any = None) -> None:
    """Raises `ModelError` where a layer has added a loss of its own in this call."""
    penalties = [v for v in model.trainable_variables if _penalty_of(v) is not None]
    if len(model.losses if added is None else added) > len(penalties):
        raise ModelError(
            f"A layer of {model.name!r} adds a loss by add_loss() or an "
            "activity_regularizer, whose gradient is of the batch and is not clipped. "
            "Take it off; regularizers of weights may stay."
        )


def _penalty_of(variable: Any) -> Any:
    return getattr(variable, "regularizer", None)


def penalty(model: Any) -> Any:
    """The sum of the regularizers of trained weights, which reads no example; or 0."""
    terms = [
        ops.cast(_penalty_of(v)(v), "float32")
        for v in model.trainable_variables
        if _penalty_of(v) is not None
    ]
    return sum(terms, ops.zeros((), "float32"))


def in_parts(model: Any, x: Any, y: Any, mask: Any) -> BatchGradient:
    """The same, in micro-batches where the model has them; TensorFlow."""
    one = of_ghosts if model.method == "ghost" else vectorized
    size = model.microbatch
    if size is None:
        return one(model, x, y, mask)
    parts = keras.tree.map_structure(
        lambda v: ops.reshape(v, (-1, size, *v.shape[1:])), (x, y, mask)
    )

    return _joined(parts, lambda part: one(model, *part))


def _joined(parts: Any, one: Callable[[Any], BatchGradient]) -> BatchGradient:
    """The sums of all parts, and the rows of all."""
    import tensorflow as tf

    def part(i: Any) -> BatchGradient:
        return one(keras.tree.map_structure(lambda v: v[i], parts))

    def rows(outcome: BatchGradient) -> list[Any]:
        return keras.tree.flatten((outcome.losses, outcome.outputs))

    begun = part(0)  # tells shapes and types of the others
    count = tf.shape(keras.tree.flatten(parts)[0])[0]
    kept = [
        tf.TensorArray(v.dtype, size=count, element_shape=v.shape).write(0, v)
        for v in rows(begun)
    ]

    def more(i: Any, sums: list[Any], kept: list[Any]) -> Any:
        outcome = part(i)
        sums = [a + b for a, b in zip(sums, outcome.sums, strict=True)]
        kept = [k.write(i, v) for k, v in zip(kept, rows(outcome), strict=True)]
        return i + 1, sums, kept

    _, sums, kept = tf.while_loop(
        lambda i, *_: i < count, more, (tf.constant(1), begun.sums, kept)
    )
    flat = [tf.reshape(k.stack(), (-1, *k.element_shape[1:])) for k in kept]
    losses, outputs = keras.tree.pack_sequence_as((begun.losses, begun.outputs), flat)
    return BatchGradient(sums, losses, outputs)
