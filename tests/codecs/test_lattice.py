"""Grids found from the weights: the codes that made them, or shorter ones."""

import ml_dtypes
import numpy as np
import pytest

from keras_dlopt.codecs import Grid, Tensor, find_grid, lattice
from keras_dlopt.codecs.grid import holds, rebuild

LAYOUTS = [
    ((64, 32), ()),
    ((64, 32), (1, 32)),
    ((64, 32), (64, 1)),
    ((3, 3, 16, 8), (1, 1, 1, 8)),
    ((5, 5, 16, 1), (1, 1, 16, 1)),
    ((5, 5, 4, 3), (1, 1, 4, 3)),
]


def made(bits, shape, scales, dtype="float32", seed=0):
    """Weights on a grid whose scales are no function of their magnitudes."""
    rng = np.random.default_rng(seed)
    top = 2 ** (bits - 1) - 1
    codes = np.clip(np.rint(rng.normal(size=shape) * top / 3), -top - 1, top)
    scale = (rng.uniform(0.5, 2, scales) / top).astype("float32")
    grid = Grid(codes.astype(int), scale)
    return grid, rebuild(grid.codes, np.asarray(scale), np.dtype(dtype))


@pytest.mark.parametrize("bits", [2, 4, 8, 16])
@pytest.mark.parametrize(("shape", "scales"), LAYOUTS)
def test_the_grid_is_found(bits, shape, scales):
    known, weight = made(bits, shape, scales)
    found = find_grid(weight)
    assert holds(found, weight)
    shorter = len(Tensor().encode(weight, hint=found))
    # Other scales of the same few codes may take a byte or two more.
    assert shorter <= len(Tensor().encode(weight, hint=known)) + 2


def test_groups_within_a_channel():
    scale = np.repeat(np.random.default_rng(1).uniform(1, 2, (8, 32)), 8, axis=0)
    known, _ = made(4, (64, 32), ())
    weight = rebuild(known.codes, scale.astype("float32"), np.dtype("float32"))
    found = find_grid(weight)
    assert holds(found, weight)
    assert np.abs(found.codes).max() <= 8


@pytest.mark.parametrize("dtype", ["float64", "float16", ml_dtypes.bfloat16])
def test_other_dtypes(dtype):
    _, weight = made(4, (64, 32), (1, 32), dtype)
    assert holds(find_grid(weight), weight)


@pytest.mark.parametrize(
    "dtype", ["float16", ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2]
)
def test_the_largest_number_of_a_type(dtype):
    top = float(ml_dtypes.finfo(dtype).max)
    weight = np.array([[0, top], [top, top / 2], [-top, top]] * 8).astype(dtype)
    found = find_grid(weight)
    assert found is None or holds(found, weight)
    again = Tensor().decode(Tensor().encode(weight))
    assert again.tobytes() == weight.tobytes()


def test_zeros_with_a_sign_are_on_no_grid_and_cost_no_time(monkeypatch):
    _, weight = made(8, (64, 32), ())
    weight[3, 4] = -0.0
    monkeypatch.setattr(lattice, "_scale", None)
    assert find_grid(weight) is None
    again = Tensor().decode(Tensor().encode(weight))
    assert again.tobytes() == weight.tobytes()


def test_a_channel_of_zeros():
    _, weight = made(4, (64, 32), (1, 32))
    weight[:, 3] = 0
    assert holds(find_grid(weight), weight)


@pytest.mark.parametrize(
    "weight",
    [
        np.random.default_rng(0).normal(size=(8, 8)).astype("float32"),
        np.arange(64),
        np.array([1.0, 2, 4], "float32"),
        np.array([np.nan, *range(15)], "float32"),
        np.array([-0.0, *range(15)], "float32"),
        np.arange(16) * 1e300,
        np.ones((4, 4), "float32"),
        np.zeros(32, "float32"),
        np.full(16, 0x7C01, "uint16").view("float16"),  # a signalling NaN
    ],
)
def test_what_lies_on_no_grid_of_ours(weight):
    assert find_grid(weight) is None


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_narrow_floats_are_not_searched_for_ever(dtype):
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    rng = np.random.default_rng(0)
    assert find_grid(rng.normal(0, 0.05, (300, 40)).astype(kind)) is None
    codes = rng.integers(-63, 64, (60, 20))
    grid = find_grid((codes * np.float64(0.0123)).astype(kind))
    assert np.array_equal(grid.codes, codes)
