"""Histograms of calibration against NumPy's."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_dlopt.post_training.calibrate import _BINS, _Seen
from keras_dlopt.transforms.quantize.grids import IntegerGrid
from keras_dlopt.transforms.quantize.observers import MSE


@pytest.mark.filterwarnings("error")
@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.floats(1e-30, 1e30),
    st.floats(-1, 1),
    st.sampled_from([1, 7, 70_000]),
)
def test_bins_are_numpys_but_for_values_at_an_edge(seed, scale, shift, size):
    rng = np.random.default_rng(seed)
    batches = rng.normal(shift, 1, (3, size)).astype("float32") * np.float32(scale)
    seen = _Seen()
    for batch in batches:
        seen.add(batch, True)
    for batch in batches:
        seen.bin(batch, True)
    counts, _ = np.histogram(batches, _BINS, seen.ends)
    assert seen.histogram.sum() == batches.size
    # A value within rounding of an edge may fall to either side: never further.
    moved = np.abs(np.cumsum(seen.histogram - counts))
    assert moved.max() <= max(3, 2e-3 * batches.size)


def test_ranges_are_exact_to_half_a_bin():
    values = np.concatenate([np.zeros(1000), [6.0, -0.4]]).astype("float32")
    seen = _Seen()
    seen.add_all(values, True)
    low, high = seen.range(MSE(), IntegerGrid(8))
    assert (low, high) == pytest.approx((-0.4, 6.0), abs=6.4 / _BINS)
