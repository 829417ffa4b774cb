"""Mutations of JSON values and texts, as careless editors, disks and attackers make."""

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

JUNK = (
    *(None, True, -1, 0, 3, -0.5, 10**30, 1e308, 2**63, float("nan"), float("inf")),
    *("", "x", "kernel", "9" * 400, "\ud800"),
    *([], {}, [[]], [1, 2], {"a": 1}),
    *({"class": "Prune", "config": {}}, {"class": "x", "config": 3}),
    {"class_name": "Dense", "config": {}},
)


def places(value: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value inside one."""
    yield before
    if isinstance(value, dict | list):
        keys = value if isinstance(value, dict) else range(len(value))
        for key in keys:
            yield from places(value[key], (*before, key))


def _at(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


def mutated(value: Any, draw: random.Random) -> Any:
    """A copy in which a place or two were dropped, replaced, renamed, moved, nested."""
    value = copy.deepcopy(value)
    for _ in range(draw.randint(1, 2)):
        known = list(places(value))
        path = draw.choice(known)
        if not path:
            if draw.random() < 0.1:
                return draw.choice(JUNK)
            continue
        around, key = _at(value, path[:-1]), path[-1]
        action = draw.randint(0, 4)
        if action == 0:
            del around[key]
        elif action == 1:
            around[key] = draw.choice(JUNK)
        elif action == 2 and isinstance(around, dict):
            around[draw.choice(("x", "class", "config", "rank", ""))] = around.pop(key)
        elif action == 3:
            around[key] = copy.deepcopy(_at(value, draw.choice(known)))
        else:
            around[key] = [around[key]]
    return value


def damaged(text: bytes, draw: random.Random) -> bytes:
    """A copy in which some bytes were altered, cut out, doubled, or nested deep."""
    data = bytearray(text)
    for _ in range(draw.randint(1, 3)):
        at, action = draw.randrange(len(data) + 1), draw.randint(0, 3)
        if action == 0 and at < len(data):
            data[at] = draw.randrange(256)
        elif action == 1:
            del data[at : at + draw.randint(1, 5)]
        elif action == 2:
            data[at:at] = data[max(0, at - 9) : at]
        else:
            data[at:at] = b"[" * draw.choice((1, 200, 100_000))
    return bytes(data)


def texts(seeds: list[Any], count: int, *, seed: int = 0) -> Iterator[bytes]:
    """Mutations of JSON values as texts."""
    draw = random.Random(seed)
    for _ in range(count):
        text = json.dumps(mutated(draw.choice(seeds), draw)).encode()
        yield damaged(text, draw) if draw.random() < 0.3 else text
