"""How far compression has come, in the logs of each epoch."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from keras_dlopt.codecs.hints import Codebook, Grid, Hint
from keras_dlopt.config import Configured
from keras_dlopt.errors import ConfigError, ModelError
from keras_dlopt.graph.targets import weight_targets
from keras_dlopt.graph.walk import layers_below
from keras_dlopt.runtime import to_numpy

Send = Callable[[dict[str, float], int], Any]


@keras.saving.register_keras_serializable("keras_dlopt")
class CompressionLogger(Configured, keras.callbacks.Callback):
    """Adds sparsity, bits and bytes of the weights to the logs of each epoch.

    `History`, and a `CSVLogger` or `TensorBoard` after it in the list, get them as they
    get the loss. Any model and any transform will do: what counts are the weights that
    `finalize` would leave.

    | key | what it is |
    |---|---|
    | `sparsity` | share of exact zeros among weights of two or more dimensions |
    | `bits_per_weight` | of these weights, estimated |
    | `compressed_bytes` | of all weights, the others as they are in memory |
    | `learning_rate` | at the end of the epoch, unless another callback told it |

    A weight of n values of w bits each, z of them zero, takes n h(z / n) bits for where
    they are, h being the entropy of a share, and for the others the least of (n - z) w
    and (n - z) H + t: H is the entropy of their values, or codes, and t the bits of the
    table that tells what these are, or of the scales. So much a coder of order 0 needs.
    A `.dlopt` file is smaller where values are plain floats, whose exponents it codes,
    and where neighbours are alike.

    Args:
        details: whether each weight has its own `sparsity/<path>` and `bits/<path>`,
            and each transform its numbers, such as `<path>/low` and `<path>/high` of
            the range of an activation, or `<path>/price` of `RateAware`.
        send: called after each epoch with all logs as floats and the epoch's number,
            such as `mlflow.log_metrics`, or `lambda logs, epoch: run.log(logs)` for a
            run of W&B; None for nobody. It is no part of the config.

    Raises:
        ConfigError: for a `send` that cannot be called.

    Example:
        >>> net = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> net.compile("sgd", "mse")
        >>> x, y = np.ones((4, 4)), np.ones((4, 2))
        >>> seen = net.fit(x, y, verbose=0, callbacks=[CompressionLogger()])
        >>> seen.history["sparsity"], seen.history["bits_per_weight"]
        ([0.0], [32.0])
    """

    # Nothing here runs per batch, so Keras need not wait for it.
    async_safe = True

    def __init__(self, *, details: bool = False, send: Send | None = None):
        super().__init__()
        if send is not None and not callable(send):
            raise ConfigError(
                "send must be a function of (logs, epoch), such as mlflow.log_metrics, "
                f"or None. Received: {send!r}."
            )
        self.details = details
        self.send = send

    def on_epoch_end(self, epoch, logs=None):
        logs = {} if logs is None else logs
        rate = getattr(getattr(self.model, "optimizer", None), "learning_rate", None)
        if rate is not None and "learning_rate" not in logs:
            logs["learning_rate"] = float(to_numpy(rate))
        logs.update(compression(self.model, details=self.details))
        if self.send is not None:
            self.send({name: float(value) for name, value in logs.items()}, epoch)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, without the function."""
        return {"details": self.details, "send": None}


def compression(model: Any, *, details: bool = False) -> dict[str, float]:
    """What `CompressionLogger` adds to the logs, without the rate.

    Args:
        model: a built Keras model, transformed or not.
        details: as of `CompressionLogger`.
    """
    # What holds transforms tells what its layers get in the end.
    layers = [model, *layers_below(model)]
    found = [one for one in layers if hasattr(one, "final_values")]
    final = {id(target.variable): got for one in found for target, *got in _final(one)}
    states = {id(v) for host in found for v in host.states}
    zeros = count = 0
    bits = rest = 0.0
    each: dict[str, float] = {}
    # The user's own model: paths are its paths, and teachers do not count.
    own_model = model.model if hasattr(model, "final_values") else model
    for target in weight_targets(own_model):
        if id(target.variable) in states:
            continue
        value, hint = final.get(id(target.variable), (target.variable, None))
        value = to_numpy(value)
        if value.ndim < 2:
            rest += value.nbytes
            continue
        own = estimated_bits(value, hint)
        none = int(np.sum(value == 0))
        zeros, count, bits = zeros + none, count + value.size, bits + own
        each[f"sparsity/{target.path}"] = none / max(value.size, 1)
        each[f"bits/{target.path}"] = own / max(value.size, 1)
    totals = {
        "sparsity": zeros / max(count, 1),
        "bits_per_weight": bits / max(count, 1),
        "compressed_bytes": bits / 8 + rest,
    }
    if not details:
        return totals
    return totals | each | {k: v for host in found for k, v in _numbers(host).items()}


def _final(host: Any) -> list[tuple[Any, Any, Any]]:
    """Each weight of a host with its final value and what a coder can use of it."""
    try:
        return list(host.final_values())
    except ModelError:  # NaN: the loss tells of it
        return []


def estimated_bits(value: np.ndarray, hint: Hint | None = None) -> float:
    """Bits of a weight by the entropies of its zeros and of its values.

    Args:
        value: the weight.
        hint: what a transform knows of it; None takes each value for its own code.

    Example:
        >>> estimated_bits(np.array([0, 0, 1, 1], "float32"))  # 4 positions, 1 value
        36.0
    """
    plain = 8 * value.itemsize
    kept = value != 0
    codes = value
    if isinstance(hint, Grid):
        codes = np.broadcast_to(hint.codes, value.shape)
    elif isinstance(hint, Codebook):
        codes = hint.indices.reshape(value.shape)
    counts = np.unique(codes[kept], return_counts=True)[1]
    table = np.size(hint.scale) if isinstance(hint, Grid) else len(counts)
    left = int(kept.sum())
    positions = _entropy(np.array([value.size - left, left]))
    values = min(_entropy(counts) + plain * table, plain * left)
    return float(min(positions + values, plain * value.size))


def _entropy(counts: np.ndarray) -> float:
    """Bits of all of them together: sum of n log2(N / n)."""
    counts = counts[counts > 0].astype("float64")
    return (
        float(np.sum(counts * np.log2(counts.sum() / counts))) if len(counts) else 0.0
    )


def _numbers(host: Any) -> dict[str, float]:
    """The single numbers that transforms keep for their targets."""
    return {
        f"{slot.target.path}/{name}": float(to_numpy(variable).reshape(()))
        for group in host.groups
        for slot in group.slots
        for name, variable in slot.state.items()
        if np.prod(variable.shape) == 1
    }
