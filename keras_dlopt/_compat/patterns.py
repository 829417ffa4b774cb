"""Regular expressions in bounded time: all states at once, no backtracking."""

import functools
import re
from collections.abc import Callable, Iterable
from typing import Any

from re import _compiler, _constants, _parser  # type: ignore[attr-defined]  # isort: skip

MOST_STATES = 5_000
_ONE = {"LITERAL", "NOT_LITERAL", "ANY", "IN", "AT"}
Step = tuple[str, Any, Any]


class Automaton:
    """A regular expression as states, which a text passes through all at once.

    Python's `re` tries one way after the other, and some patterns have exponentially
    many: `(a*)*b` takes minutes on 30 letters. Here a text of n characters costs at
    most n times the number of states (n squared with look-arounds).

    Relies on: `re._parser.parse`, the names of its nodes, and `re._compiler.compile` of
    a part of what it returns, all since Python 3.11.

    Args:
        pattern: as for `re`, without back-references, atomic groups and possessive
            repeats.

    Raises:
        re.error: for what does not compile.
        ValueError: for what has no states, or more than 5,000.
    """

    def __init__(self, pattern: str):
        re.compile(pattern)
        self._states: list[Step] = []
        parsed = _parser.parse(pattern)
        self._flags = parsed.state.flags
        self._start = self._sequence(parsed, self._add("end", None, None), self._flags)

    def matches(self, text: str) -> bool:
        """Whether the whole text is what the expression describes."""
        return len(text) in self._ends(self._start, text, 0, {})

    def _add(self, kind: str, value: Any, following: Any) -> int:
        if len(self._states) >= MOST_STATES:
            raise ValueError("its repeats are too many")
        self._states.append((kind, value, following))
        return len(self._states) - 1

    def _sequence(self, parts: Iterable[Any], following: int, flags: int) -> int:
        for op, value in reversed(list(parts)):
            following = self._node(op, value, following, flags)
        return following

    def _node(self, op: Any, value: Any, following: int, flags: int) -> int:
        name = str(op)
        if name in _ONE:
            kind = "at" if name == "AT" else "character"
            return self._add(kind, _single((op, value), flags), following)
        if name == "BRANCH":
            ways = [self._sequence(part, following, flags) for part in value[1]]
            return self._add("split", ways, None)
        if name == "SUBPATTERN":
            _, more, less, part = value
            return self._sequence(part, following, (flags | more) & ~less)
        if name in ("MAX_REPEAT", "MIN_REPEAT"):
            return self._repeat(value, following, flags)
        if name in ("ASSERT", "ASSERT_NOT"):
            direction, part = value
            inner = self._sequence(part, self._add("end", None, None), flags)
            wide = part.getwidth()[0] if direction < 0 else None
            return self._add("look", (inner, wide, name == "ASSERT"), following)
        raise ValueError(f"it has a {name.lower().replace('_', ' ')}")

    def _repeat(self, value: Any, following: int, flags: int) -> int:
        low, high, part = value
        if high is _constants.MAXREPEAT:
            loop = self._add("split", [], None)
            again = self._sequence(part, loop, flags)
            self._states[loop] = ("split", [again, following], None)
            following = loop
        else:
            end = following
            for _ in range(high - low):
                once = self._sequence(part, following, flags)
                following = self._add("split", [once, end], None)
        for _ in range(low):
            following = self._sequence(part, following, flags)
        return following

    def _ends(self, start: int, text: str, at: int, seen: dict) -> set[int]:
        """Where the ways end that begin in this state at this place."""
        ends: set[int] = set()
        now = {start}
        for place in range(at, len(text) + 1):
            reached, then = self._reached(now, text, place, seen), set()
            for state in reached:
                kind, value, following = self._states[state]
                if kind == "end":
                    ends.add(place)
                elif kind == "character" and value(text, place):
                    then.add(following)
            now = then
            if not now:
                break
        return ends

    def _reached(self, states: set[int], text: str, place: int, seen: dict) -> set[int]:
        found, left = set(), list(states)
        while left:
            state = left.pop()
            if state in found:
                continue
            found.add(state)
            kind, value, following = self._states[state]
            if kind == "split":
                left += value
            elif kind == "at":
                left += [following] if value(text, place) else []
            elif kind == "look":
                left += [following] if self._looks(state, text, place, seen) else []
        return found

    def _looks(self, state: int, text: str, place: int, seen: dict) -> bool:
        if (state, place) not in seen:
            inner, wide, wanted = self._states[state][1]
            if wide is None:
                there = bool(self._ends(inner, text, place, seen))
            else:
                before = place - wide
                there = before >= 0 and place in self._ends(inner, text, before, seen)
            seen[state, place] = there == wanted
        return seen[state, place]


def _single(node: tuple[Any, Any], flags: int) -> Callable[[str, int], Any]:
    """The test of one character, or of a place, which `re` itself does."""
    state = _parser.State()
    state.flags = flags
    return _compiler.compile(_parser.SubPattern(state, [node]), flags).match


@functools.lru_cache(maxsize=256)
def automaton(pattern: str) -> Automaton:
    """The automaton of a pattern, kept."""
    return Automaton(pattern)
