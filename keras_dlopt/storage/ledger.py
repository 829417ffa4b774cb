"""Where the bytes of a compressed file go, and how few they could be."""

import dataclasses
import functools
import math
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

from keras_dlopt.codecs.container import MAX_BYTES, limit_of
from keras_dlopt.codecs.dtypes import dtype_of
from keras_dlopt.files import read_limited
from keras_dlopt.storage.contents import read_stored
from keras_dlopt.storage.decoding import Stored, StoredTensor, decoded
from keras_dlopt.storage.delta import Base
from keras_dlopt.tables import Table, Tabled

SHOWN = 20  # variables of a table
THOROUGH = 1 << 24  # up to 16 MiB of weights gzip and zstd make every effort


@dataclasses.dataclass(frozen=True)
class TensorRow:
    """One variable of the model in the file. Sizes are in bits.

    Attributes:
        path: the variable's path.
        shape: its shape.
        dtype: its dtype.
        method: how it is coded, such as `"sparse codebook"`.
        zeros: share of elements that are 0.
        positions: where the non-zeros are.
        values: indices, grid codes or plain values.
        codebook: codebook, or scales of a grid.
        tables: Huffman tables.
        header: dtype, shape, method, counts.
        entropy_positions: order-0 bound for `positions`, n H(share of non-zeros).
        entropy_values: order-0 bound for the non-zero values (or grid codes), given
            their positions and a codebook.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    method: str
    zeros: float
    positions: int
    values: int
    codebook: int
    tables: int
    header: int
    entropy_positions: float
    entropy_values: float

    @property
    def bits(self) -> int:
        """All bits of the variable in the file."""
        parts = (self.positions, self.values, self.codebook, self.tables, self.header)
        return sum(parts)


@dataclasses.dataclass(frozen=True)
class Ledger(Tabled):
    """The account of a compressed file. The parts add up to the file exactly.

    Attributes:
        rows: one per variable.
        file_bytes: size of the file.
        architecture_bytes: the compressed description of the model.
        container_bytes: magic, version, section sizes, checksum.
        plain_bytes: the variables as they are in memory.
        data: the file itself, from which the figures of other coders are computed.
        base: paths and arrays of the base of a file that is a difference.
    """

    rows: tuple[TensorRow, ...]
    file_bytes: int
    architecture_bytes: int
    container_bytes: int
    plain_bytes: int
    data: bytes = dataclasses.field(repr=False, compare=False)
    base: Base | None = dataclasses.field(default=None, repr=False, compare=False)

    @functools.cached_property
    def gzip_bytes(self) -> int:
        """The plain variables through gzip (level 9; above 16 MiB, 6)."""
        level = 9 if self.plain_bytes <= THOROUGH else 6
        coder = zlib.compressobj(level, wbits=31)
        return sum(len(coder.compress(part)) for part in self._plain()) + len(
            coder.flush()
        )

    @functools.cached_property
    def zstd_bytes(self) -> int:
        """The same through zstd (level 19; above 16 MiB, 9)."""
        level = 19 if self.plain_bytes <= THOROUGH else 9
        coder = zstandard.ZstdCompressor(level).compressobj(self.plain_bytes)
        return sum(len(coder.compress(part)) for part in self._plain()) + len(
            coder.flush()
        )

    def _plain(self) -> Iterator[bytes]:
        most = 8 * self.plain_bytes + MAX_BYTES
        stored = read_stored(self.data, max_bytes=most, base=self.base)
        for tensor in decoded(stored, bounds=False):
            yield tensor.array.tobytes()

    @property
    def ratio(self) -> float:
        """Plain bytes over bytes on disk."""
        return self.plain_bytes / self.file_bytes

    @property
    def bits_per_weight(self) -> float:
        """Bits of the file per element of the variables."""
        elements = sum(int(np.prod(row.shape, dtype=int)) for row in self.rows)
        return 8 * self.file_bytes / max(elements, 1)

    @property
    def entropy_bytes(self) -> float:
        """Order-0 bound for positions and values of all variables."""
        bits = sum(row.entropy_positions + row.entropy_values for row in self.rows)
        return bits / 8

    def tables(self) -> tuple[Table, ...]:
        """The variables that take most of the file, and what is left of it."""
        largest = sorted(self.rows, key=lambda row: -row.bits)
        shown, rest = largest[:SHOWN], largest[SHOWN:]
        rows = [
            (
                row.path,
                " x ".join(map(str, row.shape)),
                row.method,
                f"{row.zeros:.1%}",
                f"{row.bits / max(math.prod(row.shape), 1):.2f}",
                f"{row.bits / 8:,.0f}",
            )
            for row in shown
        ]
        blank = ("",) * 4
        if rest:
            left = sum(row.bits for row in rest) / 8
            rows.append((f"{len(rest)} smaller variables", *blank, f"{left:,.0f}"))
        own = self.architecture_bytes + self.container_bytes
        rows.append(("architecture, checksum", *blank, f"{own:,}"))
        title = (
            f"{self.plain_bytes:,} bytes became {self.file_bytes:,} "
            f"({self.ratio:.1f}x), {self.bits_per_weight:.2f} bits a weight"
        )
        columns = ("variable", "shape", "coded", "zeros", "bits a value", "bytes")
        return (Table(title, columns, tuple(rows)),)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, the derived figures included."""
        names = [
            f.name for f in dataclasses.fields(self) if f.name not in ("data", "base")
        ]
        out: dict[str, Any] = {name: getattr(self, name) for name in names}
        out["rows"] = [
            dataclasses.asdict(row) | {"shape": list(row.shape), "bits": row.bits}
            for row in self.rows
        ]
        derived = ("ratio", "bits_per_weight", "entropy_bytes")
        for name in ("gzip_bytes", "zstd_bytes", *derived):
            out[name] = getattr(self, name)
        return out


def ledger_of(path: str | Path, *, max_bytes: int | None = None) -> Ledger:
    """The account of a file, without building its model.

    Args:
        path: a file written by `save_compressed`.
        max_bytes: limit for the decoded variables; as in `load_compressed`.

    Raises:
        FormatError: if the file is damaged, hostile or too large.
        ConfigError: if there is no such file.
    """
    data = read_limited(Path(path), MAX_BYTES if max_bytes is None else max_bytes)
    limit = limit_of(len(data)) if max_bytes is None else max_bytes
    stored = read_stored(data, max_bytes=limit)
    return account(data, stored, map(row_of, decoded(stored, bounds=True)))


def account(
    data: bytes, stored: Stored, rows: Iterable[TensorRow], base: Base | None = None
) -> Ledger:
    """The account of a file with these variables."""
    found = tuple(rows)
    other = sum(row.bits for row in found) // 8 + stored.architecture_bytes
    return Ledger(
        rows=found,
        file_bytes=len(data),
        architecture_bytes=stored.architecture_bytes,
        container_bytes=len(data) - other,
        plain_bytes=sum(
            math.prod(row.shape) * dtype_of(row.dtype).itemsize for row in found
        ),
        data=data,
        base=base,
    )


def row_of(tensor: StoredTensor) -> TensorRow:
    """The account of one variable."""
    bits = tensor.bits
    zeros, positions, values = tensor.bounds
    return TensorRow(
        path=tensor.path,
        shape=tuple(tensor.array.shape),
        dtype=tensor.array.dtype.name,
        method=tensor.method,
        zeros=zeros,
        positions=bits.get("positions", 0),
        values=bits.get("values", 0),
        codebook=bits.get("codebook", 0),
        tables=bits.get("tables", 0),
        header=bits.get("header", 0),
        entropy_positions=positions,
        entropy_values=values,
    )
