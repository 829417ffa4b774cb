"""The only folder that touches undocumented Keras. Each use has a canary test.

A canary (`tests/test_compat.py`) that fails after a Keras upgrade says which function
here to mend; nothing else in the package needs to change.
"""

from keras_dlopt._compat.calls import (
    called_through,
    changed,
    compile_arguments,
    instance_call,
    set_attribute,
    set_class,
    set_instance_call,
)
from keras_dlopt._compat.formats import (
    Drawn,
    draw,
    limited_variables,
    unnamed_operations,
    weights_file,
)
from keras_dlopt._compat.graphs import (
    FactorByChannel,
    ScaledSum,
    graph_nodes,
    operation_name,
)
from keras_dlopt._compat.litert import has_state, litert_schema
from keras_dlopt._compat.losses import (
    SeenResults,
    compiled_loss,
    mask_of,
    see_losses,
    weigh_means_of_outputs,
    weight_of_values,
)
from keras_dlopt._compat.overlay import WeightOverlay, in_xla, sublayers
from keras_dlopt._compat.pure import PureScope, PureVariable, StandIn
from keras_dlopt._compat.reads import heard
from keras_dlopt._compat.state import (
    SlabSlice,
    asked_to_save,
    build_seen,
    in_checkpoints,
    place_of,
    state_beside_weights,
    track_state,
)
from keras_dlopt._compat.tracing import (
    recomputes,
    untraced_call,
    untraced_classes,
    without_recomputing,
)
from keras_dlopt._compat.training import (
    TRAINER_STATE,
    attach,
    attached,
    batch_count,
    build_from_spec,
    build_metrics,
    do_not_ask_for_more,
    input_sharding,
    keep_losses_apart,
    replace_method,
    replace_train_functions,
    replace_update,
    restore_method,
    seen_as,
)

__all__ = [
    "TRAINER_STATE",
    "Drawn",
    "FactorByChannel",
    "PureScope",
    "PureVariable",
    "ScaledSum",
    "SeenResults",
    "SlabSlice",
    "StandIn",
    "WeightOverlay",
    "asked_to_save",
    "attach",
    "attached",
    "batch_count",
    "build_from_spec",
    "build_metrics",
    "build_seen",
    "called_through",
    "changed",
    "compile_arguments",
    "compiled_loss",
    "do_not_ask_for_more",
    "draw",
    "graph_nodes",
    "has_state",
    "heard",
    "in_checkpoints",
    "in_xla",
    "input_sharding",
    "instance_call",
    "keep_losses_apart",
    "limited_variables",
    "litert_schema",
    "mask_of",
    "operation_name",
    "place_of",
    "recomputes",
    "replace_method",
    "replace_train_functions",
    "replace_update",
    "restore_method",
    "see_losses",
    "seen_as",
    "set_attribute",
    "set_class",
    "set_instance_call",
    "state_beside_weights",
    "sublayers",
    "track_state",
    "unnamed_operations",
    "untraced_call",
    "untraced_classes",
    "weigh_means_of_outputs",
    "weight_of_values",
    "weights_file",
    "without_recomputing",
]
