"""The codecs know nothing of Keras, so its state need not be reset for them."""

import pytest


@pytest.fixture(autouse=True)
def _fresh_keras_state():
    return None
