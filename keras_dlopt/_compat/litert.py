"""The format of .tflite files as TensorFlow brings it, which has no public name."""

from typing import Any


def litert_schema() -> Any:
    """The module of the flatbuffers schema: TensorFlow's copy of `ai-edge-litert`'s.

    Relies on: `tensorflow.lite.python.schema_py_generated` has its object classes.
    """
    from tensorflow.lite.python import schema_py_generated

    return schema_py_generated
