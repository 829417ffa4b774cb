"""Lowers a program for a topology and compiles it with the real TPU compiler.

Runs in the compiling process.
"""

import re
import time
from collections.abc import Iterator
from typing import Any

import keras

from keras_dlopt.tpu import hlo
from keras_dlopt.tpu.chips import Topology
from keras_dlopt.tpu.programs import Program
from keras_dlopt.tpu.watching import Watched

_NEEDED = re.compile(
    r"total memory required.*?\(([\d.]+)([KMGT]?)\)"
    r".*?available HBM \(([\d.]+)([KMGT]?)\)",
    re.DOTALL,
)
_UNIT = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
# In turn: TensorFlow's converter, JAX's lowering, XLA, Keras.
_OPERATIONS = (
    re.compile(r"(\w+) \(No registered '\w+' OpKernel"),
    re.compile(r"translation rule for primitive '([\w.]+)'"),
    re.compile(r"(?:[Uu]nsupported|UNIMPLEMENTED|not implemented)\D*?`?%?([\w-]+)"),
)
_NODE = re.compile(r"\{\{node ([^}]+)\}\}|op_name=\"([^\"]+)\"")
_NOISE = 600  # characters of a compiler's message that are kept


class Compiler:
    """Compiles programs for one topology, the batch split over all devices.

    Args:
        topology: which chips.
        watched: the layers of the model, for the names in errors.
    """

    def __init__(self, topology: Topology, watched: Watched):
        import jax
        import numpy as np
        from jax.experimental import topologies

        self.topology, self.watched = topology, watched
        found = topologies.get_topology_desc(
            platform="tpu", topology_name=topology.name
        )
        self.mesh = jax.sharding.Mesh(np.array(found.devices), ("batch",))

    def lower(self, program: Program) -> Any:
        """The program for the topology, not compiled yet."""
        import jax
        from jax.sharding import NamedSharding, PartitionSpec

        whole = NamedSharding(self.mesh, PartitionSpec())
        split = NamedSharding(self.mesh, PartitionSpec("batch"))

        def placed(tree, sharding):
            return jax.tree.map(
                lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding),
                tree,
            )

        function = program.function
        if keras.backend.backend() == "tensorflow":
            function = exported(program).call
        state = placed(program.state, whole)
        donated = tuple(range(len(state))) if program.name == "train" else ()
        jitted = jax.jit(function, donate_argnums=donated)
        return jitted.lower(*state, *placed(program.batch, split))

    def compile(self, program: Program) -> dict[str, Any]:
        """Compiles; returns figures, or what went wrong, as plain data."""
        self.watched.failed = ""
        start = time.perf_counter()
        try:
            compiled = self.lower(program).compile()
        except Exception as error:
            seconds = time.perf_counter() - start
            return {"seconds": seconds, **self._failure(program, error)}
        return {
            "seconds": time.perf_counter() - start,
            **figures(compiled),
            "compiles": True,
        }

    def _failure(self, program: Program, error: Exception) -> dict[str, Any]:
        text = str(error)
        too_big = _NEEDED.search(text)
        if too_big:
            needed, available = (
                float(too_big[i]) * _UNIT[too_big[i + 1]] for i in (1, 3)
            )
            return {"compiles": True, "needed": needed, "available": available}
        operation = next((m[1] for p in _OPERATIONS if (m := p.search(text))), "")
        node = _NODE.search(text)
        layer = self.watched.failed
        if not layer and node:
            layer = self.watched.path_in(node[1] or node[2])
        if not layer and operation and keras.backend.backend() == "jax":
            layer = self._layer_of(program, operation)
        return {
            "compiles": False,
            "operation": operation or type(error).__name__,
            "layer": layer,
            "message": _first_lines(text),
        }

    def _layer_of(self, program: Program, operation: str) -> str:
        """Where in the traced program the operation is used."""
        import jax

        traced = jax.make_jaxpr(program.function)(*program.state, *program.batch)
        stack = next(
            (where for where, name in _used(traced.jaxpr) if name == operation), ""
        )
        return self.watched.path_in(stack)


def exported(program: Program) -> Any:
    """A TensorFlow program as a `jax.export.Exported`, for any platform.

    The converter writes the operations for CPUs, none of which is specific to them;
    asked for TPUs it would need a TPU.
    """
    import jax
    import tensorflow as tf
    from jax.experimental.jax2tf import call_tf

    function = tf.function(program.function, autograph=False)
    return jax.export.export(
        jax.jit(call_tf(function, has_side_effects=False)),
        platforms=["cpu"],
        disabled_checks=[jax.export.DisabledSafetyCheck.platform()],
    )(*program.state, *program.batch)


def figures(compiled: Any) -> dict[str, Any]:
    """What the compiler says of a program on one device."""
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    cost = cost[0] if isinstance(cost, list) else cost
    text = _printed(compiled)
    stored = hlo.parameters(text)
    return {
        "printed": bool(text),
        "arguments": memory.argument_size_in_bytes,
        "results": memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "temporary": memory.temp_size_in_bytes,
        "code": memory.generated_code_size_in_bytes,
        "flops": max(float(cost.get("flops", 0.0)), 0.0),
        "moved": max(float(cost.get("bytes accessed", 0.0)), 0.0),
        "collectives": [[c.kind, c.bytes, c.path] for c in hlo.collectives(text)],
        "argument_values": sum(values for values, _ in stored),
        "argument_tiles": sum(tiles for _, tiles in stored),
    }


def _printed(compiled: Any) -> str:
    """The program's text; empty where this JAX cannot read what its compiler wrote."""
    try:
        return compiled.as_text() or ""
    except RuntimeError:  # seen: asynchronous operations with several operands
        return ""


def _used(jaxpr: Any, outer: str = "") -> Iterator[tuple[str, str]]:
    """Every operation of a traced program: the scopes it is in, and its name."""
    for equation in jaxpr.eqns:
        where = f"{outer}/{equation.source_info.name_stack}"
        yield where, equation.primitive.name
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from _used(inner, where)


def _first_lines(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    kept = [
        line for line in lines if not line.startswith(("File ", "Arguments received"))
    ]
    return "\n".join(kept)[:_NOISE]
