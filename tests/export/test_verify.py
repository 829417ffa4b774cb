"""What counts as the trained range in a file, field by field."""

import dataclasses

import numpy as np
import pytest

from keras_dlopt.export.contents import LiteTensor
from keras_dlopt.export.twin import Range
from keras_dlopt.export.verify import _has

TENSOR = LiteTensor("x", "INT8", (1, 4), np.array([0.5]), np.array([-3]), 0, None)


def trained(scale, zero_point):
    low = -scale * (zero_point + 128)
    return Range("x", np.float32(low), np.float32(low + 255 * scale))


def test_the_trained_range_is_found():
    assert _has(TENSOR, trained(0.5, -3))
    assert _has(TENSOR, trained(0.5 * (1 + 1e-7), -3))


@pytest.mark.parametrize("zero_point", [-4, -2, 3])
def test_another_zero_point_is_another_range(zero_point):
    assert not _has(TENSOR, trained(0.5, zero_point))


@pytest.mark.parametrize("scale", [0.25, 0.501, 2.0])
def test_another_scale_is_another_range(scale):
    assert not _has(TENSOR, trained(scale, -3))


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "INT16"},
        {"scales": np.array([0.5, 0.5]), "zero_points": np.array([-3, -3])},
        {"scales": np.array([]), "zero_points": np.array([])},
    ],
)
def test_tensors_of_other_kinds_have_no_range(change):
    assert not _has(dataclasses.replace(TENSOR, **change), trained(0.5, -3))
