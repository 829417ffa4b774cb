"""A file as the difference to another model: arrays beside those of a base.

An array that the base has too, with the same shape and dtype, is either not written, or
as the exclusive or of the bit patterns, or as their difference. The
differences are arrays of unsigned integers, which the codecs write like any others.
"""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_dlopt.codecs.dtypes import from_bits, to_bits
from keras_dlopt.codecs.reader import Reader
from keras_dlopt.codecs.tensor import encode_tensor
from keras_dlopt.errors import ConfigError, FormatError
from keras_dlopt.runtime.values import value as held
from keras_dlopt.storage.repeats import damaged

SAME, XOR, MINUS = 0, 1, 2
NAMES = ("", "xor, ", "difference, ")
DIGEST_BYTES = 16
SAMPLE = 2**16  # elements on which the ways to write an array are compared

Base = tuple[list[str], Sequence[np.ndarray]]
From = dict[int, tuple[int, int]]


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where the arrays of a file come from, if not from its records alone.

    Attributes:
        arrays: of the base.
        places: place in the file -> place in the base, and how the two differ.
    """

    arrays: Sequence[np.ndarray]
    places: From

    def of(self, place: int) -> tuple[np.ndarray, int] | None:
        """The array of the base for a place in the file, and how they differ."""
        if place not in self.places:
            return None
        at, how = self.places[place]
        return self.arrays[at], how


def variables_of(model: keras.Model) -> list[Any]:
    """The weights, then the random seeds; no metrics."""
    skip = {id(v) for v in [*model.weights, *model.metrics_variables]}
    return [*model.weights, *(v for v in model.variables if id(v) not in skip)]


def arrays_of(model: keras.Model) -> Base:
    """The paths and values of a model's variables, not copied where it can be."""
    variables = variables_of(model)
    return [v.path for v in variables], [np.asarray(held(v)) for v in variables]


def check_base(base: Any) -> None:
    """Refuses what is neither a model nor a path."""
    if not isinstance(base, keras.Model | str | Path):
        raise ConfigError(
            "base must be a keras.Model or the path of a file of save_compressed. "
            f"Received: {type(base).__name__}."
        )


def differences(
    paths: Sequence[str], arrays: Sequence[np.ndarray], base: Base
) -> tuple[Origin, dict[int, np.ndarray]]:
    """How arrays come from a base, and what of them is written in their place.

    Arrays belong together that have the same path, or else the same place, for a copy
    may have other names.
    """
    known = {path: i for i, path in reversed(list(enumerate(base[0])))}
    places: From = {}
    written: dict[int, np.ndarray] = {}
    for i, (path, array) in enumerate(zip(paths, arrays, strict=True)):
        at = known.get(path, i)
        if at >= len(base[1]) or _kind(base[1][at]) != _kind(array) or not array.size:
            continue
        how = _shortest(array, base[1][at])
        if how is not None:
            places[i] = at, how
        if how:
            written[i] = difference(array, base[1][at], how)
    return Origin(base[1], places), written


def _shortest(array: np.ndarray, base: np.ndarray) -> int | None:
    """The way that takes the fewest bytes on a sample; None for the array itself."""
    if np.array_equal(to_bits(array), to_bits(base)):
        return SAME
    step = max(1, array.size // SAMPLE)
    one, two = (x.reshape(-1)[::step] for x in (array, base))
    sizes = [(len(encode_tensor(difference(one, two, k))), k) for k in (XOR, MINUS)]
    size, how = min(sizes)
    return how if size < len(encode_tensor(one)) else None


def difference(array: np.ndarray, base: np.ndarray, how: int) -> np.ndarray:
    """What is written of an array beside that of the base, as unsigned integers."""
    one, two = to_bits(array), to_bits(base)
    if how == XOR:
        written: np.ndarray = one ^ two
    else:
        apart = one - two  # modulo 2**n
        top = apart.dtype.type(8 * apart.itemsize - 1)
        # Zigzag: what is near 0 from below becomes small as well.
        written = apart << apart.dtype.type(1)
        written ^= (0 - (apart >> top)).astype(apart.dtype)
    return written.reshape(array.shape)


def applied(written: np.ndarray, base: np.ndarray, how: int) -> np.ndarray:
    """The inverse of `difference`.

    Raises:
        FormatError: if what was written does not fit the array of the base.
    """
    bits = to_bits(base)
    if written.dtype != bits.dtype or written.shape != base.shape:
        raise damaged("differences: they have another shape or dtype than the base")
    flat = written.reshape(-1)
    if how == MINUS:
        one = flat.dtype.type(1)
        flat = (flat >> one) ^ (0 - (flat & one)).astype(flat.dtype)
        return from_bits(bits + flat, base.dtype, base.shape)
    return from_bits(bits ^ flat, base.dtype, base.shape)


def header_of(origin: Origin) -> dict[str, Any]:
    """What the header says of the base."""
    rows = [[i, *of] for i, of in origin.places.items()]
    return {"base": _digest(origin), "from": rows}


def read_origin(
    header: Mapping[str, Any], base: Base | None, reader: Reader
) -> Origin | None:
    """Where the arrays of a file come from.

    Args:
        header: of the file.
        base: what the caller gave.
        reader: its allowance is to hold what comes from the base.

    Raises:
        ConfigError: if a base is wanted and not given, or given and not wanted.
        FormatError: if it is another base, or the header is damaged.
    """
    if "base" not in header:
        if base is not None:
            raise ConfigError(
                "base was given, and the file holds a whole model. Leave base out."
            )
        return None
    if base is None:
        raise ConfigError(
            "The file holds the difference to another model. Pass that model, or its "
            "file, as base=... to load_compressed, and save the result whole for "
            "anything else."
        )
    rows, count = header["from"], len(header["paths"])
    places: From = {}
    for row in rows if isinstance(rows, list) else [None]:
        if not isinstance(row, list) or [type(n) for n in row] != [int] * 3:
            raise damaged("places of arrays in a base")
        place, at, how = row
        fits = 0 <= place < count and place not in places and SAME <= how <= MINUS
        if not fits or at < 0:
            raise damaged("places of arrays in a base")
        places[place] = at, how
    origin = Origin(base[1], places)
    inside = all(at < len(base[1]) for at, _ in places.values())
    for at, _ in places.values() if inside else ():
        reader.reserve(base[1][at].nbytes, "what comes from the base")
    if not inside or _digest(origin) != header["base"]:
        raise FormatError(
            f"The file is the difference to another base: the arrays it needs have "
            f"the checksum {header['base']!s:.40}, those of the given base "
            f"{_digest(origin) if inside else 'are fewer'}. Pass the model, or the "
            "file, that it was saved with as base."
        )
    return origin


def _digest(origin: Origin) -> str:
    """Of the arrays that the file needs, in the order in which it needs them."""
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for at, _ in origin.places.values():
        array = origin.arrays[at]
        digest.update(f"{array.dtype.name}{list(array.shape)}".encode())
        little = to_bits(array)
        digest.update(little.astype(little.dtype.newbyteorder("<"), copy=False).data)
    return digest.hexdigest()


def _kind(array: np.ndarray) -> tuple[Any, ...]:
    return array.dtype, array.shape
