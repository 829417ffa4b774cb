"""The classes that a file may name."""

import keras
import pytest

from keras_dlopt.storage import allowed


@pytest.mark.parametrize("name", sorted(allowed.REFUSED))
def test_what_holds_code_or_reads_paths_has_no_short_name(name):
    assert name not in allowed.builtin()
    assert getattr(keras.layers, name) not in allowed.short_names()
