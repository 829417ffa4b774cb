"""The TPU generations and the topologies that the compiler knows. Pure Python.

Peak rates and memory rates are those of Google's Cloud TPU documentation, a page per
generation. The usable memory is what the compiler itself (libtpu 0.0.52) names when it
refuses a program that is too big: somewhat less than the memory on the chip.
"""

import dataclasses
import re

from keras_dlopt.errors import ConfigError

GIB = 2**30
_DOCS = "https://cloud.google.com/tpu/docs/"


@dataclasses.dataclass(frozen=True)
class Chip:
    """One TPU generation.

    Attributes:
        name: as in a topology name, `"v5e"`.
        flops: peak bfloat16 operations a second of a whole chip.
        memory: bytes that a program may use on one device.
        memory_rate: bytes a second between a chip and its memory.
        link_rate: bytes a second that a chip can send over all its links together.
        devices: devices of a chip as JAX counts them: 2 where each core is one.
        unit: width of a matrix unit, 128 or 256.
        axes: dimensions of a topology, 2 or 3.
        source: where the rates are from.
    """

    name: str
    flops: float
    memory: float
    memory_rate: float
    link_rate: float
    devices: int
    unit: int
    axes: int
    source: str

    @property
    def device_flops(self) -> float:
        """Peak bfloat16 operations a second of one device."""
        return self.flops / self.devices

    @property
    def device_memory_rate(self) -> float:
        """Bytes a second between one device and its memory."""
        return self.memory_rate / self.devices

    @property
    def device_link_rate(self) -> float:
        """Bytes a second that one device can send."""
        return self.link_rate / self.devices


def _chip(name, teraflops, gib, memory_rate, link_rate, devices, unit, axes, page):
    return Chip(
        name=name,
        flops=teraflops * 1e12,
        memory=gib * GIB,
        memory_rate=memory_rate * 1e9,
        link_rate=link_rate * 1e9,
        devices=devices,
        unit=unit,
        axes=axes,
        source=_DOCS + page,
    )


# Links: half of the documented bidirectional rate; for v3 and v4 the documented
# all-reduce rate of a whole pod divided by its chips.
CHIPS = {
    chip.name: chip
    for chip in (
        _chip("v3", 123, 15.48, 900, 332, 2, 128, 2, "v3"),
        _chip("v4", 275, 15.25, 1200, 268, 2, 128, 3, "v4"),
        _chip("v5e", 197, 15.75, 819, 200, 1, 128, 2, "v5e"),
        _chip("v5p", 459, 95.73, 2765, 600, 1, 128, 3, "v5p"),
        _chip("v6e", 918, 31.24, 1638, 400, 1, 256, 2, "v6e"),
        # Memory and link rates of TPU7x: 7.4 TB/s and 1.2 TB/s in both directions.
        _chip("tpu7x", 2307, 94.74, 7380, 600, 2, 256, 3, "tpu7x"),
    )
}

KNOWN_TOPOLOGIES = (
    *("v3:2x2", "v3:4x4", "v4:2x2x1", "v4:2x2x2"),
    *("v5e:1x1", "v5e:2x2", "v5e:2x4", "v5e:4x4", "v5e:4x8", "v5e:8x8", "v5e:16x16"),
    *("v5p:2x2x1", "v5p:2x2x2", "v5p:2x2x4", "v5p:4x4x4"),
    *("v6e:1x1", "v6e:2x2", "v6e:2x4", "v6e:4x4", "v6e:8x8", "v6e:16x16"),
    *("tpu7x:2x2x1", "tpu7x:2x2x2"),
)


@dataclasses.dataclass(frozen=True)
class Topology:
    """Some chips of one generation and how they are laid out.

    Attributes:
        name: what the compiler is asked for, `"v5e:2x4"`.
        chip: the generation.
        shape: chips along each axis.
    """

    name: str
    chip: Chip
    shape: tuple[int, ...]

    @property
    def chips(self) -> int:
        """Number of chips."""
        count = 1
        for length in self.shape:
            count *= length
        return count

    @property
    def devices(self) -> int:
        """Number of devices as JAX counts them."""
        return self.chips * self.chip.devices


def topology(name: str) -> Topology:
    """The topology of a name such as `"v5e:2x4"`.

    The compiler accepts more layouts than `KNOWN_TOPOLOGIES` lists; a name of the right
    form passes here, and a layout that does not exist is refused by the compiler.

    Raises:
        ConfigError: for another form, or a generation without figures here.

    Example:
        >>> topology("v5e:2x4").chips
        8
        >>> topology("v3:2x2").devices
        8
    """
    match = re.fullmatch(r"([a-z0-9]+):(\d+(?:x\d+)+)", str(name).strip().lower())
    chip = CHIPS.get(match[1]) if match else None
    shape = tuple(int(n) for n in match[2].split("x")) if match else ()
    if chip is None or len(shape) != chip.axes or 0 in shape:
        raise ConfigError(
            f"Unknown topology {name!r}. A topology is a generation and its chips "
            f"along each axis, for example: {', '.join(KNOWN_TOPOLOGIES)}."
        )
    return Topology(f"{chip.name}:{match[2]}", chip, shape)  # type: ignore[index]
