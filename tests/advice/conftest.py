"""`told`: what a marked test must hear before it follows the advice."""

import contextlib
import re

import pytest

from keras_dlopt.errors import DloptError


def _pattern(text):
    return re.compile(re.escape(text).replace(r"\{\}", ".*"), re.DOTALL)


@pytest.fixture
def told(request):
    """A context whose block must fail, or warn, with an advice of the test's marks.

    Every marked text must be heard by the end of the test.
    """
    left = [mark.args[1] for mark in request.node.iter_markers("advice")]
    assert left, "mark the test with the advice that it follows"
    heard = set()

    @contextlib.contextmanager
    def listen(*kinds):
        try:
            yield
        except (DloptError, UserWarning, *kinds) as error:
            said = {text for text in left if _pattern(text).search(str(error))}
            if not said:
                pytest.fail(f"none of {left} is said in: {error}")
            heard.update(said)
        else:
            pytest.fail(f"nothing was refused; expected one of {left}")

    yield listen
    assert heard == set(left), f"never heard: {set(left) - heard}"
