"""How equal the weights of replicas must be to those of one device."""

import numpy as np

# Relative to max(1, |weight|). The sums over a batch are taken in another order, which
# moves the last bit of a gradient (6e-8); 20 steps add some of those up.
TOLERANCE = 1e-6
# These turn a last bit into more: eigenvectors of nearly equal eigenvalues, quotients
# of small differences, a normalization of two examples. They are held to float64's
# rounding in `tests/distribute/test_equality.py`.
AMPLIFIES = {
    ("SOAP", 2): 5e-4,
    ("SOAP", 4): 5e-4,
    ("LBFGS", 2): 5e-4,
    ("LBFGS", 4): 5e-3,
    ("apart_4", 4): 1e-2,
}


def difference(left, right):
    """The largest |a - b| / max(1, |a|) over all weights."""
    worst = 0.0
    for a, b in zip(left, right, strict=True):
        assert a.shape == b.shape
        assert np.all(np.isfinite(a))
        assert np.all(np.isfinite(b))
        worst = max(worst, float(np.max(np.abs(a - b) / np.maximum(1, np.abs(a)))))
    return worst
