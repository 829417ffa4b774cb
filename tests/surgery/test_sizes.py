"""What is foretold of a smaller model is what it has when it is built."""

import numpy as np
import pytest

from keras_dlopt.measure.costs import costs
from keras_dlopt.surgery import dependencies
from keras_dlopt.surgery.removal import without
from keras_dlopt.surgery.sizes import Sizes
from support.removing import drawn
from tests.surgery.test_removal import TRAPS, model_of


@pytest.mark.parametrize("trap", TRAPS, ids=lambda trap: trap.__name__)
def test_sizes_are_those_of_the_model_that_is_built(trap):
    model = model_of(trap)
    found = dependencies(model)
    sizes = Sizes(found)
    gone = drawn(found, 0.4, np.random.default_rng(0))
    for net, leaves in ((model, None), (without(found, gone), gone)):
        counted = costs(net)
        assert sizes.parameters(leaves) == net.count_params() == counted.parameters
        assert sizes.bytes(leaves) == counted.bytes
        assert sizes.macs(leaves) == counted.macs
    assert sizes.open == []
