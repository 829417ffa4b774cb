"""Every text that gives advice has a test that follows it."""

import pathlib

from support import advice

# Advice that nobody follows yet. This list only shrinks.
LEFT = pathlib.Path(__file__).with_name("left.txt")


def _is_followed(place, text, marks):
    return any(p == place and piece in text for p, piece in marks)


def test_every_advice_is_followed():
    marks, found = set(advice.followed()), set(advice.found())
    open_ = {
        f"{place}: {text!r}"
        for place, text in found
        if not _is_followed(place, text, marks)
    }
    left = set(LEFT.read_text().splitlines()) if LEFT.exists() else set()
    assert sorted(open_ - left) == [], "write a test that follows the advice"
    assert sorted(left - open_) == [], "followed by now: take these lines out"


def test_marks_name_texts_that_exist():
    found = set(advice.found())
    stale = [
        (place, piece)
        for place, piece in advice.followed()
        if not any(p == place and piece in text for p, text in found)
    ]
    assert stale == []


def test_advice_is_found_in_the_source():
    texts = dict.fromkeys(advice.found())
    assert len(texts) > 200
    place = "data/split.py"
    assert [t for p, t in texts if p == place and "Ask for dtype='float32'." in t]
