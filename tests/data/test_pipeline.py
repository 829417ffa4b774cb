import numpy as np
import pytest

from keras_dlopt.data import batches
from keras_dlopt.errors import ConfigError, DataError


def test_autotuning_is_off_and_the_cardinality_known():
    data = batches(np.zeros((10, 3)), np.arange(10), batch_size=4)
    assert data.options().autotune.enabled is False
    assert data.cardinality().numpy() == 3
    shapes = [x.shape[0] for x, _ in data]
    assert shapes == [4, 4, 2]


def test_shuffle_keeps_pairs_and_draws_a_new_order_each_epoch():
    x, y = np.arange(50)[:, None] * 2.0, np.arange(50)
    data = batches(x, y, batch_size=7, shuffle=True, drop_remainder=True, seed=3)
    epochs = []
    for _ in range(2):
        rows = [(a.numpy(), b.numpy()) for a, b in data]
        assert all(len(b) == 7 for _, b in rows)
        for a, b in rows:
            np.testing.assert_array_equal(a[:, 0], b * 2.0)
        epochs.append(np.concatenate([b for _, b in rows]).tolist())
    assert epochs[0] != epochs[1]
    again = batches(x, y, batch_size=7, shuffle=True, drop_remainder=True, seed=3)
    assert np.concatenate([b.numpy() for _, b in again]).tolist() == epochs[0]


def test_augment_sees_batches_of_x():
    data = batches(np.ones((4, 2)), np.zeros(4), batch_size=2, augment=lambda x: x * 3)
    assert all((x.numpy() == 3).all() for x, _ in data)


def test_errors():
    with pytest.raises(
        ConfigError, match="batch_size must be a whole number, 1 or greater"
    ):
        batches(np.zeros(3), np.zeros(3), batch_size=0)
    with pytest.raises(DataError, match="3 examples and 2 labels"):
        batches(np.zeros(3), np.zeros(2))
    with pytest.raises(DataError, match="0 examples"):
        batches(np.zeros(0), np.zeros(0))
