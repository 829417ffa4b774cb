"""Reads a compiled program's text: its collectives, and the padding of its buffers.

Pure Python. The text is what XLA prints for a module, one instruction a line:

    %all-reduce = f32[64]{0:T(128)} all-reduce(%x), replica_groups=..., metadata={...}
"""

import dataclasses
import math
import re
from collections.abc import Iterator

KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
)
BITS = {
    **dict.fromkeys(("s4", "u4", "f4e2m1fn"), 4),
    **dict.fromkeys(("pred", "s8", "u8", "f8e4m3fn", "f8e5m2", "f8e4m3b11fnuz"), 8),
    **dict.fromkeys(("s16", "u16", "f16", "bf16"), 16),
    **dict.fromkeys(("s32", "u32", "f32"), 32),
    **dict.fromkeys(("s64", "u64", "f64", "c64"), 64),
    "c128": 128,
}
_SHAPE = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\](?:\{([^{}]*)\})?")
_INSTRUCTION = re.compile(
    r"^\s*(?:ROOT )?%\S+ = (\(.*?\)|\S+) (" + "|".join(KINDS) + r")(-start)?\("
)
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_TILE = re.compile(r"T\(([\d,]+)\)")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One exchange between the devices.

    Attributes:
        kind: `"all-reduce"` and so on.
        bytes: of its result, on one device.
        path: where in the model it comes from, as the compiler recorded it.
    """

    kind: str
    bytes: int
    path: str = ""

    def seconds(self, devices: int, rate: float) -> float:
        """Time it takes at least, if each device sends at `rate` bytes a second.

        A ring sends 2 (n - 1) / n of the data for an all-reduce and (n - 1) / n for the
        others. An estimate: hops, latency and overlap with arithmetic are left out.
        """
        if devices < 2:
            return 0.0
        share = (devices - 1) / devices
        sent = {"all-reduce": 2 * share, "collective-permute": 1.0}.get(
            self.kind, share
        )
        if self.kind == "reduce-scatter":  # its result is one device's share
            sent *= devices
        return sent * self.bytes / rate


def collectives(text: str) -> list[Collective]:
    """Every collective of a compiled module, in order.

    Example:
        >>> line = '%a = f32[64,2]{1,0} all-reduce(%x), metadata={op_name="jit/conv"}'
        >>> collectives(line)
        [Collective(kind='all-reduce', bytes=512, path='jit/conv')]
    """
    found = []
    for line in text.splitlines():
        match = _INSTRUCTION.match(line)
        if match is None:
            continue
        result, kind, started = match.groups()
        sizes = [size for size, _ in sizes_of(result)]
        # An asynchronous start holds its operand and its result (and counters).
        if started and len(sizes) > 1:
            sizes = [max(sizes)]
        name = _OP_NAME.search(line)
        found.append(Collective(kind, sum(sizes), name[1] if name else ""))
    return found


def sizes_of(text: str) -> Iterator[tuple[int, int]]:
    """Bytes of each array shape in `text`: of its values, and of its padded tiles.

    Example:
        >>> list(sizes_of("bf16[100,60]{1,0:T(8,128)(2,1)}"))
        [(12000, 26624)]
    """
    for dtype, dims, layout in _SHAPE.findall(text):
        if dtype not in BITS:
            continue
        shape = [int(d) for d in dims.split(",") if d]
        padded = _padded(shape, layout)
        bits = BITS[dtype]
        yield math.prod(shape) * bits // 8, math.prod(padded) * bits // 8


def _padded(shape: list[int], layout: str) -> list[int]:
    order, _, rest = layout.partition(":")
    tile = _TILE.search(rest)
    if tile is None or not shape:
        return shape
    minor_to_major = [int(d) for d in order.split(",") if d]
    physical = [shape[d] for d in reversed(minor_to_major)] or list(shape)
    sides = [int(t) for t in tile[1].split(",")][-len(physical) :]
    for back, side in enumerate(reversed(sides), start=1):
        physical[-back] = -(-physical[-back] // side) * side
    return physical


def parameters(text: str) -> list[tuple[int, int]]:
    """Bytes of each argument of the program: of its values, and as it is stored."""
    entry = text[text.find("\nENTRY") + 1 :]
    found = []
    for line in entry.splitlines():
        match = re.match(r"^\s*%\S+ = (.+?) parameter\(\d+\)", line)
        if match:
            found += list(sizes_of(match[1]))
    return found
