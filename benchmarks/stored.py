"""What resumable benchmarks write beside their figures, and read again."""

import json
import os
import platform

import keras
import tensorflow as tf


def machine():
    """The machine and the versions that a result was measured with."""
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
    }


def earlier(path, settings, key):
    """What an earlier call with the same settings stored under `key`; else nothing."""
    if not path.exists():
        return []
    known = json.loads(path.read_text())
    return known[key] if known["settings"] == settings else []
