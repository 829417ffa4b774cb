"""What judging two models advises, followed."""

import keras
import numpy as np
import pytest

from keras_dlopt import report
from keras_dlopt.report import saliency
from keras_dlopt.report.quality import quality

advice = pytest.mark.advice
L = keras.layers
RNG = np.random.default_rng(0)
X, Y = RNG.random((12, 4, 4, 1)).astype("float32"), np.arange(12) % 3


def nets():
    return [
        keras.Sequential([keras.Input((4, 4, 1)), L.Flatten(), L.Dense(3)])
        for _ in range(2)
    ]


@advice("report/quality.py", "Leave from_logits out, or give from_logits=True.")
def test_logits_are_no_probabilities(told):
    logits = RNG.normal(size=(12, 3))
    with told():
        quality(logits, Y, from_logits=False)
    assert quality(logits, Y) == quality(logits, Y, from_logits=True)


@advice("report/quality.py", "Give from_logits=True if they are logits.")
def test_rows_of_zeros(told):
    with told():
        quality(np.zeros((12, 3)), Y, from_logits=False)
    assert quality(np.zeros((12, 3)), Y, from_logits=True).accuracy == 4 / 12


@advice("report/robustness.py", "Leave it out for other inputs and for a regression.")
def test_what_is_no_image_is_not_corrupted(told):
    with told():
        report.compare(*nets(), (X, X[:, :3, 0, 0]), task="regression", robustness=True)
    report.compare(*nets(), (X, X[:, :3, 0, 0]), task="regression")


@advice("report/saliency.py", "Check that the models answer to their inputs, or leave")
def test_a_model_that_does_not_answer(told):
    dead = nets()
    dead[0].set_weights([np.zeros_like(w) for w in dead[0].get_weights()])
    with told():
        report.compare(*dead, (X, Y), saliency=True)
    report.compare(*dead, (X, Y))
    report.compare(*nets(), (X, Y), saliency=True)


@advice("report/saliency.py", "Give x.astype('float32') for images of whole numbers")
def test_whole_numbers_have_no_gradient(told):
    images = (255 * X).astype("uint8")
    with told():
        report.compare(*nets(), (images, Y), saliency=True)
    report.compare(*nets(), (images.astype("float32"), Y), saliency=True)


@advice("report/saliency.py", "Received: the backend {}. Leave it out.")
def test_gradients_are_tensorflows(told, monkeypatch):
    monkeypatch.setattr(saliency, "on_tensorflow", lambda: False)
    with told():
        report.compare(*nets(), (X, Y), saliency=True)
    report.compare(*nets(), (X, Y))
