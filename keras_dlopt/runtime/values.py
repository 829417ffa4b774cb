"""Values of variables on the host."""

from typing import Any

import numpy as np
from keras import ops


def to_numpy(variable: Any) -> np.ndarray:
    """A variable's value on the host; also for mirrored variables."""
    return np.asarray(ops.convert_to_numpy(variable.value))
