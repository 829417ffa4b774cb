import math

import numpy as np
import pytest

from keras_dlopt.codecs.entropy import (
    entropy_bits,
    mask_entropy_bits,
    symbol_entropy_bits,
)


def test_against_the_definition():
    counts = [5, 0, 3, 2]
    expected = -sum(n * math.log2(n / 10) for n in counts if n)
    assert entropy_bits(counts) == pytest.approx(expected, rel=1e-14)
    assert entropy_bits([]) == 0
    assert entropy_bits([7]) == 0


def test_mask_and_values_add_up_to_the_whole():
    # Chain rule: H(tensor) = H(mask) + share of non-zeros * H(non-zero values).
    symbols = np.random.default_rng(0).integers(0, 5, 999)
    kept = symbols[symbols != 0]
    parts = mask_entropy_bits(999, kept.size) + symbol_entropy_bits(kept)
    assert parts == pytest.approx(symbol_entropy_bits(symbols), rel=1e-12)
    assert mask_entropy_bits(0, 0) == 0
    assert symbol_entropy_bits(symbols[:0]) == 0
