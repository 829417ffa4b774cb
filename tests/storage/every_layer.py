"""A small model for every class in keras.layers, with state worth saving."""

import keras
import numpy as np
from keras import layers as L

RNG = np.random.default_rng(0)
# Code or other files, which no file of models may hold; no layers to be called.
NOT_HERE = {
    *("Lambda", "TFSMLayer", "TorchModuleWrapper", "JaxLayer", "FlaxLayer"),
    *("Layer", "InputLayer", "InputSpec", "Wrapper", "Pipeline"),
    # They take labels or boxes beside images, in dicts that no graph holds.
    *("CutMix", "MixUp", "MaxNumBoundingBoxes"),
    "Equalization",  # fails in a graph of Keras' own
}
LINE, ROW, IMAGE, VOLUME = (6,), (8, 4), (16, 16, 3), (6, 6, 6, 2)
ROWS = ("1D", (8, 4)), ("2D", (16, 16, 3)), ("3D", (6, 6, 6, 2))


def _options() -> dict:
    """Arguments by class, where there must be some, and the input if not LINE."""
    table = {
        "Activation": (("relu",), LINE),
        "ActivityRegularization": ((0.1,), LINE),
        "CategoryEncoding": ((5,), ("int32", LINE, 5)),
        "Dense": ((3,), LINE),
        "TernaryDense": ((3,), LINE),
        "Dropout": ((0.5,), LINE),
        "AlphaDropout": ((0.5,), LINE),
        "GaussianDropout": ((0.5,), LINE),
        "GaussianNoise": ((0.5,), LINE),
        "EinsumDense": (("ab,bc->ac", (3,)), LINE),
        "Embedding": ((7, 3), ("int32", LINE, 7)),
        "ReversibleEmbedding": ((7, 3), ("int32", LINE, 7)),
        "GRU": ((3,), ROW),
        "LSTM": ((3,), ROW),
        "SimpleRNN": ((3,), ROW),
        "RepeatVector": ((3,), LINE),
        "Reshape": (((3, 2),), LINE),
        "Permute": (((2, 1),), ROW),
        "Flatten": ((), ROW),
        "Masking": ((), ROW),
        "Rescaling": ((0.5,), LINE),
        "Hashing": ((4,), ("string", LINE, 0)),
        "Normalization": ((), LINE),
        "Discretization": ((None, 4), LINE),
        "BatchNormalization": ((), IMAGE),
        "GroupNormalization": ((2,), (4, 4, 4)),
        "PReLU": ((), LINE),
        "STFTSpectrogram": (("log", 64, 32), (400, 1)),
        "MelSpectrogram": ((), (4000,)),
        "CenterCrop": ((4, 4), IMAGE),
        "Resizing": ((4, 4), IMAGE),
        "RandomCrop": ((4, 4), IMAGE),
        "SpatialDropout1D": ((0.5,), ROW),
        "SpatialDropout2D": ((0.5,), IMAGE),
        "SpatialDropout3D": ((0.5,), VOLUME),
    }
    for rank, shape in ROWS:
        for kind in ("Conv", "Convolution"):
            table[f"{kind}{rank}"] = ((4, 3), shape)
            table[f"{kind}{rank}Transpose"] = ((4, 3), shape)
            table[f"Separable{kind}{rank}"] = ((4, 3), shape)
        table[f"DepthwiseConv{rank}"] = ((3,), shape)
        table[f"ConvLSTM{rank}"] = ((2, 3), (3, *shape))
        for kind in ("Max", "Average", "Avg"):
            table[f"{kind}Pooling{rank}"] = table[f"{kind}Pool{rank}"] = ((2,), shape)
            table[f"Global{kind}Pool{rank}"] = ((), shape)
            table[f"Global{kind}Pooling{rank}"] = ((), shape)
            table[f"Adaptive{kind}Pooling{rank}"] = ((2,), shape)
        for kind in ("UpSampling", "ZeroPadding", "Cropping"):
            table[f"{kind}{rank}"] = ((1,), shape)
    for name in dir(L):
        if name.startswith("Random") and name not in table:
            table[name] = ((), IMAGE)
    images = "AugMix AutoContrast Solarization RandAugment Mosaic"
    for name in (*images.split(), "ContrastLimitedAdaptiveHistogramEqualization"):
        table[name] = ((), IMAGE)
    strengths = {
        "Brightness": (0.2,),
        "Contrast": (0.2,),
        "Rotation": (0.2,),
        "Translation": (0.2, 0.2),
        "Zoom": (0.2,),
        "Hue": (0.2,),
        "Saturation": (0.2,),
        "Sharpness": (0.2,),
        "Posterization": (4,),
        "ColorDegeneration": (0.2,),
    }
    for name, arguments in strengths.items():
        table[f"Random{name}"] = (arguments, IMAGE)
    return table


OPTIONS = _options()
HEADS = {
    "MultiHeadAttention": (2, 3),
    "GroupQueryAttention": (3, 4, 2),
    "GroupedQueryAttention": (3, 4, 2),  # its name from Keras 3.16 on
}
MERGES = ["Add", "Average", "Concatenate", "Maximum", "Minimum", "Multiply", "Subtract"]


def one_layer(make, shape):
    kind, shape, high = shape if isinstance(shape[0], str) else ("float32", shape, 0)
    inputs = keras.Input(shape, dtype=kind)
    return keras.Model(inputs, make()(inputs)), values(kind, shape, high)


def values(kind, shape, high):
    if kind == "string":
        import tensorflow as tf

        return tf.constant(RNG.choice(["a", "b", "c d", "x"], (4, *shape)))
    if kind.startswith("int"):
        return RNG.integers(0, high, (4, *shape)).astype(kind)
    return RNG.normal(2, 3, (4, *shape)).astype("float32")


def _cells():
    pairs = {"GRUCell": L.GRUCell, "LSTMCell": L.LSTMCell}
    pairs["SimpleRNNCell"] = L.SimpleRNNCell
    made = {n: (lambda c=c: L.RNN(c(3)), ROW) for n, c in pairs.items()}
    made["StackedRNNCells"] = (
        lambda: L.RNN(L.StackedRNNCells([L.GRUCell(3), L.LSTMCell(2)])),
        ROW,
    )
    made["RNN"] = made["GRUCell"]
    made["Bidirectional"] = (lambda: L.Bidirectional(L.LSTM(3)), ROW)
    made["TimeDistributed"] = (lambda: L.TimeDistributed(L.Dense(3)), ROW)
    made["SpectralNormalization"] = (lambda: L.SpectralNormalization(L.Dense(3)), LINE)
    return made


WRAPPED = _cells()


def _two(name):
    if name in ("Attention", "AdditiveAttention"):
        inputs = [keras.Input((5, 4)), keras.Input((6, 4))]
        layer = getattr(L, name)
        out = layer(use_scale=True)(inputs)
    elif name in HEADS:
        inputs = [keras.Input((5, 4)), keras.Input((6, 4))]
        heads = HEADS[name]
        out = getattr(L, name)(*heads)(*inputs)
    elif name == "Dot":
        inputs = [keras.Input((4,)), keras.Input((4,))]
        out = L.Dot(1)(inputs)
    elif name == "HashedCrossing":
        inputs = [keras.Input((), dtype="int32"), keras.Input((), dtype="int32")]
        out = L.HashedCrossing(5)(inputs)
    else:
        inputs = [keras.Input((4,)), keras.Input((4,))]
        out = getattr(L, name)()(inputs)
    data = [values(x.dtype, x.shape[1:], 9) for x in inputs]
    return keras.Model(inputs, out), data


def _vocabulary(name):
    if name == "IntegerLookup":
        layer, data = L.IntegerLookup(), RNG.integers(0, 40, (4, 6))
        layer.adapt(RNG.integers(0, 40, 200))
        return keras.Sequential([keras.Input((6,), dtype="int64"), layer]), data
    import tensorflow as tf

    words = tf.constant(["der Hund", "die Katze", "ein Hund lief", "ganz Ähnlich"])
    layer = getattr(L, name)()
    layer.adapt(words)
    return keras.Sequential([keras.Input((1,), dtype="string"), layer]), words[:, None]


TWO_INPUTS = (
    *MERGES,
    *("Attention", "AdditiveAttention", "Dot", "HashedCrossing"),
    *HEADS,
)


def model_of(name):
    """A built model around the class of this name, and a batch for it."""
    if name in TWO_INPUTS:
        return _two(name)
    if name in ("StringLookup", "IntegerLookup", "TextVectorization"):
        return _vocabulary(name)
    if name in WRAPPED:
        model, data = one_layer(*WRAPPED[name])
    else:
        arguments, shape = OPTIONS.get(name, ((), LINE))
        layer = getattr(L, name)(*arguments)
        if name in ("Normalization", "Discretization"):
            layer.adapt(values("float32", LINE, 0))
        model, data = one_layer(lambda: layer, shape)
    for v in model.weights:  # as if it had been trained
        if "float" in v.dtype and name not in ("Normalization", "MelSpectrogram"):
            v.assign(np.abs(RNG.normal(1, 0.3, v.shape)).astype(v.dtype))
    return model, data


NAMES = sorted(
    name
    for name, value in vars(L).items()
    if isinstance(value, type) and name not in NOT_HERE
)
