import keras
import numpy as np
import pytest

from keras_dlopt import layers
from keras_dlopt.errors import ConfigError
from reference import layers as twin

EPSILON = 1e-3


def _x(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def _randomize(layer, seed=5):
    """Random weights, so that no zero or one hides a mistake; variances positive."""
    rng = np.random.default_rng(seed)
    for v in layer.weights:
        if np.issubdtype(np.dtype(v.dtype), np.floating):
            value = rng.normal(0.3, 0.5, size=v.shape)
            v.assign(np.abs(value) + 0.1 if "variance" in v.name else value)


def _weights(layer):
    return {v.path.split("/", 1)[1]: np.asarray(v, float) for v in layer.weights}


def _bn(x, w, name):
    return twin.batch_norm(
        x,
        w[f"{name}/gamma"],
        w[f"{name}/beta"],
        EPSILON,
        w[f"{name}/moving_mean"],
        w[f"{name}/moving_variance"],
    )


def _built(block, x):
    block(x)
    _randomize(block)
    return _weights(block), np.asarray(block(x))


def _close(y, expected):
    scale = np.abs(expected).max()
    np.testing.assert_allclose(y / scale, expected / scale, atol=2e-6)


def test_basic_block():
    x = _x(2, 7, 7, 4)
    w, y = _built(layers.BasicBlock(6, strides=2, name="b"), x)
    h = twin.relu(_bn(twin.conv_same(x, w["conv1/kernel"], 2), w, "bn1"))
    h = _bn(twin.conv_same(h, w["conv2/kernel"]), w, "bn2")
    short = twin.conv_same(x, w["projection/kernel"], 2)
    _close(y, twin.relu(h + _bn(short, w, "projection_bn")))


def test_bottleneck_block_with_groups():
    x = _x(2, 6, 6, 8)
    w, y = _built(layers.BottleneckBlock(4, groups=2, expansion=2, name="b"), x)
    h = twin.relu(_bn(twin.conv_same(x, w["conv1/kernel"]), w, "bn1"))
    h = twin.conv_same(h, w["conv2/kernel"], groups=2)
    h = twin.relu(_bn(h, w, "bn2"))
    h = _bn(twin.conv_same(h, w["conv3/kernel"]), w, "bn3")
    _close(y, twin.relu(h + x))


def test_pre_activation_block():
    x = _x(2, 6, 6, 3)
    block = layers.PreActivationBlock(4, strides=2, dropout=0.5, name="b")
    w, y = _built(block, x)
    h = twin.conv_same(twin.relu(_bn(x, w, "bn1")), w["conv1/kernel"], 2)
    h = twin.conv_same(twin.relu(_bn(h, w, "bn2")), w["conv2/kernel"])
    _close(y, h + twin.conv_same(x, w["projection/kernel"], 2))


@pytest.mark.parametrize("strides", [1, 2])
def test_inverted_residual_block(strides):
    x = _x(2, 6, 6, 4)
    block = layers.InvertedResidualBlock(
        4, strides=strides, expansion=3, squeeze=0.5, name="b"
    )
    w, y = _built(block, x)
    h = twin.relu(_bn(twin.conv_same(x, w["expand/kernel"]), w, "expand_bn"), 6)
    h = twin.depthwise_same(h, w["depthwise/kernel"], strides)
    h = twin.relu(_bn(h, w, "depthwise_bn"), 6)
    gate = h.mean((1, 2)) @ w["squeeze/reduce/kernel"] + w["squeeze/reduce/bias"]
    gate = twin.relu(gate) @ w["squeeze/expand/kernel"] + w["squeeze/expand/bias"]
    h = h * twin.sigmoid(gate)[:, None, None]
    h = _bn(twin.conv_same(h, w["project/kernel"]), w, "project_bn")
    _close(y, h + x if strides == 1 else h)


def test_convnext_block():
    x = _x(2, 6, 6, 4)
    w, y = _built(layers.ConvNeXtBlock(4, kernel_size=5, name="b"), x)
    h = twin.depthwise_same(x, w["depthwise/kernel"]) + w["depthwise/bias"]
    h = twin.layer_norm(h, w["norm/gamma"], w["norm/beta"], 1e-6)
    h = twin.gelu(twin.conv_same(h, w["expand/kernel"]) + w["expand/bias"])
    h = twin.conv_same(h, w["project/kernel"]) + w["project/bias"]
    _close(y, h * w["scale/gamma"] + x)


def test_residual_mlp_block():
    x = _x(3, 4)
    w, y = _built(layers.ResidualMLPBlock(4, hidden=7, name="b"), x)
    h = twin.layer_norm(x, w["norm/gamma"], w["norm/beta"], 1e-6)
    h = twin.gelu(h @ w["expand/kernel"] + w["expand/bias"])
    _close(y, h @ w["project/kernel"] + w["project/bias"] + x)


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_transformer_block(norm):
    x = _x(2, 5, 8)
    block = layers.TransformerBlock(8, heads=2, hidden=6, norm=norm, name="b")
    w, y = _built(block, x)

    def normalize(h, name):
        return twin.layer_norm(h, w[f"{name}/gamma"], w[f"{name}/beta"], 1e-6)

    def attend(h):
        root = "attention/self_attention/attention"
        pairs = [
            (w[f"{root}/{part}/kernel"], w[f"{root}/{part}/bias"])
            for part in ("query", "key", "value", "attention_output")
        ]
        return twin.attention(h, *pairs, heads=2)

    def mlp(h):
        h = twin.gelu(h @ w["mlp/expand/kernel"] + w["mlp/expand/bias"])
        return h @ w["mlp/project/kernel"] + w["mlp/project/bias"]

    if norm == "pre":
        h = x + attend(normalize(x, "attention/attention_norm"))
        expected = h + mlp(normalize(h, "mlp/norm"))
    else:
        h = normalize(x + attend(x), "attention_norm")
        expected = normalize(h + mlp(h), "mlp_norm")
    _close(y, expected)


def test_causal_attention_does_not_look_ahead():
    layer = layers.SelfAttention(8, heads=2, causal=True)
    x = _x(1, 6, 8)
    later = x.copy()
    later[:, 4:] += 1
    a, b = np.asarray(layer(x)), np.asarray(layer(later))
    np.testing.assert_allclose(a[:, :4], b[:, :4], atol=1e-6)
    assert np.abs(a[:, 4:] - b[:, 4:]).max() > 1e-3


def test_squeeze_excitation_channels_first_is_the_transpose():
    last = layers.SqueezeExcitation(0.5)
    first = layers.SqueezeExcitation(0.5, data_format="channels_first")
    x = _x(2, 4, 5, 6)
    y = np.asarray(last(x))
    swapped = x.transpose(0, 3, 1, 2)
    first(swapped)
    first.set_weights(last.get_weights())
    np.testing.assert_allclose(first(swapped), y.transpose(0, 3, 1, 2), rtol=1e-5)


def test_layer_scale_channels_first():
    layer = layers.LayerScale(2.0, data_format="channels_first")
    x = _x(2, 3, 4, 5)
    layer.build(x.shape)
    layer.gamma.assign([1.0, 2.0, 3.0])
    factors = np.array([1, 2, 3], "float32")[:, None, None]
    np.testing.assert_allclose(layer(x), x * factors)


@pytest.mark.parametrize(
    "make",
    [
        lambda f: layers.BasicBlock(6, strides=2, data_format=f),
        lambda f: layers.BottleneckBlock(3, data_format=f, shortcut_loss=0.1),
        lambda f: layers.PreActivationBlock(4, data_format=f),
        lambda f: layers.InvertedResidualBlock(4, squeeze=0.5, data_format=f),
        lambda f: layers.ConvNeXtBlock(4, kernel_size=3, data_format=f),
    ],
)
def test_blocks_build_channels_first(make):
    # The shapes only: TensorFlow has no convolution of this layout on CPU.
    first, last = make("channels_first"), make("channels_last")
    a = first(keras.Input((4, 8, 8)))
    b = last(keras.Input((8, 8, 4)))
    assert (*a.shape[2:], a.shape[1]) == tuple(b.shape[1:])
    assert [v.shape for v in first.weights] == [v.shape for v in last.weights]


@pytest.mark.parametrize(
    "make",
    [
        lambda: layers.BasicBlock(4),
        lambda: layers.BottleneckBlock(1),
        lambda: layers.ConvNeXtBlock(4),
        lambda: layers.InvertedResidualBlock(4, zero_init=True),
        lambda: layers.PreActivationBlock(4, scale="rezero"),
    ],
)
def test_blocks_start_as_their_shortcut(make):
    x = np.abs(_x(2, 6, 6, 4))
    np.testing.assert_allclose(make()(x), x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: layers.BasicBlock(0), "filters must be a whole number, 1 or greater"),
        (lambda: layers.BasicBlock(4, strides=1.5), "strides must be a whole number"),
        (lambda: layers.BottleneckBlock(6, groups=4), "Near it are 4 and 8 filters"),
        (
            lambda: layers.PreActivationBlock(4, dropout=1.0),
            r"dropout must be a number in \[0, 1\)",
        ),
        (lambda: layers.SqueezeExcitation(0), r"ratio must be a number in \(0, 1\]"),
        (
            lambda: layers.SqueezeExcitation(data_format="x"),
            "data_format must be 'channels_last' or",
        ),
        (
            lambda: layers.LayerScale(data_format="x"),
            "data_format must be 'channels_last' or",
        ),
        (lambda: layers.SelfAttention(6, heads=4), "heads must divide units"),
        (
            lambda: layers.TransformerBlock(8, norm="mid"),
            "norm must be 'pre' or 'post'",
        ),
        (
            lambda: layers.TransformerBlock(8, dropout=2.0),
            r"dropout must be a number in \[0, 1\)",
        ),
        (
            lambda: layers.BasicBlock(4, data_format="x"),
            "data_format must be 'channels_last' or",
        ),
    ],
)
def test_impossible_arguments(make, text):
    with pytest.raises(ConfigError, match=text):
        make()


def test_transformer_of_another_width():
    with pytest.raises(ConfigError, match="units must be the width of the input"):
        layers.TransformerBlock(8)(_x(2, 5, 4))


def test_recipes_reach_the_layers_of_a_block_and_keep_its_loss_term():
    import keras_dlopt as dlopt

    model = keras.Sequential(
        [
            keras.Input((6, 6, 4)),
            layers.BasicBlock(4, shortcut_loss=0.1, name="block"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(3),
        ]
    )
    recipe = dlopt.Recipe([(dlopt.matching(".*/conv2/kernel"), dlopt.Prune(0.5))])
    small = dlopt.transform(model, recipe)
    small.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    logs = small.fit(_x(8, 6, 6, 4), np.arange(8) % 3, verbose=0).history
    plain = dlopt.finalize(small)
    assert logs["block_shortcut_loss"][0] > 0
    zeros = {v.path: float((np.asarray(v) == 0).mean()) for v in plain.weights}
    assert zeros["block/conv2/kernel"] == 0.5
    assert zeros["block/conv1/kernel"] == 0.0


def test_what_structural_pruning_needs_to_know_is_public():
    block = layers.BasicBlock(6, strides=2, shortcut="pad")
    block(_x(1, 8, 8, 4))
    assert block.pad == ((2, 2), 2)
    assert block.projection == []
    block = layers.BasicBlock(6)
    block(_x(1, 8, 8, 4))
    assert [layer.name for layer in block.projection] == ["projection", "projection_bn"]
    light = layers.InvertedResidualBlock(6, in_filters=4)
    light(_x(1, 8, 8, 4))
    assert not light.adds
