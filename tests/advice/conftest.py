"""`told`: what a marked test must hear before it follows the advice."""

import pytest

from support.advice import Told


@pytest.fixture
def told(request):
    """A context whose block must fail, or warn, with an advice of the test's marks."""
    made = Told([mark.args[1] for mark in request.node.iter_markers("advice")])
    yield made
    made.check()
