"""A lower bound on the time of a step, from what the compiler counted. Pure Python."""

import dataclasses
from collections.abc import Sequence

from keras_dlopt.tpu.chips import Topology
from keras_dlopt.tpu.hlo import Collective


@dataclasses.dataclass(frozen=True)
class Roofline:
    """The least time of one step, if one resource were the only limit.

    An estimate, not a measurement: real steps take longer, because no resource runs at
    its peak all the time and because the three do not overlap perfectly.

    Attributes:
        compute: seconds, operations over the chip's peak bfloat16 rate.
        memory: seconds, bytes over the rate of the chip's memory.
        network: seconds, bytes sent over the rate of its links.
    """

    compute: float
    memory: float
    network: float

    @property
    def seconds(self) -> float:
        """The largest of the three."""
        return max(self.compute, self.memory, self.network)

    @property
    def bound(self) -> str:
        """The resource that takes longest: compute, memory or network."""
        times = dataclasses.asdict(self)
        return max(times, key=lambda name: times[name])


def roofline(
    flops: float, moved: float, exchanged: Sequence[Collective], topology: Topology
) -> Roofline:
    """The roofline of a program on one device of a topology.

    Args:
        flops: operations on one device.
        moved: bytes read and written by one device.
        exchanged: its collectives.
        topology: which chips.

    Example:
        >>> from keras_dlopt.tpu import topology
        >>> roofline(197e9, 819e3, [], topology("v5e:1x1")).bound
        'compute'
    """
    chip, devices = topology.chip, topology.devices
    return Roofline(
        compute=flops / chip.device_flops,
        memory=moved / chip.device_memory_rate,
        network=sum(c.seconds(devices, chip.device_link_rate) for c in exchanged),
    )
