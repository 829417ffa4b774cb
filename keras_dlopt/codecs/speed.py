"""Whether compiled loops are at hand: they give the same bytes as NumPy, sooner."""

import functools
import os
from typing import Any

# Symbols from which on the import of the compiler (0.5 s) can pay.
LEAST = 1 << 12
_OFF = "KERAS_DLOPT_NO_NUMBA"


def compiled(work: int) -> Any:
    """The module `compiled`, or None where NumPy is to do the work.

    Args:
        work: number of symbols. Few of them are not worth the import.

    The package numba comes with `pip install keras-dlopt[fast]`. The environment
    variable `KERAS_DLOPT_NO_NUMBA` turns it off.
    """
    if os.environ.get(_OFF):
        return None
    return _module() if work >= LEAST else None


@functools.cache
def _module() -> Any:
    try:
        from keras_dlopt.codecs import compiled as module
    except Exception:  # also what an installation that is broken raises
        return None
    return module
