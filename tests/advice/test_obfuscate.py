"""What the forms of data advise, followed."""

import secrets

import numpy as np
import pytest

from keras_dlopt.data import obfuscate

advice = pytest.mark.advice
X = np.random.default_rng(0).random((4, 8, 6))
KEY = b"sixteen bytes it"


@advice("data/obfuscate/keys.py", "Draw one with secrets.token_bytes(32), and keep it")
@pytest.mark.parametrize("key", ["short", b"short", 12345678])
def test_a_key_that_is_soon_guessed(told, key):
    with told():
        obfuscate.scramble(X, key)
    key = secrets.token_bytes(32)
    assert (obfuscate.unscramble(obfuscate.scramble(X, key), key) == X).all()


@advice("data/obfuscate/permutation.py", "Give a block that divides {} and {}.")
def test_blocks_that_do_not_fill_an_image(told):
    with told():
        obfuscate.scramble(X, KEY, block=4)
    obfuscate.scramble(X, KEY, block=2)


@advice(
    "data/obfuscate/permutation.py",
    "Give the key of scramble(); there is no way back without it.",
)
def test_another_key(told):
    hidden = obfuscate.scramble(X, KEY)
    with told():
        obfuscate.unscramble(hidden, KEY[::-1])
    assert (obfuscate.unscramble(hidden, KEY) == X).all()


@advice("data/obfuscate/mixing.py", "Pass public images of that shape, or count=2.")
@pytest.mark.parametrize("public", [None, X[:, :4], X[:0]], ids=["none", "shape", "0"])
def test_public_images_are_missing(told, public):
    y = np.arange(4) % 2
    with told():
        obfuscate.mix(X, y, count=4, public=public)
    obfuscate.mix(X, y, count=4, public=X[::-1])
    obfuscate.mix(X, y, count=2)


@advice("data/obfuscate/labels.py", "Give each class a number from 0 first.")
@pytest.mark.parametrize("labels", [[1, 2], [-1, 0], [0.0, 1.0], ["a", "b"]], ids=str)
def test_labels_out_of_range(told, labels):
    with told():
        obfuscate.randomized_response(np.array(labels), classes=2, epsilon=1.0)
    numbers = np.unique(np.array(labels), return_inverse=True)[1]
    obfuscate.randomized_response(numbers, classes=2, epsilon=1.0)
