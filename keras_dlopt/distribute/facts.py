"""What this process can compute on, read without choosing anything."""

import dataclasses
import glob
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from keras_dlopt.errors import ConfigError, FormatError
from keras_dlopt.files import parse_json

TPU_SECONDS = 120.0
_ROLES = ("chief", "worker")  # that train
_KNOWN = (*_ROLES, "evaluator", "ps")
_ADDRESS = r"([^\s/:]+|\[[0-9a-fA-F:]+\]):([0-9]{1,5})"
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
        ConfigError: if TF_CONFIG is not JSON, names kinds of processes or addresses
            that cannot be, or a task that is not in its cluster.

    Example:
        >>> read_cluster({}) is None
        True
    """
    text = environment.get("TF_CONFIG", "").strip()
    if not text:
        return None
    config = _parsed(text)
    cluster, task = config.get("cluster", {}), config.get("task", {})
    if not isinstance(cluster, dict) or not isinstance(task, dict):
        raise _no_object(text, "one of the two is not an object")
    if not cluster:
        return None
    _check_addresses(cluster)
    return _checked_cluster(cluster, task)


def _parsed(text: str) -> dict[str, Any]:
    """The object in TF_CONFIG."""
    try:
        config = parse_json(text)
    except FormatError as error:
        raise _no_object(text, error) from None
    if not isinstance(config, dict):
        raise _no_object(text, f"it is a {type(config).__name__}")
    return config


def _no_object(text: str, why: Any) -> ConfigError:
    return ConfigError(
        "TF_CONFIG must be a JSON object with 'cluster' and 'task', objects too. "
        f"Received: {text[:500]!r} ({why}). Unset it to train in one process, or let "
        "keras_dlopt.distribute.run set it."
    )


def _check_addresses(addresses: Mapping[str, Any]) -> None:
    for role, given in addresses.items():
        if role not in _KNOWN:
            raise ConfigError(
                f"TF_CONFIG names processes of a kind {role!r}, which TensorFlow does "
                "not know. Name 'worker' processes, and one 'chief' if you like."
            )
        good = isinstance(given, list) and given and all(map(_is_address, given))
        if not good:
            raise ConfigError(
                f"TF_CONFIG must give {role!r} as a list of host:port, such as "
                '["10.0.0.1:2222", "10.0.0.2:2222"], with ports from 1 to 65535. '
                f"Received: {given!r}."
            )


def _is_address(given: Any) -> bool:
    found = re.fullmatch(_ADDRESS, given) if isinstance(given, str) else None
    return found is not None and 0 < int(found[2]) < 65_536


def _checked_cluster(
    addresses: dict[str, list[str]], task: Mapping[str, Any]
) -> WorkerCluster | None:
    if "ps" in addresses:
        raise ConfigError(
            "TF_CONFIG names parameter servers ('ps'), which are not supported: under "
            "Keras 3 a coordinator loses or repeats steps. Name 'worker' processes "
            "only; they train by all-reduce."
        )
    chiefs = addresses.get("chief", [])
    if len(chiefs) > 1:
        raise ConfigError(
            f"TF_CONFIG names {len(chiefs)} processes 'chief': {chiefs}. At most one "
            "can be; call the others 'worker'."
        )
    every = [address.lower() for role in addresses.values() for address in role]
    if len(set(every)) != len(every):
        raise ConfigError(
            "Two processes of TF_CONFIG share an address. Received: "
            f"{every}. Give each process a host:port of its own."
        )
    workers = [a for role in _ROLES for a in addresses.get(role, [])]
    role, index = task.get("type"), task.get("index")
    if isinstance(index, str) and re.fullmatch("[0-9]+", index):  # as TensorFlow does
        index = int(index)
    count = len(addresses.get(role, [])) if role in _ROLES else 0
    if type(index) is not int or not 0 <= index < count:
        raise ConfigError(
            f"TF_CONFIG says this process is task {role!r} number {index!r}, which its "
            f"cluster does not have among those that train: {addresses}. Every process "
            "needs the same 'cluster' and a 'task' of its own, such as "
            '{"type": "worker", "index": 0}.'
        )
    before = len(chiefs) if role == "worker" else 0
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
