import keras

from catalogue import Case
from keras_dlopt import layers

IMAGE = (8, 8, 4)
PER_REPLICA = {
    "replicas": "each replica normalizes by its own share of the batch, as Keras' "
    "BatchNormalization does unless synchronized=True"
}


def _dense(units):
    return keras.layers.Dense(units, activation="tanh")


def _operation():
    """What turns the features by one place: an operation with options of its own."""
    x = keras.Input((8,))
    made = keras.ops.roll(x, 1, axis=-1)
    operation = made._keras_history.operation
    return layers.OperationLayer.of(operation, (x,), {})


def _image(name, make, **kwargs):
    return Case(name, "layer", make, input_shape=IMAGE, **kwargs)


CASES = [
    Case("Residual", "layer", lambda: layers.Residual([_dense(16), _dense(8)])),
    Case(
        "Residual-projection-loss",
        "layer",
        lambda: layers.Residual(_dense(6), shortcut_loss=0.1),
    ),
    _image(
        "Residual-pad-cosine-rezero",
        lambda: layers.Residual(
            keras.layers.Conv2D(6, 3, strides=2, padding="same"),
            shortcut="pad",
            shortcut_loss=0.1,
            distance="cosine",
            scale="rezero",
        ),
    ),
    Case(
        "Residual-survival",
        "layer",
        lambda: layers.Residual(_dense(8), survival=0.5, scale="layerscale", seed=1),
        random=True,
    ),
    Case(
        "StochasticDepth",
        "layer",
        lambda: layers.StochasticDepth(0.5, seed=1),
        random=True,
    ),
    Case("LayerScale", "layer", lambda: layers.LayerScale(0.1)),
    Case("ScaleAndShift", "layer", lambda: layers.ScaleAndShift()),
    Case("ReZero", "layer", layers.ReZero),
    Case("OperationLayer", "layer", _operation),
    _image("SqueezeExcitation", lambda: layers.SqueezeExcitation(0.5)),
    _image("BatchNormalization", layers.BatchNormalization, exempt=PER_REPLICA),
    _image("BasicBlock", lambda: layers.BasicBlock(6, strides=2), exempt=PER_REPLICA),
    _image(
        "BottleneckBlock",
        lambda: layers.BottleneckBlock(4, groups=2, shortcut_loss=0.1),
        exempt=PER_REPLICA,
    ),
    _image(
        "PreActivationBlock",
        lambda: layers.PreActivationBlock(4, scale="rezero"),
        exempt=PER_REPLICA,
    ),
    _image(
        "InvertedResidualBlock",
        lambda: layers.InvertedResidualBlock(4, expansion=2, squeeze=0.25),
        exempt=PER_REPLICA,
    ),
    _image("ConvNeXtBlock", lambda: layers.ConvNeXtBlock(4, kernel_size=3)),
    Case("ResidualMLPBlock", "layer", lambda: layers.ResidualMLPBlock(8, hidden=16)),
    Case(
        "SelfAttention",
        "layer",
        lambda: layers.SelfAttention(8, heads=2, causal=True),
        input_shape=(5, 8),
    ),
    Case(
        "TransformerBlock",
        "layer",
        lambda: layers.TransformerBlock(8, heads=2, hidden=16),
        input_shape=(5, 8),
    ),
    Case(
        "TransformerBlock-post",
        "layer",
        lambda: layers.TransformerBlock(8, heads=2, norm="post", scale="layerscale"),
        input_shape=(5, 8),
    ),
]
