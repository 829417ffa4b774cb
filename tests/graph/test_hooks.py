"""One stack of hooks: order, threads, arguments, and layers left as they were."""

import inspect
import threading

import keras
import numpy as np
import pytest
from keras import layers as L

import keras_dlopt as dlopt
from keras_dlopt.graph import hooks

X = np.array([[1.0, 2.0]], "float32")


def doubled(x):
    return x * 2


@pytest.fixture
def layer():
    dense = L.Dense(2, kernel_initializer="ones", bias_initializer="ones")
    dense.build((None, 2))
    return dense


def test_a_layer_is_as_it_was_when_the_last_hook_is_gone(layer):
    plain, signature = np.asarray(layer(X)), inspect.signature(layer.call)
    with hooks.hooked([(layer, hooks.on("input", doubled))]):
        outer = vars(layer)["call"]
        with hooks.hooked([(layer, hooks.on("output", doubled))]):
            assert inspect.signature(layer.call) == signature
            np.testing.assert_array_equal(layer(X), [[14.0, 14.0]])
        assert vars(layer)["call"] is outer
        np.testing.assert_array_equal(layer(X), [[7.0, 7.0]])
    assert "call" not in vars(layer)
    np.testing.assert_array_equal(layer(X), plain)


def test_a_call_of_the_instance_comes_back(layer):
    own = layer.call = lambda inputs: inputs + 1
    with hooks.hooked([(layer, hooks.on("input", doubled))]):
        np.testing.assert_array_equal(layer(X), [[3.0, 5.0]])
    assert vars(layer)["call"] is own
    with pytest.raises(TypeError), hooks.hooked([(layer, hooks.on("input", doubled))]):
        layer(X, X, X)
    assert vars(layer)["call"] is own


def test_what_wraps_a_hooked_call_is_left_alone(layer):
    with hooks.hooked([(layer, hooks.on("input", doubled))]):
        own = layer.call = lambda inputs: inputs
    assert vars(layer)["call"] is own


def test_the_last_hook_stands_outermost(layer):
    told = []

    def tell(name):
        def hook(call, given):
            told.append(f"{name} in")
            outputs = call(given)
            told.append(f"{name} out")
            return outputs

        return hook

    detach = hooks.attach(layer, tell("attached"))
    with (
        hooks.hooked([(layer, tell("a")), (layer, tell("b"))]),
        hooks.hooked([(layer, tell("c"))]),
    ):
        layer(X)
    assert told[:4] == ["c in", "b in", "a in", "attached in"]
    assert told[4:] == ["attached out", "a out", "b out", "c out"]
    detach()
    assert "call" not in vars(layer)


def test_attached_and_passing_hooks_end_in_any_order(layer):
    context = hooks.hooked([(layer, hooks.on("input", doubled))])
    context.__enter__()
    detach = hooks.attach(layer, hooks.on("output", doubled))
    context.__exit__(None, None, None)
    np.testing.assert_array_equal(layer(X), [[8.0, 8.0]])
    detach()
    assert "call" not in vars(layer)


def test_other_threads_do_not_see_hooks_and_end_them_apart(layer):
    ready, go, seen = threading.Event(), threading.Event(), {}

    def other():
        seen["outside"] = float(keras.ops.sum(layer(X)))
        with hooks.hooked([(layer, hooks.on("input", lambda x: x * 0))]):
            seen["inside"] = float(keras.ops.sum(layer(X)))
            ready.set()
            go.wait(60)
        seen["after"] = float(keras.ops.sum(layer(X)))

    with hooks.hooked([(layer, hooks.on("input", doubled))]):
        thread = threading.Thread(target=other)
        thread.start()
        assert ready.wait(60)
        np.testing.assert_array_equal(layer(X), [[7.0, 7.0]])
    np.testing.assert_array_equal(layer(X), [[4.0, 4.0]])
    go.set()
    thread.join(60)
    assert seen == {"outside": 8.0, "inside": 2.0, "after": 8.0}
    assert "call" not in vars(layer)


def test_inputs_are_seen_by_position_and_by_keyword(layer):
    with hooks.hooked([(layer, hooks.on("input", doubled))]):
        np.testing.assert_array_equal(layer(inputs=X), layer(X))
    attention = L.MultiHeadAttention(1, 2)
    query, value = np.ones((1, 3, 2), "float32"), np.full((1, 4, 2), 3.0, "float32")
    mask = np.ones((1, 3, 4), "float32")
    attention(query, value)
    seen = []

    def see(x):
        seen.append(tuple(x.shape))
        return x

    with hooks.hooked([(attention, hooks.on("input", see))]):
        attention(query, value=value, attention_mask=mask)
        shared = keras.ops.convert_to_tensor(query)
        attention(shared, shared)
    assert seen == [(1, 3, 2), (1, 4, 2), (1, 3, 2)]  # one tensor, once
    cell = L.LSTMCell(3)
    cell.build((None, 2))
    state = np.zeros((1, 3), "float32")
    with hooks.hooked([(cell, hooks.on("input", see))]):
        cell(X, [state, state])
    assert seen[3:] == [(1, 2)]


@pytest.mark.parametrize("kind", ["GRU", "SimpleRNN", "LSTM", "Bidirectional"])
def test_a_range_of_a_recurrent_input_is_of_the_sequence(kind):
    rng = np.random.default_rng(0)
    layer = (
        L.Bidirectional(L.GRU(4)) if kind == "Bidirectional" else getattr(L, kind)(4)
    )
    layer.name = "r"
    x = keras.Input((5, 3))
    count = 2 if kind in ("LSTM", "Bidirectional") else 1
    states = [keras.Input((4,)) for _ in range(count)]
    given = states if len(states) > 1 else states[0]
    net = keras.Model([x, *states], layer(x, initial_state=given))
    entry = (dlopt.at("r/input"), dlopt.FakeQuantActivation())
    small = dlopt.transform(net, dlopt.Recipe([entry]))
    sequence = rng.uniform(-1, 1, (6, 5, 3)).astype("float32")
    far = [np.full((6, 4), 100.0, "float32") for _ in states]
    small([sequence, *far], training=True)
    found = small.groups[0].slots[0].arrays()
    assert (found["low"], found["high"]) == (sequence.min(), sequence.max())


def test_both_tensors_of_an_attention_are_quantized():
    query, value = keras.Input((3, 2)), keras.Input((4, 2))
    made = L.MultiHeadAttention(1, 2, name="mha")(query=query, value=value)
    net = keras.Model([query, value], made)
    ones = dlopt.FakeQuantActivation(range=(0.0, 1.0))
    small = dlopt.transform(net, dlopt.Recipe([(dlopt.at("mha/input"), ones)]))
    rng = np.random.default_rng(0)
    x = [rng.uniform(0, 3, (2, n, 2)).astype("float32") for n in (3, 4)]
    grid = [np.rint(np.minimum(part, 1.0) * 255) / 255 for part in x]
    np.testing.assert_allclose(small(x), net(grid), rtol=1e-5, atol=1e-6)
    assert not np.allclose(small(x), net([grid[0], x[1]]), rtol=1e-3)


def test_an_argument_is_changed_where_it_was_given():
    norm = L.BatchNormalization()
    norm.build((None, 2))
    for args, kwargs in (((X, True), {}), ((X,), {"training": True}), ((X,), {})):
        given = hooks.Given(norm.call, args, kwargs).changed("training", False)
        names = list(inspect.signature(norm.call).parameters)
        bound = dict(zip(names, given.args, strict=False)) | given.kwargs
        assert bound["training"] is False
        assert given.args[0] is X


def test_a_hook_knows_which_call_of_its_layer_it_stands_at(layer):
    told = []

    def tell(name):
        return lambda call, given: told.append((name, given.site)) or call(given)

    with hooks.hooked([(layer, tell("outer"))]):
        layer(X)
        with hooks.hooked([(layer, tell("inner"))]):
            layer(X)
        layer(X)
    assert told == [("outer", 0), ("inner", 0), ("outer", 1), ("outer", 2)]
    at_second = [
        (layer, hooks.on("input", doubled, site=1)),
        (layer, hooks.on("output", doubled, but={1})),
    ]
    with hooks.hooked(at_second):
        seen = [float(keras.ops.max(layer(X))) for _ in range(3)]
    assert seen == [8.0, 7.0, 8.0]
