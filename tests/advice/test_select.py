"""What the choice of examples advises, followed."""

import keras
import numpy as np
import pytest

from keras_dlopt.data import select

advice = pytest.mark.advice
L = keras.layers
X, Y = np.ones((6, 4), "float32"), np.arange(6) % 2


@advice("data/select/ranked.py", "Lower one of them.")
def test_more_than_is_left(told):
    with told():
        select.hardest(np.arange(10), 9, skip=0.2)
    assert len(select.hardest(np.arange(10), 9, skip=0.1)) == 9
    assert len(select.hardest(np.arange(10), 8, skip=0.2)) == 8


@advice("data/select/given.py", "Give a share as a float, such as 0.5.")
def test_a_number_that_is_none(told):
    with told():
        select.hardest(np.arange(10), "half")
    assert len(select.hardest(np.arange(10), 0.5)) == 5


@advice("data/select/outputs.py", "Give the path of a layer that runs once as layer")
@advice("data/select/outputs.py", "Give the path of the layer whose outputs are")
def test_features_of_a_layer_by_name(told):
    x = keras.Input((4,))
    shared = L.Dense(4, name="shared")
    model = keras.Model(x, shared(L.ReLU(name="between")(shared(x))))
    with told():
        select.features(model, X)
    assert select.features(model, X, layer="between").shape == (6, 4)
    bare = keras.Sequential([keras.Input((4,)), L.ReLU(name="relu")])
    with told():
        select.features(bare, X)
    assert select.features(bare, X, layer="relu").shape == (6, 4)


@advice("data/select/history.py", "Give this callback to model.fit() first.")
@advice("data/select/history.py", "Remove it, or give another path.")
def test_a_record_is_made_by_fit(told, tmp_path):
    path = tmp_path / "record"
    history = select.ExampleHistory(X, Y, path=path)
    with told():
        history.forgetting()
    model = keras.Sequential([keras.Input((4,)), L.Dense(2)])
    model.compile("sgd", "sparse_categorical_crossentropy")
    model.fit(X, Y, verbose=0, callbacks=[history])
    assert history.forgetting().shape == (6,)
    other = select.ExampleHistory(X, 1 - Y, path=path)
    with told():
        model.fit(X, Y, verbose=0, callbacks=[other])
    path.unlink()
    model.fit(X, Y, verbose=0, callbacks=[other])
    assert other.errors.shape == (1, 6)
