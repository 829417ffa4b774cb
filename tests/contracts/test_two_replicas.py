"""Two logical CPU devices under MirroredStrategy train like one device."""

import pytest

from contracts import other_process

pytestmark = [pytest.mark.dist, pytest.mark.timeout(other_process.SECONDS + 20)]


@other_process.cases("two_replicas")
def test_two_replicas_equal_one_device(name):
    other_process.check("two_replicas", name)
