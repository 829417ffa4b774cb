"""What this process can compute on, read without choosing anything."""

import dataclasses
import glob
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from keras_dlopt.errors import ConfigError

TPU_SECONDS = 120.0
_ROLES = ("chief", "worker")
# Runs apart from this process: a TPU belongs to one process, and a failed start of the
# runtime can hang or abort.
_TPU_PROBE = """
import tensorflow as tf
resolver = tf.distribute.cluster_resolver.TPUClusterResolver({name!r})
tf.config.experimental_connect_to_cluster(resolver)
tf.tpu.experimental.initialize_tpu_system(resolver)
print("CORES", len(tf.config.list_logical_devices("TPU")))
"""


@dataclasses.dataclass(frozen=True)
class WorkerCluster:
    """The part of TF_CONFIG that says who trains and who this process is.

    Attributes:
        workers: address of every process that trains, the chief first.
        index: which of them this process is.
    """

    workers: tuple[str, ...]
    index: int


@dataclasses.dataclass(frozen=True)
class Facts:
    """What was found.

    Attributes:
        cpus: logical CPU devices, or CPU cores if TensorFlow has not started.
        gpus: names of the GPUs, such as `"GPU:0"`.
        tpu_cores: cores of a TPU that really initialized; 0 for none.
        tpu_name: how that TPU is addressed.
        tpu_problem: why there is no TPU, in words.
        cluster: of several processes; None for one.
    """

    cpus: int = 1
    gpus: tuple[str, ...] = ()
    tpu_cores: int = 0
    tpu_name: str = "local"
    tpu_problem: str = "not looked for"
    cluster: WorkerCluster | None = None


def probe(*, tpu: bool | None = None, seconds: float = TPU_SECONDS) -> Facts:
    """Looks for workers, TPUs, GPUs and CPUs.

    Args:
        tpu: whether to start the TPU runtime to see if there is one; None does so only
            where the machine shows signs of a TPU.
        seconds: longest wait for the TPU runtime.

    Returns:
        The facts, which `choose` makes a plan of.

    Raises:
        ConfigError: for a TF_CONFIG that cannot be right.

    Example:
        >>> probe(tpu=False).tpu_cores
        0
    """
    cluster = read_cluster(os.environ)
    name = os.environ.get("TPU_NAME", "local")
    cores, problem = 0, "no sign of a TPU (no TPU_NAME, no accelerator device file)"
    if tpu or (tpu is None and _shows_tpu()):
        cores, problem = _start_tpu(name, seconds)
    return Facts(
        cpus=os.cpu_count() or 1,
        gpus=_gpus(),
        tpu_cores=cores,
        tpu_name=name,
        tpu_problem="" if cores else problem,
        cluster=cluster,
    )


def read_cluster(environment: Mapping[str, str]) -> WorkerCluster | None:
    """The cluster of TF_CONFIG; None if it is not set or names this process alone.

    Raises:
        ConfigError: if TF_CONFIG is not JSON, names no or other processes, or names a
            task that is not in its cluster.

    Example:
        >>> read_cluster({}) is None
        True
    """
    text = environment.get("TF_CONFIG", "").strip()
    if not text:
        return None
    try:
        config = json.loads(text)
        cluster, task = config.get("cluster", {}), config.get("task", {})
        addresses = {role: cluster[role] for role in cluster}
        task = {"type": task.get("type"), "index": task.get("index")}
    except (ValueError, AttributeError, TypeError) as error:
        raise ConfigError(
            "TF_CONFIG must be a JSON object with 'cluster' and 'task'. Received: "
            f"{text!r} ({error}). Unset it to train in one process, or let "
            "keras_dlopt.distribute.run set it."
        ) from None
    if not addresses:
        return None
    _check_addresses(addresses)
    return _checked_cluster(addresses, task)


def _check_addresses(addresses: Mapping[str, Any]) -> None:
    for role, given in addresses.items():
        good = isinstance(given, list) and all(
            isinstance(a, str) and re.fullmatch(r"\S+:\d+", a) for a in given
        )
        if not good:
            raise ConfigError(
                f"TF_CONFIG must give {role!r} as a list of host:port, such as "
                f'["10.0.0.1:2222", "10.0.0.2:2222"]. Received: {given!r}.'
            )


def _checked_cluster(
    addresses: dict[str, list[str]], task: Mapping[str, Any]
) -> WorkerCluster | None:
    if "ps" in addresses:
        raise ConfigError(
            "TF_CONFIG names parameter servers ('ps'), which are not supported: under "
            "Keras 3 a coordinator loses or repeats steps. Name 'worker' processes "
            "only; they train by all-reduce."
        )
    workers = [a for role in _ROLES for a in addresses.get(role, [])]
    if len(set(workers)) != len(workers):
        raise ConfigError(
            "Two processes of TF_CONFIG share an address. Received: "
            f"{workers}. Give each process a host:port of its own."
        )
    role, index = task["type"], task["index"]
    if isinstance(index, str) and index.isdigit():  # as TensorFlow reads it
        index = int(index)
    count = len(addresses.get(role, [])) if role in _ROLES else 0
    if not isinstance(index, int) or not 0 <= index < count:
        raise ConfigError(
            f"TF_CONFIG says this process is task {role!r} number {index!r}, which its "
            f"cluster does not have: {addresses}. Every process needs the same "
            "'cluster' and a 'task' of its own, such as "
            '{"type": "worker", "index": 0}.'
        )
    before = len(addresses.get("chief", [])) if role == "worker" else 0
    return None if len(workers) == 1 else WorkerCluster(tuple(workers), before + index)


def _gpus() -> tuple[str, ...]:
    import tensorflow as tf

    return tuple(f"GPU:{i}" for i in range(len(tf.config.list_physical_devices("GPU"))))


def _shows_tpu() -> bool:
    return bool(os.environ.get("TPU_NAME") or glob.glob("/dev/accel[0-9]*"))


def _start_tpu(name: str, seconds: float) -> tuple[int, str]:
    """The number of TPU cores, or 0 and why there are none."""
    code = _TPU_PROBE.format(name=name)
    environment = {k: v for k, v in os.environ.items() if k != "TF_CONFIG"}
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
            env=environment,
        )
    except subprocess.TimeoutExpired:
        return 0, f"the TPU runtime did not start within {seconds:g} s"
    for line in done.stdout.splitlines():
        if line.startswith("CORES ") and int(line.split()[1]) > 0:
            return int(line.split()[1]), ""
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    named = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)]
    why = [*lines[-1:], *named[-1:]] or ["no TPU device"]
    return 0, "the TPU runtime failed: " + why[-1]
