"""From facts to a plan: a pure choice, which imports neither Keras nor TensorFlow."""

import dataclasses
import math
import re

from keras_dlopt import checks
from keras_dlopt.distribute.facts import Facts
from keras_dlopt.errors import ConfigError

KINDS = ("auto", "mirrored", "tpu", "multi_worker", "one_device", "cpu:N")
RATE_RULES = ("linear", "sqrt", "none")
SHARDINGS = ("data", "file", "off")
TPU_STEPS = 32  # one round trip to the host for so many steps


@dataclasses.dataclass(frozen=True)
class Plan:
    """How to train; `print(plan)` tells it in words.

    Attributes:
        kind: `"one_device"`, `"mirrored"`, `"multi_worker"` or `"tpu"`.
        devices: of this process, such as `("CPU:0", "CPU:1")`.
        workers: processes that train together.
        worker: which of them this process is.
        replicas: copies of the model over all processes.
        batch_size: examples in one step over all replicas; None if not given.
        rate_factor: what the learning rate is to be multiplied by.
        drop_remainder: whether the last, smaller batch is left out (static shapes).
        steps_per_execution: for `compile`.
        dtype_policy: Keras dtype policy to set before the model is built.
        input_sharding: how several workers share the input: each takes every n-th
            example (`"data"`), every n-th file (`"file"`), or what its own data set
            gives (`"off"`; an epoch then takes one n-th of each worker's data set).
        tpu_name: address of the TPU.
        reasons: why, a sentence each.
    """

    kind: str
    devices: tuple[str, ...]
    workers: int = 1
    worker: int = 0
    replicas: int = 1
    batch_size: int | None = None
    rate_factor: float = 1.0
    drop_remainder: bool = False
    steps_per_execution: int = 1
    dtype_policy: str = "float32"
    input_sharding: str = "data"
    tpu_name: str = "local"
    reasons: tuple[str, ...] = ()

    @property
    def replica_batch_size(self) -> int | None:
        """Examples in one step on one replica."""
        return None if self.batch_size is None else self.batch_size // self.replicas

    @property
    def logical_cpus(self) -> int:
        """CPU devices that this process must be split into."""
        return len([d for d in self.devices if d.startswith("CPU")])

    def scale_rate(self, learning_rate: float) -> float:
        """The learning rate for the plan's batch, from the one for a single device."""
        return learning_rate * self.rate_factor

    def __str__(self) -> str:
        batch = "not given"
        if self.batch_size is not None:
            batch = f"{self.batch_size} ({self.replica_batch_size} per replica)"
        rows = [
            ("strategy", self.kind),
            ("devices", ", ".join(self.devices)),
            ("replicas", f"{self.replicas} in {self.workers} process(es)"),
            ("batch", batch + (", remainder dropped" if self.drop_remainder else "")),
            ("learning rate", f"x {self.rate_factor:g}"),
            ("steps per execution", str(self.steps_per_execution)),
            ("dtype policy", self.dtype_policy),
            ("input sharding", self.input_sharding if self.workers > 1 else "-"),
        ]
        lines = [f"{name:<20}{value}" for name, value in rows]
        return "\n".join(lines + [f"- {reason}" for reason in self.reasons])


def choose(
    facts: Facts,
    kind: str = "auto",
    *,
    batch_size: int | None = None,
    per_replica: bool = False,
    rate_rule: str = "linear",
    drop_remainder: bool | None = None,
    steps_per_execution: int | None = None,
    mixed_precision: bool | None = None,
    input_sharding: str = "data",
) -> Plan:
    """Makes a plan; the same facts and options give the same plan.

    `"auto"` takes, in this order: the workers of TF_CONFIG, a TPU, all GPUs, one GPU,
    the CPU.

    Args:
        facts: from `probe`, or made up.
        kind: one of `KINDS`; `"cpu:4"` makes four devices of the CPU.
        batch_size: examples in one step.
        per_replica: whether `batch_size` is of one replica, so that the batch grows by
            the number of replicas.
        rate_rule: how the learning rate follows a batch that grew k-fold: `"linear"`
            (times k; Goyal et al. 2017, arXiv:1706.02677, section 2.1), `"sqrt"` (times
            sqrt(k), for Adam and its kin; Malladi et al. 2022, arXiv:2205.10287) or
            `"none"`.
        drop_remainder: None drops it on a TPU, which wants one static shape.
        steps_per_execution: None means 32 on a TPU and 1 elsewhere.
        mixed_precision: whether to compute in bfloat16; None does so on a TPU.
        input_sharding: `"data"`, `"file"` or `"off"`, for several workers.

    Returns:
        The plan.

    Raises:
        ConfigError: for what the facts do not have, or a batch that the replicas do not
            divide.

    Example:
        >>> p = choose(Facts(gpus=("GPU:0", "GPU:1")), batch_size=32, per_replica=True)
        >>> p.kind, p.batch_size, p.scale_rate(0.1)
        ('mirrored', 64, 0.2)
    """
    checks.choice(rate_rule, name="rate_rule", choices=RATE_RULES)
    checks.choice(input_sharding, name="input_sharding", choices=SHARDINGS)
    base = _base(facts, kind)
    on_tpu = base.kind == "tpu"
    total, factor, reasons = _batch(base, batch_size, per_replica, rate_rule)
    if facts.cluster is not None and base.kind != "multi_worker":
        count = len(facts.cluster.workers)
        reasons.append(
            f"TF_CONFIG names {count} processes, which this strategy does not join: "
            "each trains alone. Use 'multi_worker' to train together."
        )
    bfloat16 = on_tpu if mixed_precision is None else mixed_precision
    if on_tpu and drop_remainder is None:
        reasons.append("A TPU wants static shapes: the last, smaller batch is dropped.")
    if bfloat16:
        reasons.append("bfloat16 for activations; weights and updates stay float32.")
    steps = TPU_STEPS if on_tpu else 1
    if steps_per_execution is not None:
        steps = checks.count(steps_per_execution, name="steps_per_execution")
    return dataclasses.replace(
        base,
        batch_size=total,
        rate_factor=factor,
        drop_remainder=on_tpu if drop_remainder is None else drop_remainder,
        steps_per_execution=steps,
        dtype_policy="mixed_bfloat16" if bfloat16 else "float32",
        input_sharding=input_sharding,
        reasons=base.reasons + tuple(reasons),
    )


def _base(facts: Facts, kind: str) -> Plan:
    made = {
        "auto": _auto,
        "multi_worker": _multi_worker,
        "tpu": _tpu,
        "mirrored": _mirrored,
        "one_device": _one_device,
    }
    if kind in made:
        return made[kind](facts)
    cpus = re.fullmatch(r"cpu:([1-9]\d*)", str(kind))
    if cpus:
        return _cpus(int(cpus[1]))
    if "parameter" in str(kind).lower() or str(kind).lower() == "ps":
        raise ConfigError(
            "ParameterServerStrategy is not supported: with Keras 3, fit fails under "
            "it, and in a coordinator's loop steps were lost or counted twice. Use "
            "'multi_worker', which trains by all-reduce; keras_dlopt.distribute.run "
            "starts the processes."
        )
    raise ConfigError(
        f"Unknown strategy: {kind!r}. Choose one of {', '.join(KINDS)} (N: a number)."
    )


def _auto(facts: Facts) -> Plan:
    if facts.cluster is not None:
        return _multi_worker(facts)
    if facts.tpu_cores:
        return _tpu(facts)
    if len(facts.gpus) > 1:
        return _mirrored(facts)
    return _one_device(facts)


def _multi_worker(facts: Facts) -> Plan:
    if facts.cluster is None:
        raise ConfigError(
            "'multi_worker' needs the addresses of two or more processes in TF_CONFIG, "
            "which is not set or names one. Start the script with "
            "keras_dlopt.distribute.run(script, workers=2), or set TF_CONFIG on every "
            "machine."
        )
    workers = len(facts.cluster.workers)
    devices = facts.gpus or ("CPU:0",)
    return Plan(
        kind="multi_worker",
        devices=devices,
        workers=workers,
        worker=facts.cluster.index,
        replicas=workers * len(devices),
        reasons=(
            f"TF_CONFIG names {workers} processes; each must have {len(devices)} "
            "device(s), as this one has.",
        ),
    )


def _tpu(facts: Facts) -> Plan:
    if not facts.tpu_cores:
        raise ConfigError(
            f"No TPU here: {facts.tpu_problem}. Check TPU_NAME, and that no other "
            "process holds the TPU and that tensorflow-tpu and libtpu fit; or choose "
            "'auto'."
        )
    cores = facts.tpu_cores
    return Plan(
        kind="tpu",
        devices=tuple(f"TPU:{i}" for i in range(cores)),
        replicas=cores,
        tpu_name=facts.tpu_name,
        reasons=(f"A TPU with {cores} cores initialized.",),
    )


def _mirrored(facts: Facts) -> Plan:
    if not facts.gpus:
        raise ConfigError(
            "'mirrored' needs GPUs, and there are none. Use 'cpu:2' to try data "
            "parallelism on the CPU, or 'auto'."
        )
    return Plan(
        kind="mirrored",
        devices=facts.gpus,
        replicas=len(facts.gpus),
        reasons=(f"{len(facts.gpus)} GPU(s) in one process.",),
    )


def _one_device(facts: Facts) -> Plan:
    device = facts.gpus[0] if facts.gpus else "CPU:0"
    return Plan(kind="one_device", devices=(device,), reasons=(f"{device} alone.",))


def _cpus(count: int) -> Plan:
    if count == 1:
        return _one_device(Facts())
    return Plan(
        kind="mirrored",
        devices=tuple(f"CPU:{i}" for i in range(count)),
        replicas=count,
        reasons=(
            f"The CPU as {count} devices: for trying things out. They share its cores, "
            "so nothing gets faster.",
        ),
    )


def _batch(
    base: Plan, batch_size: int | None, per_replica: bool, rule: str
) -> tuple[int | None, float, list[str]]:
    """The batch over all replicas, the rate's factor, and why."""
    if batch_size is None:
        return None, 1.0, []
    batch_size = checks.count(batch_size, name="batch_size")
    replicas = base.replicas
    if not per_replica:
        if batch_size % replicas:
            below = batch_size // replicas * replicas
            raise ConfigError(
                f"A batch of {batch_size} cannot be shared equally by {replicas} "
                f"replicas. Use {max(below, replicas)} or {below + replicas}, or give "
                "the batch of one replica with per_replica=True."
            )
        return batch_size, 1.0, []
    grown = {"linear": float(replicas), "sqrt": math.sqrt(replicas), "none": 1.0}[rule]
    total = batch_size * replicas
    reason = f"The batch grew {replicas}-fold; rule {rule!r} for the learning rate."
    return total, grown, [reason] if replicas > 1 else []
