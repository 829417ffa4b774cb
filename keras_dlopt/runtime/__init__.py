"""The one seam between this package and what runs it: a backend and its replicas.

Optimizers, callbacks in the train step, and data- and model-parallel training read,
assign, branch and add up through these functions, and ask here whether a fused kernel
may be used. What differs between TensorFlow and JAX, one replica and several, and a
step in place and a pure one, differs behind them.
"""

from keras_dlopt.runtime.pure import kernels, on_tensorflow, pure, pure_call
from keras_dlopt.runtime.replicas import (
    assign_on_each,
    densify,
    has_strategy,
    is_sparse,
    on_each_replica,
    on_several,
    replica_count,
    sum_repeats,
    total,
)
from keras_dlopt.runtime.values import (
    Assignable,
    assign,
    choose,
    compute_dtype,
    native,
    read,
    to_numpy,
    value,
)

__all__ = [
    "Assignable",
    "assign",
    "assign_on_each",
    "choose",
    "compute_dtype",
    "densify",
    "has_strategy",
    "is_sparse",
    "kernels",
    "native",
    "on_each_replica",
    "on_several",
    "on_tensorflow",
    "pure",
    "pure_call",
    "read",
    "replica_count",
    "sum_repeats",
    "to_numpy",
    "total",
    "value",
]
