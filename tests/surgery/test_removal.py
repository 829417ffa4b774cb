"""Any channels that may leave: the rest computes as if they were zeroed in place."""

import keras
import numpy as np
import pytest
from keras import layers as L
from keras import ops

from keras_dlopt import _compat
from keras_dlopt import layers as own
from keras_dlopt.errors import ModelError
from keras_dlopt.surgery import dependencies, remove_dead
from keras_dlopt.surgery.removal import without
from support import generated
from support.removing import drawn, masked, randomized, relative

IMAGE = (6, 6, 4)


def conv(count, size=3, **options):
    return L.Conv2D(count, size, padding="same", **options)


def concat_with_itself(x):
    y = conv(4)(x)
    return conv(3)(L.Concatenate()([y, y, L.ReLU()(y)]))


def slices(x):
    y = conv(6, activation="relu")(x)
    return conv(3)(y[..., :4] + y[..., 2:6])


def parts(x):
    one, two, three = ops.split(conv(7)(x), [2, 5], axis=-1)
    return L.Concatenate()([conv(2)(three), conv(2)(ops.relu(one)), conv(3)(two)])


def depth_multiplier(x):
    y = L.DepthwiseConv2D(3, depth_multiplier=3, padding="same")(conv(4)(x))
    return conv(3)(L.BatchNormalization()(y))


def flatten_order(x):
    return L.Dense(5)(L.Flatten()(conv(4, activation="relu")(x)))


def flatten_channels_first(x):
    y = L.Permute((3, 1, 2))(conv(4)(x))
    return L.Dense(5)(L.Flatten(data_format="channels_first")(y))


def pad_shortcut(x):
    y = conv(4, name="narrow")(x)
    wide = L.ZeroPadding2D(((0, 0), (1, 3)), data_format="channels_first")(y)
    return conv(3)(L.Add()([wide, conv(8)(y)]))


def shared(x):
    layer = conv(4, name="shared")
    return conv(3)(L.Add()([layer(layer(x)), layer(L.ReLU()(x))]))


def norm_without_scale(x):
    y = L.BatchNormalization(scale=False)(conv(4)(x))
    return conv(3)(L.BatchNormalization(center=False, scale=False)(y))


def squeeze_and_excitation(x):
    y = conv(6)(x)
    gate = L.GlobalAveragePooling2D()(y)
    gate = L.Dense(6, activation="sigmoid")(L.Dense(3, activation="relu")(gate))
    return conv(3)(y * L.Reshape((1, 1, 6))(gate))


def spatial_gate(x):
    y = conv(6)(x)
    return conv(3)(y * conv(1, activation="sigmoid")(y))


def groups(x):
    y = conv(8, groups=2)(conv(6)(x))
    return conv(3)(conv(8, groups=4, activation="relu")(y))


def groups_of_one(x):
    y = L.Conv2D(6, 3, groups=6, padding="same")(conv(6)(x))
    return conv(3)(L.Conv2D(12, 1, groups=6)(y))


def transposed(x):
    y = L.Conv2DTranspose(5, 3, strides=2)(conv(4)(x))
    return conv(3)(L.Cropping2D(1)(y))


def separable(x):
    return conv(3)(L.SeparableConv2D(5, 3, depth_multiplier=2)(conv(4)(x)))


def einsum(x):
    y = L.Reshape((36, 5))(conv(5)(x))
    y = L.EinsumDense("abc,cd->abd", (36, 6), bias_axes="d")(y)
    return L.Dense(3)(L.EinsumDense("...x,xy->...y", 4)(y))


def activations(x):
    y = L.PReLU(shared_axes=[1, 2])(conv(5)(x))
    y = conv(4)(L.LeakyReLU()(L.PReLU()(y)))
    return conv(3)(ops.silu(y) / 2.0 - 1.0)


def pooled_by_operations(x):
    y = ops.mean(conv(5)(x), axis=(1, 2), keepdims=True)
    y = ops.squeeze(ops.transpose(y, (0, 3, 1, 2)), axis=(2, 3))
    return L.Dense(3)(ops.expand_dims(L.Dense(4)(y), 1))


def per_channel_groups(x):
    y = L.GroupNormalization(groups=-1)(conv(5)(x))
    return conv(3)(L.GroupNormalization(groups=4)(conv(4)(y)))


def nested(x):
    given = keras.Input((6, 6, 5))
    inner = keras.Model(given, given + conv(5)(L.ReLU()(given)), name="inner")
    line = keras.Sequential([keras.Input((6, 6, 5)), L.ReLU(), conv(4)], name="line")
    return conv(3)(line(inner(inner(conv(5)(x)))))


def joins(x):
    a, b = conv(5)(x), conv(5)(x)
    y = L.Maximum()([L.Average()([a, b]), L.Minimum()([a, b])])
    return conv(3)(L.Subtract()([y, a]))


def concat_of_rows(x):
    return conv(3)(L.Concatenate(axis=1)([conv(5)(x), conv(5)(x)]))


def dense_on_images(x):
    y = L.Dense(5, activation="relu")(conv(4)(x))
    return L.Dense(3)(L.UpSampling2D(2, interpolation="bilinear")(y))


def recurrent(x):
    y = L.Reshape((36, 4))(x)
    y = L.GRU(5, return_sequences=True)(L.LSTM(6, return_sequences=True)(y))
    y = L.SimpleRNN(4, return_sequences=True)(L.GRU(3, reset_after=False)(y)[:, None])
    return L.Dense(3)(y)


def both_ways(x):
    y = L.Bidirectional(L.LSTM(4, return_sequences=True))(L.Reshape((36, 4))(x))
    y = L.Bidirectional(L.GRU(3, return_sequences=True), merge_mode="ave")(y)
    return L.Dense(3)(y)


def heads(x):
    y = L.Dense(5)(L.Reshape((36, 4))(x))
    y = L.MultiHeadAttention(4, 3, value_dim=2)(y, L.Dense(6)(y))
    return L.Dense(3)(L.MultiHeadAttention(2, 3, output_shape=7)(y, y))


def own_layers(x):
    y = own.BatchNormalization()(conv(5)(x))
    y = y + own.StochasticDepth(0.8)(own.LayerScale(0.3)(conv(5)(y)))
    return conv(3)(own.ReZero()(y))


def initial_states(x):
    y = L.Reshape((36, 4))(x)
    z, state = L.GRU(5, return_state=True, return_sequences=True)(y)
    z = L.LSTM(5, return_sequences=True)(z, initial_state=[state, L.Dense(5)(state)])
    return L.Dense(3)(L.SimpleRNN(4)(z, initial_state=L.Dense(4)(y[:, 0])))


def at_each_step(x):
    y = L.TimeDistributed(L.Conv1D(5, 3, padding="same", activation="relu"))(x)
    y = L.TimeDistributed(L.BatchNormalization())(L.TimeDistributed(L.ReLU())(y))
    y = L.TimeDistributed(L.Reshape((2, 3, 5)))(y)
    y = L.TimeDistributed(L.Flatten())(L.TimeDistributed(L.DepthwiseConv2D(2))(y))
    step = L.TimeDistributed(L.LSTM(4, return_sequences=True))
    return step(L.Reshape((6, 2, 5))(L.TimeDistributed(L.Dense(10))(y)))


def shuffled(x):
    y = conv(8)(x)
    y = ops.reshape(y, (-1, 6, 6, 2, 4))
    y = ops.reshape(ops.transpose(y, (0, 1, 2, 4, 3)), (-1, 6, 6, 8))
    return conv(3)(conv(8, groups=2, activation="relu")(y))


def shuffled_by_layers(x):
    y = L.Reshape((6, 6, 2, 3))(conv(6, groups=2)(x))
    y = L.Reshape((6, 6, 6))(L.Permute((1, 2, 4, 3))(y))
    return conv(3)(L.DepthwiseConv2D(3, padding="same")(y))


def layers_of_applications(x):
    y = conv(5)(x)
    y = _compat.ScaledSum(0.3)([y, _compat.FactorByChannel(0.5, 5)(conv(5)(y))])
    return conv(3)(y)


def embedded(x):
    tokens = ops.cast(ops.round(ops.abs(x[:, :, 0, 0])), "int32")
    return L.Dense(3)(L.Embedding(12, 5)(tokens))


# name -> how many groups may leave, counted by hand
TRAPS = {
    concat_with_itself: 4,
    slices: 2,  # 0 = 2 = 4 and 1 = 3 = 5
    parts: 7,
    depth_multiplier: 4,
    flatten_order: 4,
    flatten_channels_first: 4,
    pad_shortcut: 8,
    shared: 0,  # they are the input's channels
    norm_without_scale: 4,
    squeeze_and_excitation: 9,
    spatial_gate: 6,
    groups: 7,  # 6 / 2 and 8 / 4 and 8 / 4: all groups stay alike
    groups_of_one: 6,
    transposed: 9,
    separable: 9,
    einsum: 15,
    activations: 9,
    pooled_by_operations: 9,
    per_channel_groups: 9,
    nested: 9,
    joins: 5,
    concat_of_rows: 5,
    dense_on_images: 9,
    recurrent: 18,
    both_ways: 7,
    heads: 29,  # 5, 4 heads, 6, 5, 2 heads, 7
    embedded: 5,
    layers_of_applications: 5,
    initial_states: 9,
    at_each_step: 10,  # 10 dense ones are read in pairs
    shuffled: 6,  # 8 in pairs, which the two halves of the next layer tie again; 8 / 2
    shuffled_by_layers: 3,
    own_layers: 5,
}


def model_of(trap):
    x = keras.Input(IMAGE, name="x")
    return randomized(keras.Model(x, L.ReLU(name="end")(trap(x))))


def data(model, count=3):
    rng = np.random.default_rng(5)
    shape = model.inputs[0].shape[1:]
    return rng.normal(size=(count, *shape)).astype("float32")


@pytest.mark.parametrize("trap", TRAPS, ids=lambda trap: trap.__name__)
def test_traps(trap):
    model = model_of(trap)
    found = dependencies(model)
    assert len(found.free) == TRAPS[trap], [group.made_by for group in found.free]
    x, changed = data(model), 0
    for seed in range(3):
        gone = drawn(found, 0.5, np.random.default_rng(seed))
        small = without(found, gone)
        assert relative(masked(model, found, gone)(x), small(x)) < 1e-5
        changed += small.count_params() < model.count_params()
        assert [la.name for la in small.layers] == [la.name for la in model.layers]
    assert changed == 3 * (TRAPS[trap] > 0)
    assert relative(model(x), remove_dead(model)[0](x)) < 1e-5


@pytest.mark.advice("surgery/removal.py", "Keep at least one of them.")
def test_a_layer_that_would_lose_everything_is_named():
    model = keras.Sequential([keras.Input((3,)), L.Dense(4, name="a"), L.Dense(2)])
    found = dependencies(model)
    with pytest.raises(ModelError, match="'a' would lose all of its 4 channels.*Keep"):
        without(found, ~found.held)
    gone = ~found.held
    gone[found.free[0].number] = False
    assert without(found, gone).get_layer("a").units == 1


def test_groups_say_which_layers_make_them_and_what_holds_them():
    model = model_of(squeeze_and_excitation)
    found = dependencies(model)
    first = found.free[0]
    assert len(first.made_by) == 3  # the convolution, the gate, its shape
    assert {index for indices in first.made_by.values() for index in indices} == {0}
    held = [group for group in found.groups if group.pinned]
    assert all("an output of the model" in group.pinned[-1] for group in held)


# A softmax over one value is legal: it is 1.
ONE_VALUE = pytest.mark.filterwarnings("ignore:(?s).*softmax over axis")


def compare(seed):
    """Draws what leaves; returns whether channels left, drawn and dead ones."""
    one = generated.drawn(seed, parts=6)
    model = one.model.core if isinstance(one.model, generated.Holder) else one.model
    found = dependencies(model)
    gone = drawn(found, 0.5, np.random.default_rng(seed))
    zeroed = masked(model, found, gone)(one.x)
    assert relative(zeroed, without(found, gone)(one.x)) < 1e-5, one.notes
    small, report = remove_dead(model)
    assert relative(model(one.x), small(one.x)) < 1e-5, one.notes
    return gone.any(), report.channels_removed > 0


def run(count):
    drawn_and_dead = np.array([compare(seed) for seed in range(count)])
    assert drawn_and_dead.sum(axis=0)[0] > count // 4
    assert drawn_and_dead.sum(axis=0)[1] > count // 20


@ONE_VALUE
def test_40_generated_models():
    run(40)


@pytest.mark.slow
@ONE_VALUE
def test_500_generated_models():
    run(500)
