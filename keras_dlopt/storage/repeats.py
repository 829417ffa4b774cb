"""Arrays that a file holds once, though a model has them several times."""

import collections
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_dlopt.codecs.reader import REPAIR
from keras_dlopt.errors import FormatError

LEAST = 64  # bytes; what is smaller, or one number, takes no more than the mention

Repeats = dict[int, tuple[int, int]]


def repeats(arrays: Sequence[np.ndarray]) -> Repeats:
    """For each array that came before, where, and 1 where it was the transpose.

    Only bits count: -0.0 is no 0.0, and NaN is what it is.

    Example:
        >>> a = np.arange(32.0).reshape(4, 8)
        >>> repeats([a, np.zeros(9), a, a.T.copy()])
        {2: (0, 0), 3: (0, 1)}
    """
    found: Repeats = {}
    known: dict[Any, int] = {}
    alike = collections.Counter(map(_ends, arrays))
    for i, array in enumerate(arrays):
        if array.nbytes < LEAST or alike[_ends(array)] < 2:
            continue
        if (array == array.flat[0]).all():
            continue
        turned = _content(array.T) if array.ndim == 2 else None
        own = _content(array)
        if own in known:
            found[i] = known[own], 0
        elif turned in known:
            found[i] = known[turned], 1
        else:
            known[own] = i
    return found


def _ends(array: np.ndarray) -> tuple[Any, ...]:
    """What arrays have in common that are the same or transposes: quickly told."""
    first, last = (
        array[(slice(1),) * array.ndim],
        array[(slice(-1, None),) * array.ndim],
    )
    shape = tuple(sorted(array.shape))
    return array.dtype.name, shape, first.tobytes(), last.tobytes()


def _content(array: np.ndarray) -> tuple[Any, ...]:
    digest = hashlib.blake2b(array.tobytes(), digest_size=32).digest()
    return array.dtype.name, array.shape, digest


def read_repeats(given: Any, count: int) -> Repeats:
    """The repeats in a header that was read, each of an array before it.

    Args:
        given: what stands there.
        count: arrays in all.

    Raises:
        FormatError: for anything else.
    """
    found: Repeats = {}
    rows = given if isinstance(given, list) else [None]
    for row in rows:
        if not isinstance(row, list) or [type(n) for n in row] != [int] * 3:
            raise damaged("places of variables that are stored once")
        place, of, turned = row
        if not 0 <= of < place < count or of in found or place in found:
            raise damaged("places of variables that are stored once")
        if turned not in (0, 1):
            raise damaged("places of variables that are stored once")
        found[place] = of, turned
    return found


def damaged(what: str) -> FormatError:
    """The error for a header that cannot be."""
    return FormatError(
        f"The file is damaged: its header gives impossible {what}. {REPAIR}"
    )
