"""What feeds what: layers, operations between them, and each place of a call."""

import keras
import numpy as np
from keras import layers as L
from keras import ops

from keras_dlopt.graph.symbolic import functional_twin
from keras_dlopt.graph.trace import trace


def shown(graph):
    return [(n.path, n.inputs, n.outputs) for n in graph.nodes]


def test_a_shared_layer_has_a_call_for_each_site():
    inputs = keras.Input((4,))
    shared, other = L.Dense(4, name="shared"), L.Dense(4, name="other")
    model = keras.Model(inputs, shared(other(shared(inputs))))
    graph = trace(model)
    assert [(c.path, c.site) for c in graph.calls] == [
        ("shared", 0),
        ("other", 0),
        ("shared", 1),
    ]
    assert [c.site for c in graph.sites(shared)] == [0, 1]
    assert graph.sites(shared)[1].inputs == graph.sites(other)[0].outputs
    assert all("call" not in vars(layer) for layer in model.layers)


def test_sites_count_calls_that_change_nothing():
    inputs = keras.Input((4,))
    drop = L.Dropout(0.5)
    relu = L.Activation("relu", name="relu")
    model = keras.Model(inputs, relu(drop(relu(drop(inputs)))))
    assert [(c.path, c.site) for c in trace(model).nodes] == [("relu", 0), ("relu", 1)]


def test_operations_between_layers_are_nodes():
    inputs = keras.Input((4,))
    a = L.Dense(4, name="a")(inputs)
    b = L.Dense(4, name="b")(a * 2.0 + inputs)
    model = keras.Model(inputs, ops.relu(b))
    graph = trace(model)
    multiply, add, relu = (n.path for n in graph.operations)
    assert shown(graph) == [
        ("a", (0,), (1,)),
        (multiply, (1,), (2,)),
        (add, (2, 0), (3,)),
        ("b", (3,), (4,)),
        (relu, (4,), (5,)),
    ]
    assert [c.path for c in graph.calls] == ["a", "b"]
    assert graph.loose == {0, 1, 2, 4}
    assert graph.outputs == (5,)
    assert graph.only_consumer(1) is None
    assert all("call" not in vars(n.layer) for n in graph.nodes)


def test_operations_in_nested_models_are_nodes():
    inner_in = keras.Input((4,))
    doubled = L.Dense(4, name="d")(inner_in) * 2.0
    inner = keras.Model(inner_in, doubled, name="inner")
    model = keras.Sequential([keras.Input((4,)), inner, L.Dense(2, name="out")])
    paths = [n.path for n in trace(model).nodes]
    assert paths[0] == "inner/d"
    assert paths[1].startswith("inner/multiply")
    assert paths[2:] == ["inner", "out"]


def test_keyword_inputs_are_edges_and_masks_are_none():
    query, value = keras.Input((3, 4)), keras.Input((5, 4))
    made = L.MultiHeadAttention(1, 4, name="mha")(query=query, value=value)
    graph = trace(keras.Model([query, value], made))
    (whole,) = (c for c in graph.calls if c.path == "mha")
    assert set(whole.inputs) == set(graph.inputs)
    tokens = keras.Input((6,), dtype="int32")
    x = L.Embedding(9, 4, mask_zero=True, name="e")(tokens)
    model = keras.Model(tokens, L.LSTM(2, name="lstm")(x))
    graph = trace(model)
    (lstm,) = (c for c in graph.calls if c.path == "lstm")
    (embedding,) = (c for c in graph.calls if c.path == "e")
    assert lstm.inputs == embedding.outputs


class ByKeyword(keras.Model):
    def __init__(self):
        super().__init__()
        self.a = L.Dense(3)
        self.b = L.Dense(2)

    def call(self, x):
        return self.b(inputs=self.a(inputs=x))


def test_keyword_calls_in_written_models_are_seen():
    model = ByKeyword()
    model(np.ones((1, 4), "float32"))
    graph = trace(model)
    assert shown(graph) == [("a", (0,), (1,)), ("b", (1,), (2,))]
    assert graph.only_consumer(1) is graph.calls[1]


def test_a_tensor_that_two_take_has_no_only_consumer():
    inputs = keras.Input((4,))
    x = L.Dense(4, name="made")(inputs)
    one, two = L.Dense(2, name="one")(x), L.Dense(2, name="two")(x)
    graph = trace(keras.Model(inputs, L.Add(name="sum")([one, two])))
    (made,) = (c for c in graph.calls if c.path == "made")
    assert graph.only_consumer(made.outputs[0]) is None
    (first,) = (c for c in graph.calls if c.path == "one")
    assert graph.only_consumer(first.outputs[0]).path == "sum"


def test_an_output_that_a_layer_takes_too_has_no_only_consumer():
    inputs = keras.Input((4,))
    x = L.Dense(4, name="made")(inputs)
    y = L.Dense(2, name="one")(x)
    graph = trace(keras.Model(inputs, [x, L.ReLU(name="two")(y), L.ReLU()(y)]))
    for name in ("made", "one"):
        (call,) = (c for c in graph.calls if c.path == name)
        assert graph.only_consumer(call.outputs[0]) is None


def test_a_mask_that_a_layer_made_is_taken_too():
    x, query = keras.Input((3,)), keras.Input((3, 4))
    made = L.Dense(3, name="made")(x)
    keep = L.Reshape((1, 3), name="keep")(made)
    attended = L.MultiHeadAttention(1, 4, name="mha")(query, query, attention_mask=keep)
    graph = trace(keras.Model([x, query], [attended, L.ReLU(name="r")(keep)]))
    (keep,) = (c for c in graph.calls if c.path == "keep")
    (mha,) = (c for c in graph.calls if c.path == "mha")
    assert mha.aside == keep.outputs
    assert not set(mha.inputs) & set(keep.outputs)
    assert graph.only_consumer(keep.outputs[0]) is None


class OfOneInput(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.head = L.Dense(3)

    def call(self, inputs):
        return self.head(inputs)


def test_the_first_batch_does_not_fix_the_batch_of_a_twin():
    model = OfOneInput()
    model(np.ones((5, 4), "float32"))
    twin = functional_twin(model)
    assert twin.input_shape == (None, 4)
    assert twin.predict(np.ones((7, 4)), verbose=0).shape == (7, 3)
