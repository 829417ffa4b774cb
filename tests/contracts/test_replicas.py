"""On 2 logical CPU devices, some on 4, all trains like on one: 20 steps, 1e-6."""

import pytest

from contracts import other_process

pytestmark = [pytest.mark.dist, pytest.mark.timeout(other_process.SECONDS + 20)]


@other_process.cases("replicas")
def test_replicas_equal_one_device(name):
    other_process.check("replicas", name)
