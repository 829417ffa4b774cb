"""What a layer's sizes waste on the matrix units, and which sizes would not. Pure.

A matrix unit multiplies blocks of `unit` x `unit` numbers (128, on the newest chips
256). A product over `inputs` features into `units` features is done in whole blocks, so
both are rounded up. That is the upper bound of what the compiler can waste: for
convolutions over few channels it may put pixels into the empty places.
"""

import dataclasses
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Product:
    """The matrix product that a layer does for every example or pixel.

    Attributes:
        path: the layer.
        inputs: length of the sum: features, or features x kernel size.
        outputs: features that come out.
        work: operations for one example, multiply and add counted as two.
    """

    path: str
    inputs: int
    outputs: int
    work: float = 0.0


@dataclasses.dataclass(frozen=True)
class Padding:
    """What one product wastes.

    Attributes:
        path: the layer.
        inputs: length of the sum.
        outputs: features that come out.
        waste: share of the multiplications in its blocks that are padding.
        share: share of the model's work that is this layer's.
        advice: which size to use, empty when nothing is wasted.
    """

    path: str
    inputs: int
    outputs: int
    waste: float
    share: float
    advice: str


def padding(products: Sequence[Product], *, unit: int = 128) -> list[Padding]:
    """What each product wastes on units of this width, most wasted work first.

    Example:
        >>> (found,) = padding([Product("head", inputs=256, outputs=100)])
        >>> round(found.waste, 3), found.advice
        (0.219, 'outputs 100 -> 128 costs the same')
    """
    total = sum(p.work for p in products) or 1.0
    found = [
        Padding(
            path=p.path,
            inputs=p.inputs,
            outputs=p.outputs,
            waste=_waste(p, unit),
            share=p.work / total,
            advice=_advice(p, unit),
        )
        for p in products
    ]
    return sorted(found, key=lambda p: -p.waste * max(p.share, 1e-12))


def total_waste(found: Sequence[Padding]) -> float:
    """Share of all multiplications in the blocks that are padding."""
    useful = sum(p.share for p in found)
    blocks = sum(p.share / (1 - p.waste) for p in found)
    return 1 - useful / blocks if blocks else 0.0


def _up(size: int, unit: int) -> int:
    return -(-size // unit) * unit


def _waste(p: Product, unit: int) -> float:
    whole = _up(p.inputs, unit) * _up(p.outputs, unit)
    return 1 - p.inputs * p.outputs / whole


def _advice(p: Product, unit: int) -> str:
    up, down = _up(p.outputs, unit), p.outputs // unit * unit
    parts = []
    if up != p.outputs:
        text = f"outputs {p.outputs} -> {up} costs the same"
        if down and p.outputs - down <= unit // 4:
            text += f", {down} saves a block"
        parts.append(text)
    if p.inputs < unit // 2:
        parts.append(f"its sum over {p.inputs} fills {p.inputs / unit:.0%} of a unit")
    return "; ".join(parts)
