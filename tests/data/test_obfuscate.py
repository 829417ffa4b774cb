"""Forms that hide data, and the attacks that show how much they hide."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from sklearn.linear_model import LogisticRegression

from keras_dlopt.data import load, obfuscate
from keras_dlopt.errors import ConfigError, DataError

KEY = b"sixteen bytes it"


@pytest.fixture(scope="module")
def digits():
    return load("digits")


def correlation(a, b):
    return abs(np.corrcoef(np.ravel(a), np.ravel(b))[0, 1])


# Permutations


@pytest.mark.parametrize("block", [None, 2, 4])
@pytest.mark.parametrize("shape", [(8, 12), (4, 8, 3)])
def test_only_the_key_brings_images_back(block, shape):
    images = np.random.default_rng(0).random((3, *shape))
    hidden = obfuscate.scramble(images, "a long passphrase", block=block)
    again = obfuscate.scramble(images, "a long passphrase", block=block)
    np.testing.assert_array_equal(hidden.images, again.images)
    assert hidden.digest == again.digest
    assert (hidden.images != images).mean() > 0.5
    np.testing.assert_array_equal(
        np.sort(hidden.images, axis=None), np.sort(images, axis=None)
    )
    back = obfuscate.unscramble(hidden, "a long passphrase")
    np.testing.assert_array_equal(back, images)
    with pytest.raises(ConfigError, match="The key is not the one that these images"):
        obfuscate.unscramble(hidden, "a long passphrasf")


def test_blocks_stay_together():
    images = np.arange(64).reshape(1, 8, 8) // 8 // 4 * 2 + np.arange(8) // 4  # of 4x4
    hidden = obfuscate.scramble(images, KEY, block=4).images[0]
    assert all(
        len(np.unique(hidden[i : i + 4, j : j + 4])) == 1
        for i in (0, 4)
        for j in (0, 4)
    )
    inner = np.tile(np.arange(16).reshape(4, 4), (2, 2))[None]
    hidden = obfuscate.scramble(inner, KEY, block=4).images[0]
    np.testing.assert_array_equal(hidden[:4, :4], hidden[4:, 4:])  # one order inside


def test_tensors_are_permuted_as_arrays_are():
    images = np.random.default_rng(0).random((4, 8, 8, 1))
    order = obfuscate.Permutation(KEY, (8, 8, 1), block=2)
    data = tf.data.Dataset.from_tensor_slices(images).batch(4).map(order)
    np.testing.assert_array_equal(next(iter(data)), order(images))
    np.testing.assert_array_equal(order.invert(tf.constant(order(images))), images)


def test_a_linear_model_learns_as_well_from_permuted_pixels(digits):
    """Permuting hides nothing from a classifier: the model is the same, permuted."""
    order = obfuscate.Permutation(KEY, digits.input_shape)
    found = []
    for x, x_test in (
        (digits.x_train, digits.x_test),
        (order(digits.x_train), order(digits.x_test)),
    ):
        model = LogisticRegression(C=1.0, max_iter=200, tol=1e-6)
        model.fit(x.reshape(len(x), -1), digits.y_train)
        found.append(model.predict(x_test.reshape(len(x_test), -1)))
    assert (found[0] == found[1]).mean() > 0.99
    assert (found[1] == digits.y_test).mean() > 0.93


def test_one_known_image_tells_the_order():
    """A picture of a camera has hardly two equal pixels."""
    image = np.random.default_rng(0).random((1, 16, 16))
    hidden = obfuscate.scramble(image, KEY)
    order = np.argsort(image, axis=None)[
        np.argsort(np.argsort(hidden.images, axis=None))
    ]
    other = np.random.default_rng(1).random((1, 16, 16))
    guessed = np.empty(256)
    guessed[order] = obfuscate.scramble(other, KEY).images.ravel()
    np.testing.assert_array_equal(guessed.reshape(1, 16, 16), other)


def smooth_images(count, side, seed=0):
    """Images of random clouds: sums of waves, fewer the shorter they are."""
    rng = np.random.default_rng(seed)
    waves = np.fft.fftfreq(side)[:, None] ** 2 + np.fft.fftfreq(side)[None] ** 2
    noise = rng.normal(size=(count, side, side))
    return np.fft.ifft2(np.fft.fft2(noise) / (waves + 0.01) ** 1.0).real


def test_correlations_tell_the_neighbours():
    """From many permuted images alone: pixels side by side are the most alike."""
    side = 12
    hidden = obfuscate.scramble(smooth_images(2_000, side), KEY).images
    alike = np.corrcoef(hidden.reshape(len(hidden), -1).T)
    np.fill_diagonal(alike, -1)
    order = obfuscate.Permutation(KEY, (side, side)).order
    rows, columns = np.divmod(order, side)
    nearest = alike.argmax(axis=1)
    apart = [abs(v - v[nearest]) for v in (rows, columns)]
    away = sum(np.minimum(v, side - v) for v in apart)  # clouds go on at the edges
    assert (away == 1).mean() > 0.95  # by chance: 4 of 143


# Mixtures


def encodings(images, labels, epochs, **given):
    found = [
        obfuscate.mix(images, labels, epoch=epoch, seed=5, **given)
        for epoch in range(epochs)
    ]
    return tuple(np.concatenate(parts) for parts in zip(*found, strict=True))


def ten(digits):
    """One image of each class: the labels then tell who was mixed."""
    first = [np.nonzero(digits.y_train == c)[0][0] for c in range(10)]
    return digits.x_train[first].reshape(10, -1), np.arange(10)


def test_a_mixture_is_what_the_paper_says(digits):
    x, y = ten(digits)
    encoded, labels = obfuscate.mix(x, y, seed=3)
    np.testing.assert_allclose(abs(encoded), abs(labels @ (x - 0.5)), atol=1e-6)
    assert labels.max() <= 0.65 + 1e-6
    assert ((labels > 0).sum(axis=1) == 2).all()
    assert 0.4 < (encoded > 0).mean() < 0.6
    with_public, named = obfuscate.mix(x, y, public=1 - x, count=4, seed=3)
    np.testing.assert_allclose(named.sum(axis=1), 1, atol=1e-6)
    again = obfuscate.mix(x, y, public=1 - x, count=4, seed=3)
    np.testing.assert_array_equal(again[0], with_public)
    other = obfuscate.mix(x, y, public=1 - x, count=4, seed=3, epoch=1)
    assert (other[0] != with_public).any()


def test_one_encoding_looks_like_nothing(digits):
    x, y = ten(digits)
    encoded, _ = obfuscate.mix(x, y, seed=0)
    seen = [correlation(encoded[i], x[i]) for i in range(10)]
    assert np.mean(seen) < 0.2


def test_encodings_of_one_image_are_alike(digits):
    """What Carlini 2021 clusters by; signs come off with the absolute value."""
    x, y = ten(digits)
    encoded, labels = encodings(x, y, 30)
    bare = abs(encoded)
    bare = bare - bare.mean(axis=0)
    bare /= np.linalg.norm(bare, axis=1, keepdims=True)
    alike = bare @ bare.T
    shared = (labels > 0).astype(int) @ (labels > 0).T.astype(int)
    pairs = np.triu_indices(len(alike), 1)
    none, both = alike[pairs][shared[pairs] == 0], alike[pairs][shared[pairs] == 2]
    # The chance that a pair of the same images is more alike than one of others.
    ranks = np.searchsorted(np.sort(none), both) / len(none)
    assert ranks.mean() > 0.9


def test_several_encodings_give_the_images_back(digits):
    """Least squares for |L X| = |X~|, with signs guessed anew in turns."""
    x, y = ten(digits)
    encoded, labels = encodings(x, y, 12)
    bare = abs(encoded)
    best = np.full(x.shape[1], np.inf)
    found = np.zeros_like(x)
    solve = np.linalg.pinv(labels)
    rng = np.random.default_rng(0)
    for _ in range(60):  # the best of several starts, pixel by pixel
        guess = rng.normal(size=x.shape)
        for _ in range(30):
            guess = solve @ (np.sign(labels @ guess) * bare)
        wrong = ((abs(labels @ guess) - bare) ** 2).sum(axis=0)
        found = np.where(wrong < best, guess, found)
        best = np.minimum(best, wrong)
    # A pixel of all images and its negative give the same encodings.
    apart = [abs(found - way * (x - 0.5)).max(axis=0) for way in (1, -1)]
    assert (np.minimum(*apart) < 1e-3).mean() > 0.95


def test_without_a_center_signs_hide_nothing(digits):
    x, y = ten(digits)
    encoded, labels = encodings(x, y, 3, center=0.0)
    found = np.linalg.lstsq(labels, abs(encoded), rcond=None)[0]
    assert abs(found - x).max() < 1e-4


# Labels


@pytest.mark.parametrize(("classes", "epsilon"), [(2, 0.5), (10, 2.0), (3, 0.0)])
def test_no_answer_tells_more_than_epsilon(classes, epsilon):
    labels = np.repeat(np.arange(classes), 40_000)
    answers = obfuscate.randomized_response(labels, classes=classes, epsilon=epsilon)
    table = np.zeros((classes, classes))
    np.add.at(table, (labels, answers), 1 / 40_000)
    expected = np.full((classes, classes), 1 / (np.exp(epsilon) + classes - 1))
    np.fill_diagonal(expected, np.exp(epsilon) / (np.exp(epsilon) + classes - 1))
    np.testing.assert_allclose(table, expected, atol=0.01)
    for answer in expected.T:
        assert answer.max() / answer.min() == pytest.approx(np.exp(epsilon))


def test_shares_of_classes_come_back_and_labels_do_not():
    rng = np.random.default_rng(0)
    labels = rng.choice(4, 40_000, p=[0.4, 0.3, 0.2, 0.1])
    answers = obfuscate.randomized_response(labels, classes=4, epsilon=1.0, seed=1)
    shares = obfuscate.class_shares(answers, classes=4, epsilon=1.0)
    np.testing.assert_allclose(shares, [0.4, 0.3, 0.2, 0.1], atol=0.015)
    assert shares.sum() == pytest.approx(1.0)
    assert (answers == labels).mean() == pytest.approx(np.e / (np.e + 3), abs=0.01)
    again = obfuscate.randomized_response(labels, classes=4, epsilon=1.0, seed=1)
    np.testing.assert_array_equal(again, answers)
    assert answers.dtype == labels.dtype


@pytest.mark.parametrize("noise", [0.0, 0.5, 1.0])
def test_soft_labels_hide_nothing(noise):
    labels = np.arange(100) % 7
    rows = obfuscate.smoothed(labels, classes=7, amount=0.4, noise=noise, seed=2)
    np.testing.assert_allclose(rows.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(rows.argmax(axis=1), labels)
    plain = keras.ops.one_hot(labels, 7) * 0.6 + 0.4 / 7
    assert np.allclose(rows, plain, atol=1e-6) == (noise == 0)


@pytest.mark.parametrize(
    ("call", "kind", "text"),
    [
        (
            lambda: obfuscate.scramble(np.zeros((1, 4)), KEY),
            ConfigError,
            "shape must be (height, width) or (height, width, channels)",
        ),
        (
            lambda: obfuscate.unscramble(np.zeros((1, 4, 4)), KEY),
            ConfigError,
            "hidden must be what scramble() returned.",
        ),
        (
            lambda: obfuscate.Permutation(KEY, (4, 4))(np.zeros((2, 4, 5))),
            DataError,
            "images must be of the shape (count, 4, 4). Received: (2, 4, 5).",
        ),
        (
            lambda: obfuscate.mix(np.zeros((2, 3)), [0]),
            DataError,
            "x and y must have as many images as labels, two or more.",
        ),
        (
            lambda: obfuscate.mix(np.zeros((2, 3)), [0.5, 1]),
            DataError,
            "y must be whole numbers from 0, or a row of weights an example.",
        ),
        (
            lambda: obfuscate.mix(np.zeros((2, 3)), [0, 1], most=0.5),
            ConfigError,
            "most must be a number in (0.5, 1]. Received: 0.5.",
        ),
        (
            lambda: obfuscate.randomized_response([0], classes=2, epsilon=-1),
            ConfigError,
            "epsilon must be a number, 0 or greater",
        ),
        (
            lambda: obfuscate.smoothed([0], classes=2, amount=0.5),
            ConfigError,
            "amount must be a number in [0, 0.5)",
        ),
        (
            lambda: obfuscate.smoothed([0], classes=1),
            ConfigError,
            "classes must be a whole number, 2 or greater",
        ),
    ],
)
def test_refusals(call, kind, text):
    with pytest.raises(kind) as caught:
        call()
    assert text in str(caught.value)


def test_a_key_that_is_refused_is_not_shown():
    with pytest.raises(ConfigError, match="Received: 'str of length 6'") as caught:
        obfuscate.scramble(np.zeros((1, 4, 4)), "secret")
    assert "secret'" not in str(caught.value)
