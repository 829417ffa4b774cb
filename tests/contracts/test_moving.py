"""Optimizer state goes into a strategy of 2 devices and out of it, bit for bit."""

import pytest

from catalogue.optimizers import CASES
from contracts import other_process

pytestmark = [pytest.mark.dist, pytest.mark.timeout(other_process.SECONDS + 20)]


@pytest.mark.slow
@pytest.mark.parametrize("name", [c.name for c in CASES if c.kind == "optimizer"])
def test_state_moves_into_a_strategy_and_out(name):
    other_process.check("moving", name)
