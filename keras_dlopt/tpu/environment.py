"""The process in which the TPU compiler runs.

A program that the compiler cannot handle may end the whole process, and the compiler
wants its environment before JAX starts: so it gets a process of its own.
"""

import os

from keras_dlopt.errors import ConfigError, require
from keras_dlopt.processes import python_path

# The compiler asks the machine it believes to be on; these answer for it.
_ANSWERS = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "CUDA_VISIBLE_DEVICES": "",
}
# Meant for this process's own devices.
_DROPPED = ("TF_CONFIG", "XLA_FLAGS", "TF_XLA_FLAGS")


def require_compiler() -> None:
    """Raises unless JAX and the TPU compiler are installed."""
    require("jax", "libtpu", extra="tpu", purpose="The TPU check")


def environment(backend: str) -> dict[str, str]:
    """The environment of the compiling process, for a Keras backend.

    Raises:
        ConfigError: for another backend than TensorFlow and JAX.
    """
    if backend not in ("tensorflow", "jax"):
        raise ConfigError(
            f"The TPU check compiles steps of the TensorFlow and JAX backends. "
            f"Received: backend={backend!r}."
        )
    kept = {k: v for k, v in os.environ.items() if k not in _DROPPED}
    own = {"KERAS_BACKEND": backend, "PYTHONPATH": python_path()}
    return {**kept, **_ANSWERS, **own}
