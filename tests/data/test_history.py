"""The record of how examples are learned, against a loop of our own."""

import keras
import numpy as np
import pytest

from keras_dlopt.data import select
from keras_dlopt.errors import DataError

RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 6)).astype("float32")
Y = RNG.integers(0, 3, 40)
EPOCHS = 6


def network(seed=0, **options):
    keras.utils.set_random_seed(seed)
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.7), loss, **options)
    return model


class Outputs(keras.callbacks.Callback):
    """All outputs after each epoch."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def on_epoch_end(self, epoch, logs=None):
        kernel, bias = (w.numpy().astype("float64") for w in self.model.weights)
        z = np.exp(X @ kernel + bias)
        self.seen.append(z / z.sum(axis=1, keepdims=True))


@pytest.fixture(scope="module")
def run():
    """A record, and the probabilities it is of."""
    history, outputs = select.ExampleHistory(X, np.eye(3)[Y]), Outputs()
    network(steps_per_execution=2).fit(
        X, Y, epochs=EPOCHS, batch_size=8, verbose=0, callbacks=[history, outputs]
    )
    return history, np.array(outputs.seen)


def test_margins_and_errors_are_those_of_each_epoch(run):
    history, p = run
    onehot = np.eye(3)[Y]
    error = np.sqrt(((p - onehot) ** 2).sum(axis=-1))
    np.testing.assert_allclose(history.errors, error, atol=1e-5)
    own = (p * onehot).sum(axis=-1)
    others = (p - 9 * onehot).max(axis=-1)
    np.testing.assert_allclose(history.margins, own - others, atol=1e-5)
    np.testing.assert_allclose(
        history.difficulty(), (others - own).mean(axis=0), atol=1e-5
    )


def test_forgetting_is_counted_as_published(run):
    history, p = run
    right = p.argmax(axis=-1) == Y
    wanted = []
    for i in range(len(X)):
        events = sum(right[t, i] and not right[t + 1, i] for t in range(len(right) - 1))
        wanted.append(events if right[:, i].any() else len(right))
    assert history.forgetting().tolist() == wanted
    assert len(set(wanted)) > 2, "the run forgets nothing: it shows nothing"


def test_training_is_the_same_with_it():
    ends = []
    for callbacks in ([], [select.ExampleHistory(X, Y)]):
        model = network()
        model.fit(X, Y, epochs=2, batch_size=8, verbose=0, callbacks=callbacks)
        ends.append(model.get_weights())
    for a, b in zip(*ends, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_run_that_was_stopped_goes_on(tmp_path):
    path, options = tmp_path / "record", {"batch_size": 8, "verbose": 0}
    model = network()
    first = select.ExampleHistory(X, Y, path=path)
    model.fit(X, Y, epochs=3, callbacks=[first], **options)
    again = select.ExampleHistory(X, Y, path=path)
    model.fit(X, Y, initial_epoch=2, epochs=4, callbacks=[again], **options)
    assert again.margins.shape == (4, 40)
    np.testing.assert_array_equal(again.margins[:2], first.margins[:2])
    # One from the start keeps nothing of it.
    model.fit(X, Y, epochs=1, callbacks=[again], **options)
    assert again.errors.shape == (1, 40)


def test_probabilities_of_half_precision(run):
    keras.config.set_dtype_policy("mixed_bfloat16")
    model = network(jit_compile=True)
    history = select.ExampleHistory(X, Y)
    model.fit(X, Y, epochs=1, verbose=0, callbacks=[history])
    assert history.errors.dtype == "float32"
    p = model.predict(X, verbose=0).astype("float64")
    p = np.exp(p) / np.exp(p).sum(axis=1, keepdims=True)
    error = np.sqrt(((p - np.eye(3)[Y]) ** 2).sum(axis=-1))
    np.testing.assert_allclose(history.errors[0], error, atol=1e-5)


def test_labels_that_do_not_fit():
    with pytest.raises(DataError, match="There are 39 labels for 40 examples"):
        select.ExampleHistory(X, Y[:39])
