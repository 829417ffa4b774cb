"""What TensorFlow knows and has no public name for: .tflite files, operations."""

from typing import Any


def litert_schema() -> Any:
    """The module of the flatbuffers schema: TensorFlow's copy of `ai-edge-litert`'s.

    Relies on: `tensorflow.lite.python.schema_py_generated` has its object classes.
    """
    from tensorflow.lite.python import schema_py_generated

    return schema_py_generated


def has_state(operation: str) -> bool | None:
    """Whether a TensorFlow operation does more than compute; None for an unknown one.

    Relies on: `op_def_registry.get`, None for a name that it does not have.
    """
    from tensorflow.python.framework import op_def_registry

    known = op_def_registry.get(operation)
    return None if known is None else bool(known.is_stateful)
