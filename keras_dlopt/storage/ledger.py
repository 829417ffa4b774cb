"""Where the bytes of a compressed file go, and how few they could be."""

import dataclasses
import gzip
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

from keras_dlopt.codecs.container import MAX_BYTES, limit_of
from keras_dlopt.files import read_limited
from keras_dlopt.storage.contents import Contents, StoredTensor, read_contents

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
class Ledger:
    """The account of a compressed file. The parts add up to the file exactly.

    Attributes:
        rows: one per variable.
        file_bytes: size of the file.
        architecture_bytes: the compressed description of the model.
        container_bytes: magic, version, section sizes, checksum.
        plain_bytes: the variables as they are in memory.
        gzip_bytes: those, concatenated, through gzip (level 9; above 16 MiB, 6).
        zstd_bytes: the same through zstd (level 19; above 16 MiB, 9).
    """

    rows: tuple[TensorRow, ...]
    file_bytes: int
    architecture_bytes: int
    container_bytes: int
    plain_bytes: int
    gzip_bytes: int
    zstd_bytes: int

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

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, the derived figures included."""
        out = dataclasses.asdict(self)
        out["rows"] = [
            dataclasses.asdict(row) | {"shape": list(row.shape), "bits": row.bits}
            for row in self.rows
        ]
        for name in ("ratio", "bits_per_weight", "entropy_bytes"):
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
    return account(read_contents(data, max_bytes=limit))


def account(contents: Contents) -> Ledger:
    """The account of a decoded file."""
    rows = tuple(_row(tensor) for tensor in contents.tensors)
    plain = b"".join(t.array.tobytes() for t in contents.tensors)
    small = len(plain) <= THOROUGH
    other = sum(row.bits for row in rows) // 8 + contents.architecture_bytes
    return Ledger(
        rows=rows,
        file_bytes=contents.file_bytes,
        architecture_bytes=contents.architecture_bytes,
        container_bytes=contents.file_bytes - other,
        plain_bytes=len(plain),
        gzip_bytes=len(gzip.compress(plain, 9 if small else 6)),
        zstd_bytes=len(zstandard.compress(plain, 19 if small else 9)),
    )


def _row(tensor: StoredTensor) -> TensorRow:
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
