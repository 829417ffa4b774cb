"""Everything in `keras.ops` trains on the JAX backend too."""

import pytest

from contracts import other_process

pytest.importorskip("jax")
pytestmark = [pytest.mark.jax, pytest.mark.timeout(other_process.SECONDS + 20)]


@other_process.cases("jax")
def test_jax_backend(name):
    other_process.check("jax", name)
