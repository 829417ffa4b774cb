"""From each replica's gradients to the sum that all of them use."""

from typing import Any

from keras_dlopt import runtime
from keras_dlopt.distribute.compression import Compression, Wire
from keras_dlopt.distribute.shares import Shares


class Exchange:
    """Weighs the replicas' gradients, compresses them, and adds them up.

    Keras divides each replica's mean loss by the number of replicas, which is right
    when all have the same number n of examples. With replica r's share n_r * R / N the
    sum is the gradient of the mean over all N examples, however they are shared.

    Args:
        strategy: of TensorFlow.
        compression: rule, or None to send gradients whole.
        variables: trainable weights, the state's reference.
        shares: of the replicas in the batch at hand.
    """

    def __init__(
        self,
        strategy: Any,
        compression: Compression | None,
        variables: list[Any],
        shares: Shares,
    ):
        self.compression = compression
        self.shares = shares
        self._states = (
            {}
            if compression is None
            else _make_states(strategy, compression, variables)
        )

    def __call__(self, grads: list[Any], variables: list[Any]) -> list[Any]:
        """The replicas' sums; called in a replica, and the same on all."""
        import tensorflow as tf

        share = self.shares.here
        grads = [tf.convert_to_tensor(g) for g in grads]  # tf.IndexedSlices too
        if share is not None:
            # A replica without examples may hold NaN: 0 * NaN is 0 here.
            grads = [tf.math.multiply_no_nan(g, tf.cast(share, g.dtype)) for g in grads]
        if self.compression is None:
            return runtime.total(grads)
        context = tf.distribute.get_replica_context()
        wire = Wire(
            add=runtime.total,
            gather=lambda t: context.all_gather(t, axis=0),
            replicas=context.num_replicas_in_sync,
        )
        return [self._reduce(g, v, wire) for g, v in zip(grads, variables, strict=True)]

    def _reduce(self, gradient: Any, variable: Any, wire: Wire) -> Any:
        assert self.compression is not None
        import tensorflow as tf

        held = self._states[variable.path]
        state = {name: v.read_value() for name, v in held.items()}
        given = gradient.dtype  # narrow where the weights are
        gradient = tf.cast(gradient, tf.float32)
        total, state = self.compression.reduce(gradient, state, wire)
        for name, value in state.items():
            held[name].assign(value)
        return tf.cast(total, given)


def _make_states(
    strategy: Any, compression: Compression, variables: list[Any]
) -> dict[str, dict[str, Any]]:
    import tensorflow as tf

    states = {}
    with strategy.scope():
        for number, variable in enumerate(variables):
            made = compression.initial(tuple(variable.shape), number)
            states[variable.path] = {
                name: tf.Variable(
                    value,
                    trainable=False,
                    synchronization=tf.VariableSynchronization.ON_READ,
                    aggregation=tf.VariableAggregation.SUM,
                    name=f"exchange_{number}_{name}",
                )
                for name, value in made.items()
            }
    return states
