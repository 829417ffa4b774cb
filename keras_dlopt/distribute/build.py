"""From a plan to a TensorFlow strategy, one object per process."""

import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from typing import Any

import keras

from keras_dlopt.distribute.facts import probe
from keras_dlopt.distribute.plans import Plan, choose
from keras_dlopt.errors import ConfigError

WAIT_SECONDS = 300.0
_BUILT: dict[tuple, Any] = {}


def plan(kind: str = "auto", *, wait: float = 120.0, **options: Any) -> Plan:
    """Looks at this machine and chooses; `print(plan("auto"))` tells what and why.

    Args:
        kind: see `choose`.
        wait: longest wait, in seconds, for a TPU to answer.
        **options: see `choose`.

    Example:
        >>> plan("cpu:2", batch_size=64).replica_batch_size
        32
    """
    tpu = {"auto": None, "tpu": True}.get(kind, False)
    return choose(probe(tpu=tpu, seconds=wait), kind, **options)


def strategy(
    kind: str | Plan = "auto", *, wait: float = WAIT_SECONDS, **options: Any
) -> Any:
    """The TensorFlow strategy to build and train a model under.

    Sets the plan's dtype policy, unless that is float32. Call it before anything else
    uses TensorFlow: CPU devices, TPUs and workers cannot be added later. The same plan
    gives the same object again: two strategies of a kind in one process disturb each
    other.

    Args:
        kind: a `Plan`, or what `plan` takes.
        wait: longest wait, in seconds, for the other workers or the TPU.
        **options: of `plan`, if `kind` is not one.

    Returns:
        A `tf.distribute.Strategy`. Build and compile the model in its `scope()`.

    Raises:
        ConfigError: if the devices cannot be had.
    """
    chosen = kind if isinstance(kind, Plan) else plan(kind, **options)
    if isinstance(kind, Plan) and options:
        raise ConfigError(
            f"Options are part of the plan. Received a plan and {sorted(options)}. "
            "Give them to keras_dlopt.distribute.plan."
        )
    require_tensorflow("distribute.strategy")
    if chosen.dtype_policy != "float32":
        keras.config.set_dtype_policy(chosen.dtype_policy)
    key = (chosen.kind, chosen.devices, chosen.workers, chosen.tpu_name)
    if key not in _BUILT:
        alone = ("tpu", "multi_worker")
        if any(k[0] in alone or chosen.kind in alone for k in _BUILT):
            raise ConfigError(
                f"This process already has the strategy {next(iter(_BUILT))[0]!r} and "
                f"cannot have {chosen.kind!r} beside it. Start another process."
            )
        _BUILT[key] = _build(chosen, wait)
    return _BUILT[key]


def require_tensorflow(what: str) -> None:
    """Raises on another backend of Keras than TensorFlow."""
    if keras.backend.backend() != "tensorflow":
        raise ConfigError(
            f"{what} needs the TensorFlow backend of Keras. Received: "
            f"{keras.backend.backend()!r}. Set KERAS_BACKEND=tensorflow, or use "
            "keras.distribution."
        )


def _build(chosen: Plan, wait: float) -> Any:
    import tensorflow as tf

    if chosen.kind == "one_device":
        # Where TensorFlow computes anyway its default strategy does, and that has no
        # per-device iterators, whose end tf.data's autotuning holds for seconds.
        first = "GPU:0" if tf.config.list_physical_devices("GPU") else "CPU:0"
        if chosen.devices[0] == first:
            return tf.distribute.get_strategy()
        return tf.distribute.OneDeviceStrategy(chosen.devices[0])
    if chosen.kind == "mirrored":
        if chosen.logical_cpus:
            split_cpu(chosen.logical_cpus)
        # Reduces on one device and copies: unlike the default it may be called in a
        # loop in the graph, and serves several strategies in one process.
        reduce = tf.distribute.HierarchicalCopyAllReduce()
        return tf.distribute.MirroredStrategy(
            list(chosen.devices), cross_device_ops=reduce
        )
    if chosen.kind == "multi_worker":
        options = tf.distribute.experimental.CommunicationOptions(timeout_seconds=wait)
        with ended_after(wait, "the other workers of TF_CONFIG to start"):
            return tf.distribute.MultiWorkerMirroredStrategy(
                communication_options=options
            )
    resolver = tf.distribute.cluster_resolver.TPUClusterResolver(chosen.tpu_name)
    with ended_after(wait, "the TPU to initialize"):
        tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
        return tf.distribute.TPUStrategy(resolver)


def split_cpu(count: int) -> None:
    """Makes `count` devices of the CPU, unless there are that many.

    Raises:
        ConfigError: if TensorFlow has started with fewer.
    """
    import tensorflow as tf

    cpu = tf.config.list_physical_devices("CPU")[0]
    with contextlib.suppress(RuntimeError):  # TensorFlow has started
        if len(tf.config.get_logical_device_configuration(cpu) or ()) < count:
            parts = [tf.config.LogicalDeviceConfiguration()] * count
            tf.config.set_logical_device_configuration(cpu, parts)
    found = len(tf.config.list_logical_devices("CPU"))
    if found < count:
        raise ConfigError(
            f"{count} CPU devices are needed, and TensorFlow has started with {found}. "
            f"Call keras_dlopt.distribute.strategy('cpu:{count}') before any other use "
            "of TensorFlow or Keras."
        )


@contextlib.contextmanager
def ended_after(seconds: float, awaited: str) -> Iterator[None]:
    """Ends the process, with a message, if the block takes longer.

    For calls into TensorFlow's runtime, which cannot be interrupted from Python.
    """

    def end():
        sys.stderr.write(
            f"keras_dlopt: timed out after {seconds:g} s, waiting for {awaited}. This "
            "process ends. Check that every address is right and reachable and that "
            "all processes were started.\n"
        )
        sys.stderr.flush()
        os._exit(os.EX_UNAVAILABLE)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
