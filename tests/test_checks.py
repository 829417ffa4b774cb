"""One verdict for one kind of argument, whatever type its number has."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_dlopt import checks
from keras_dlopt.errors import ConfigError

KINDS = st.sampled_from(
    [float, np.float16, np.float32, np.float64, lambda v: np.asarray(v)]
)
WHOLE_KINDS = st.sampled_from(
    [int, np.int8, np.int32, np.int64, np.uint8, lambda v: np.asarray(v)]
)
NO_NUMBERS = (True, False, np.True_, np.asarray(True), "1", None, [1], 1j, np.ones(1))


@given(st.floats(-4, 4, width=16), KINDS, st.booleans(), st.booleans())
def test_a_number_is_judged_by_its_value_alone(value, kind, open_low, open_high):
    low = {"above" if open_low else "least": -1}
    high = {"below" if open_high else "most": 2}
    inside = (value > -1 if open_low else value >= -1) and (
        value < 2 if open_high else value <= 2
    )
    if inside:
        got = checks.number(kind(value), name="x", **low, **high)
        assert type(got) is float
        assert got == value
    else:
        with pytest.raises(ConfigError, match=r"^x must be a number in .-1, 2"):
            checks.number(kind(value), name="x", **low, **high)


@given(st.integers(0, 100), WHOLE_KINDS)
def test_a_whole_number_is_judged_by_its_value_alone(value, kind):
    if value >= 50:
        got = checks.whole(kind(value), name="x", least=50)
        assert type(got) is int
        assert got == value
        assert checks.number(kind(value), name="x") == value
    else:
        with pytest.raises(ConfigError, match=r"x must be a whole number, 50 or gr"):
            checks.whole(kind(value), name="x", least=50)


@pytest.mark.parametrize("value", NO_NUMBERS)
@pytest.mark.parametrize("check", [checks.number, checks.whole])
def test_what_is_no_number(check, value):
    with pytest.raises(ConfigError, match="x must be a (whole )?number. Received"):
        check(value, name="x")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 10**400])
@pytest.mark.parametrize("kind", [lambda v: v, np.float32, np.asarray])
def test_numbers_are_finite_unless_said(value, kind):
    if isinstance(value, int) and kind is np.float32:
        return
    with pytest.raises(ConfigError, match="x must be a number. Received"):
        checks.number(kind(value), name="x")
    if value == math.inf:
        assert checks.number(kind(value), name="x", infinite=True) == math.inf
    else:
        with pytest.raises(ConfigError, match="x must be a number, 0 or greater"):
            checks.number(kind(value) if kind else 0, name="x", least=0, infinite=True)


@pytest.mark.parametrize("value", [3.0, np.float32(3), 2.5, np.asarray(3.0)])
def test_a_float_is_no_whole_number(value):
    with pytest.raises(ConfigError, match="x must be a whole number, 1 or greater"):
        checks.count(value, name="x")


# A check, the words for what it wants, what it takes and what it refuses.
NAMED = [
    (checks.positive, "a positive number", (1e-9, 2), (0, -1)),
    (checks.rate, "a number, 0 or greater", (0, 2), (-1e-9,)),
    (checks.probability, r"a number in \[0, 1\]", (0, 1), (-0.1, 1.1)),
    (checks.decay, r"a number in \[0, 1\)", (0, 0.9), (-0.1, 1)),
    (checks.share, r"a number in \(0, 1\]", (0.1, 1), (0, 1.1)),
    (checks.fraction, r"a number in \(0, 1\)", (0.1, 0.9), (0, 1)),
    (checks.count, "a whole number, 1 or greater", (1, 9), (0, 1.0)),
    (checks.seed, "a whole number, 0 or greater", (0, 9), (-1, 1.0)),
    (checks.boolean, "True or False", (True, np.False_), (0, 1, "yes", None)),
    (checks.text, "a text", ("a",), ("", 1, None)),
    (checks.function, "a function", (len, lambda: 0), (1, "len", None)),
]


@pytest.mark.parametrize(("check", "wanted", "good", "bad"), NAMED)
def test_named_kinds(check, wanted, good, bad):
    for value in good:
        got = check(value, name="x")
        assert got == value
        assert type(got).__module__ != "numpy"
    for value in bad:
        text = rf"^x must be {wanted}\. Received: .*\. Try another\.$"
        with pytest.raises(ConfigError, match=text):
            check(value, name="x", hint="Try another.")


@pytest.mark.parametrize(
    ("bounds", "text"),
    [
        ({"above": 1}, "a number above 1. "),
        ({"below": 1}, "a number below 1. "),
        ({"most": 1}, "a number, 1 or less. "),
        ({"least": 2, "below": 9.5}, r"a number in \[2, 9.5\)"),
    ],
)
def test_the_words_for_a_range(bounds, text):
    with pytest.raises(ConfigError, match=f"x must be {text}"):
        checks.number("a", name="x", **bounds)


def test_whole_numbers_of_a_range():
    with pytest.raises(ConfigError, match=r"bits must be a whole number in \[2, 16\]"):
        checks.whole(17, name="bits", least=2, most=16)
    with pytest.raises(ConfigError, match=r"axis must be a whole number, 3 or less"):
        checks.whole(4, name="axis", most=3)


def test_choices():
    assert checks.choice("a", name="x", choices=("a", "b")) == "a"
    assert checks.choice(None, name="x", choices=(None, "b")) is None
    with pytest.raises(ConfigError, match="mode must be 'min' or 'max'. Received: 'mi"):
        checks.choice("mix", name="mode", choices=("min", "max"))
    text = "shortcut must be one of 'pad', 'none', None. Received: 'Nome'. Did you mean"
    with pytest.raises(ConfigError, match=f"{text} 'none'. See the paper."):
        checks.choice(
            "Nome",
            name="shortcut",
            choices=("pad", "none", None),
            hint="See the paper.",
        )
    for value in (0, False, ["a"], np.ones(2)):
        with pytest.raises(ConfigError, match="x must be 'a' or None. Received"):
            checks.choice(value, name="x", choices=("a", None))


def test_instances():
    assert checks.instance(3, int, name="x") == 3
    with pytest.raises(ConfigError, match="x must be an int. Received: 'a'. Count."):
        checks.instance("a", int, name="x", hint="Count.")
    with pytest.raises(ConfigError, match=r"x must be a number, such as 3. Received"):
        checks.instance("a", int, name="x", wanted="a number, such as 3")


def test_several():
    assert checks.several([1, 2], checks.count, name="x") == (1, 2)
    assert checks.several(np.array([1, 2]), checks.count, name="x", length=2) == (1, 2)
    for value in ((), 1, "12", None, np.ones((1, 1))):
        with pytest.raises(ConfigError, match="x must be a tuple. Received"):
            checks.several(value, checks.count, name="x")
    with pytest.raises(ConfigError, match=r"x must be a tuple of 2. Received: \(1,\)"):
        checks.several((1,), checks.count, name="x", length=2)
    with pytest.raises(
        ConfigError, match=r"x\[1\] must be a whole number, 1 or greate"
    ):
        checks.several((1, 0), checks.count, name="x")


def test_optional():
    assert checks.optional(checks.whole, None, name="x") is None
    assert checks.optional(checks.whole, np.int8(3), name="x", least=1) == 3
    text = "x must be a whole number, 1 or greater, or None. Received: 0. Count."
    with pytest.raises(ConfigError, match=text):
        checks.optional(checks.whole, 0, name="x", least=1, hint="Count.")


@pytest.mark.parametrize(
    ("strict", "values", "text"),
    [
        (
            False,
            {"low": 2, "high": 1},
            "low <= high must hold. Received: low=2, high=1",
        ),
        (True, {"low": 1, "high": 1}, "low < high must hold. Received: low=1, high=1"),
        (False, {"a": 1, "b": None, "c": 0}, "a <= c must hold. Received: a=1, c=0"),
    ],
)
def test_order(strict, values, text):
    with pytest.raises(ConfigError, match=f"{text}. Swap."):
        checks.ordered(strict=strict, hint="Swap.", **values)
    checks.ordered(low=1, middle=None, high=1)
    checks.ordered(strict=True, low=1, high=2)


def test_what_was_given_is_shown_in_short():
    with pytest.raises(ConfigError) as error:
        checks.number("a" * 10_000, name="x")
    assert len(str(error.value)) < 300
    with pytest.raises(ConfigError, match="Received: a value of the type int."):
        checks.number(10**5000, name="x")
