"""One step of DP-SGD, as TensorFlow and as JAX run it.

    g_i   gradient of the loss of example i
    G     (sum_i g_i min(1, C / |g_i|) + N(0, sigma^2 C^2)) / L

with the clipping norm C, the noise multiplier sigma and L, the mean size of a batch,
which no batch changes (Abadi 2016, arXiv:1607.00133, algorithm 1). What the optimizer
makes of G spends nothing more.
"""

from typing import Any

import keras
from keras import ops

from keras_dlopt import _compat, runtime
from keras_dlopt.errors import ModelError
from keras_dlopt.privacy import clipping, gradients, noise
from keras_dlopt.privacy.clipping import alone, first


def tensorflow_step(model: Any, data: Any) -> dict[str, Any]:
    """Updates the model by one batch; in each replica by its share."""
    import tensorflow as tf

    x, y, mask = _unpacked(model, data)
    outcome = gradients.in_parts(model, x, y, mask)
    variables = model.trainable_variables
    with tf.GradientTape() as tape:
        penalty = gradients.penalty(model)
    steep = tape.gradient(
        penalty, [runtime.native(v) for v in variables], unconnected_gradients="zero"
    )
    state = [ops.convert_to_tensor(v) for v in model.private_state]
    sums = runtime.total(outcome.sums)
    found = _noised(model, sums, steep, state)
    share = 1.0 / runtime.replica_count()  # the optimizer adds them up again
    found = [g if share == 1 else g * share for g in found]
    model.optimizer.apply(_scaled(model, found, variables), variables)
    model.private_state[0].assign_add(_live(state))
    return _logs(model, x, y, mask, outcome, penalty)


def jax_step(model: Any, state: Any, data: Any) -> Any:
    """The new state of the model, and the logs."""
    import jax

    trained, fixed, optimized, measured = state
    x, y, mask = _unpacked(model, data)
    outcome, after = _jax_outcome(model, trained, fixed, x, y, mask)
    places = [
        i
        for own in model.private_state
        for i, v in enumerate(model.non_trainable_variables)
        if v is own
    ]
    own = [fixed[i] for i in places]

    def penalty_of(values: Any) -> Any:
        mapping = list(zip(model.trainable_variables, values, strict=True))
        mapping += list(zip(model.non_trainable_variables, fixed, strict=True))
        with keras.StatelessScope(state_mapping=mapping):
            return gradients.penalty(model)

    penalty, steep = jax.value_and_grad(penalty_of)(trained)
    found = _noised(model, outcome.sums, steep, own)
    found = _scaled(model, found, model.trainable_variables)
    trained, optimized = model.optimizer.stateless_apply(optimized, found, trained)
    after = list(after)
    after[places[0]] = own[0] + _live(own)
    mapping = list(zip(model.metrics_variables, measured, strict=True))
    with keras.StatelessScope(state_mapping=mapping) as scope:
        logs = _logs(model, x, y, mask, outcome, penalty)
    measured = [
        old if (new := scope.get_current_value(v)) is None else new
        for v, old in mapping
    ]
    return logs, (trained, after, optimized, measured)


def _jax_outcome(
    model: Any, trained: Any, fixed: Any, x: Any, y: Any, mask: Any
) -> Any:
    """What a batch gives, in micro-batches where there are; and the other variables."""
    import jax

    size, batch = model.microbatch, mask.shape[0]
    if size is None:
        return _jax_part(model, trained, fixed, x, y, mask)
    parts = keras.tree.map_structure(
        lambda v: v.reshape((-1, size, *v.shape[1:])), (x, y, mask)
    )

    def more(carry: Any, part: Any) -> Any:
        sums, fixed = carry
        outcome, fixed = _jax_part(model, trained, fixed, *part)
        sums = [a + b for a, b in zip(sums, outcome.sums, strict=True)]
        return (sums, fixed), (outcome.losses, outcome.outputs)

    start = [ops.zeros(v.shape, "float32") for v in trained]
    (sums, fixed), seen = jax.lax.scan(more, (start, list(fixed)), parts)
    losses, outputs = keras.tree.map_structure(
        lambda v: v.reshape((batch, *v.shape[2:])), seen
    )
    return gradients.BatchGradient(sums, losses, outputs), fixed


def _jax_part(model: Any, trained: Any, fixed: Any, x: Any, y: Any, mask: Any) -> Any:
    import jax

    variables = model.non_trainable_variables
    seeds = {id(v) for v in gradients.seed_states(model)}

    def one(x: Any, y: Any, index: Any) -> Any:
        own = [
            gradients.for_example(value, index) if id(v) in seeds else value
            for v, value in zip(variables, fixed, strict=True)
        ]

        def loss_of(values: Any) -> Any:
            outputs, after, added = model.stateless_call(
                values, own, alone(x), training=True, return_losses=True
            )
            gradients.check_losses(model, added)
            with keras.StatelessScope():
                loss = _compat.compiled_loss(model, alone(y), outputs)
            return ops.cast(loss, "float32"), (first(outputs), after)

        (loss, (outputs, after)), found = jax.value_and_grad(loss_of, has_aux=True)(
            trained
        )
        return found, loss, outputs, after

    found, losses, outputs, after = clipping.mapped(one, (x, y, ops.arange(len(mask))))
    sums = clipping.clipped_sum(found, mask, model.clip)
    # The first example's: all else that a step may change does not depend on any.
    return gradients.BatchGradient(sums, losses, outputs), [v[0] for v in after]


def _unpacked(model: Any, data: Any) -> tuple[Any, Any, Any]:
    x, y, mask = keras.utils.unpack_x_y_sample_weight(data)
    if mask is None:
        raise ModelError(
            f"A step of {model.name!r} was given a batch that fit() has not drawn, and "
            "what it spends could not be counted. Use fit(x, y)."
        )
    return x, y, mask


def _live(state: Any) -> Any:
    """1 while the budget lasts, else 0."""
    steps, limit, *_ = state
    return ops.cast(steps < limit, "int32")


def _noised(model: Any, sums: list[Any], steep: list[Any], state: Any) -> list[Any]:
    """The mean gradient with its noise; no example enters when the budget is spent."""
    steps, _, sigma, size = state
    live = ops.cast(_live(state), "float32")
    drawn = noise.noises(model.secret, steps, [tuple(s.shape) for s in sums])
    return [
        live * (total + sigma * model.clip * z) / size + ops.cast(slope, "float32")
        for total, z, slope in zip(sums, drawn, steep, strict=True)
    ]


def _scaled(model: Any, found: list[Any], variables: list[Any]) -> list[Any]:
    """In the variables' types, and larger where the optimizer divides them."""
    factor = model.optimizer.loss_scale_factor or 1.0
    return [
        ops.cast(g * factor, v.dtype) for g, v in zip(found, variables, strict=True)
    ]


def _logs(
    model: Any,
    x: Any,
    y: Any,
    mask: Any,
    outcome: gradients.BatchGradient,
    penalty: Any,
) -> dict[str, Any]:
    """The metrics, with the mean loss of the drawn examples."""
    drawn = ops.sum(mask)
    loss = ops.sum(outcome.losses * mask) / ops.maximum(drawn, 1.0) + penalty
    tracker = next((m for m in model.metrics if m.name == "loss"), None)
    if tracker is not None:
        tracker.update_state(loss, sample_weight=drawn)
    if len(keras.tree.flatten(outcome.outputs)) > 1:
        _compat.compiled_loss(model, y, outcome.outputs)  # keeps a mean for each output
    logs: dict[str, Any] = model.compute_metrics(x, y, outcome.outputs, None)
    return logs
