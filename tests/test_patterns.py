"""Patterns match as Python's `re` does, and in bounded time."""

import re

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from keras_dlopt import matching
from keras_dlopt._compat.patterns import MOST_STATES, Automaton
from keras_dlopt.errors import ConfigError
from keras_dlopt.graph.targets import Target

ONE = ["a", "b", "c", ".", "[ab]", "[^a]", r"\w", "$", "^", r"\b", "/", "(?i:A)"]
REPEATS = ["*", "+", "?", "{2}", "{1,3}", "*?", "??", "{0,2}?", "{2,}"]


def _grown(inner):
    return st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map(lambda p: f"(?:{p[0]}|{p[1]})"),
        st.tuples(inner, st.sampled_from(REPEATS)).map(lambda p: f"({p[0]}){p[1]}"),
        st.tuples(inner, inner).map(lambda p: f"(?={p[0]}){p[1]}"),
        st.tuples(inner, inner).map(lambda p: f"(?!{p[0]}){p[1]}"),
    )


PATTERNS = st.recursive(st.sampled_from(ONE), _grown, max_leaves=8)


@settings(max_examples=300, deadline=None)
@given(PATTERNS, st.lists(st.text("abcA/", max_size=6), min_size=1, max_size=12))
@example(r"(block\d+/)*kernel", ["block1/block22/kernel", "block/kernel", "kernel"])
@example("(?i)CONV.*", ["conv/kernel", "CoNv", "cnv"])
@example("(?!head).*kernel", ["head/kernel", "a/head/kernel", "kernel"])
@example("(?<!head/)kernel|.*(?<=b/)bias", ["kernel", "b/bias", "bias", "cb/bias"])
@example("(?s:.)*|(?m)a$", ["a\nb", "a", ""])
@example("[k-m]", ["k", "\u212a", "K"])
@example("(?i)[k-m]", ["k", "\u212a", "K"])
def test_a_pattern_matches_what_re_matches(pattern, texts):
    try:
        compiled = re.compile(pattern)
    except re.error:
        assume(False)
    made = Automaton(pattern)
    for text in texts:
        assert made.matches(text) == bool(compiled.fullmatch(text)), text


@pytest.mark.parametrize(
    "pattern",
    [
        "(a*)*b",
        "(.*)*(.*)*(.*)*b",
        "((((a*)*)*)*)*b",
        ".*" * 200 + "b",
        "(?=(a|a)*b)a*",
    ],
)
def test_no_pattern_takes_exponential_time(pattern):
    # By backtracking these take from minutes to longer than the world exists.
    assert not matching(pattern)(Target("a" * 200))
    assert len(Automaton(pattern)._states) < 500


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        (r"(a)\1", "cannot: it has a groupref. Write it with plain groups"),
        ("(?>a)b", "cannot: it has a atomic group"),
        ("a*+b", "cannot: it has a possessive repeat"),
        (r"(a)?(?(1)b|c)", "cannot: it has a groupref exists"),
        ("(a{1,1000}){1,1000}", "cannot: its repeats are too many"),
        (f"a{{{MOST_STATES}}}", "cannot: its repeats are too many"),
        ("(" * 2000 + "a" + ")" * 2000, "does not compile: maximum recursion depth"),
        ([], "takes a regular expression. Received: .., which does not compile"),
    ],
)
def test_what_has_no_bound_is_refused(pattern, text):
    with pytest.raises(ConfigError, match=text):
        matching(pattern)


@pytest.mark.advice("select.py", "Write it with plain groups and repeats, or join")
def test_following_the_advice():
    with pytest.raises(ConfigError, match="join several selectors by & and |"):
        matching(r"(a|b)/\1/kernel")
    plain = matching("(a/a|b/b)/kernel")
    joined = matching("a/a/kernel") | matching("b/b/kernel")
    for path in ("a/a/kernel", "b/b/kernel", "a/b/kernel"):
        assert plain(Target(path)) == joined(Target(path)) == (path[0] == path[2])
