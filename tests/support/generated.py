"""Legal models, drawn: branches, shared and nested parts, odd sizes, edge numbers."""

import dataclasses
import random
import warnings
from typing import Any

import keras
import numpy as np
from keras import layers as L
from keras import ops

ACTIVATIONS = (None, "relu", "tanh", "sigmoid", "softmax", "gelu")


@keras.saving.register_keras_serializable("dlopt_tests")
class Holder(keras.Model):
    """A subclassed model around another, which calls it by keyword."""

    def __init__(self, core, **kwargs):
        super().__init__(**kwargs)
        self.core = core

    def build(self, input_shape=None):
        self.built = True

    def call(self, inputs):
        return self.core(inputs=inputs)

    def get_config(self):
        core = keras.saving.serialize_keras_object(self.core)
        return {**super().get_config(), "core": core}

    @classmethod
    def from_config(cls, config):
        """With the core that the config describes."""
        core = keras.saving.deserialize_keras_object(config.pop("core"))
        return cls(core, **config)


@dataclasses.dataclass
class Drawn:
    """A model with a batch of inputs, and how it came about."""

    model: Any
    x: Any
    notes: list[str]


class Builder:
    """Draws one model; each method adds a part to a tensor."""

    def __init__(self, rng: random.Random):
        self.rng, self.dims = rng, rng.randint(0, 3)
        self.notes = [f"{self.dims}-D"]

    def pick(self, *options):
        """One of these."""
        return self.rng.choice(options)

    def number(self, low, high):
        """A whole number in this range."""
        return self.rng.randint(low, high)

    def either(self):
        """True half of the times."""
        return self.rng.random() < 0.5

    def note(self, text, made):
        """Remembers what was done."""
        self.notes.append(text)
        return made

    def conv(self, x, channels=None):
        """A convolution; dense for vectors."""
        wide = channels or self.number(1, 4)
        kind = self.pick(*ACTIVATIONS[:4])
        bias = self.either()
        if not self.dims:
            return self.note("dense", L.Dense(wide, activation=kind, use_bias=bias)(x))
        layer = [L.Conv1D, L.Conv2D, L.Conv3D][self.dims - 1]
        same = channels is not None
        small = min(x.shape[1:-1]) < 3
        options = {
            "kernel_size": self.number(1, 2 if small else 3),
            "padding": "same" if same or small else self.pick("same", "valid"),
            "strides": 1 if same else self.number(1, 2),
            "use_bias": bias,
            "activation": kind,
        }
        if wide % 2 == 0 and x.shape[-1] % 2 == 0 and self.either():
            options["groups"] = 2
        return self.note(f"conv {options}", layer(wide, **options)(x))

    def depthwise(self, x):
        """A depthwise or separable convolution, where Keras has one."""
        if self.dims not in (1, 2):
            return self.conv(x)
        kinds = [(L.DepthwiseConv1D, L.SeparableConv1D)]
        kinds += [(L.DepthwiseConv2D, L.SeparableConv2D)]
        deep, separable = kinds[self.dims - 1]
        size, times = self.number(1, 3), self.number(1, 2)
        if self.either():
            made = deep(size, padding="same", depth_multiplier=times)(x)
            return self.note("depthwise", made)
        return self.note("separable", separable(3, size, padding="same")(x))

    def transposed(self, x):
        """A transposed convolution, where there is a place to move."""
        if not self.dims:
            return self.conv(x)
        layer = [L.Conv1DTranspose, L.Conv2DTranspose, L.Conv3DTranspose][self.dims - 1]
        size, steps = self.number(1, 3), self.number(1, 2)
        how = self.pick("same", "valid")
        made = layer(self.number(1, 3), size, strides=steps, padding=how)(x)
        return self.note("transposed", made)

    def sequence(self, x):
        """What reads a sequence: recurrent layers and attention."""
        if self.dims != 1:
            return self.conv(x)
        units = self.number(1, 3)
        if self.number(0, 2) == 0:
            layer = L.MultiHeadAttention(self.number(1, 2), 2)
            return self.note("attention", layer(x, value=x))
        cell = self.pick(L.LSTM, L.GRU, L.SimpleRNN)
        layer = cell(units, return_sequences=True)
        if self.either():
            layer = L.Bidirectional(layer)
        self.note("recurrent", None)
        return layer(x)

    def normalization(self, x):
        """BatchNormalization mostly."""
        options = {"scale": self.number(0, 3) > 0, "center": self.either()}
        layer = self.pick(
            L.BatchNormalization(**options),
            L.BatchNormalization(**options),
            L.BatchNormalization(**options),
            L.LayerNormalization(),
            L.GroupNormalization(1),
        )
        return self.note(type(layer).__name__, layer(x))

    def activation(self, x):
        """One layer without weights that keeps the shape."""
        layer = self.pick(
            L.ReLU(),
            L.ReLU(6.0),
            L.LeakyReLU(),
            L.PReLU(),
            L.Softmax(),
            L.Activation("tanh"),
            L.Activation("sigmoid"),
            L.Dropout(0.3),
            L.GaussianNoise(0.1),
            L.Rescaling(1 / 127.5, offset=-1.0),
            L.Rescaling(0.0),
        )
        return self.note(type(layer).__name__, layer(x))

    def operation(self, x):
        """Arithmetic between layers."""
        which = self.pick("scale", "relu", "sum", "square")
        self.notes.append(f"operation {which}")
        if which == "scale":
            return x / 127.5 - 1.0
        if which == "relu":
            return ops.relu(x)
        return x + x * 0.5 if which == "sum" else x * x

    def pooling(self, x):
        """Pooling, padding or upsampling."""
        if not self.dims:
            return self.activation(x)
        i = self.dims - 1
        which = self.number(0, 3)
        if which == 3:
            pad = [L.ZeroPadding1D, L.ZeroPadding2D, L.ZeroPadding3D][i]
            return self.note("pad", pad(1)(x))
        if which == 2:
            up = [L.UpSampling1D, L.UpSampling2D, L.UpSampling3D][i]
            return self.note("up", up(2)(x))
        kinds = [(L.MaxPooling1D, L.AveragePooling1D)]
        kinds += [(L.MaxPooling2D, L.AveragePooling2D)]
        kinds += [(L.MaxPooling3D, L.AveragePooling3D)]
        layer = kinds[i][which](2, padding="same", strides=self.number(1, 2))
        return self.note(type(layer).__name__, layer(x))

    def branches(self, x):
        """Two ways from one tensor, and what joins them."""
        one, two = self.conv(x, channels=3), self.conv(x, channels=3)
        if self.either():
            two = self.activation(two)
        join = self.pick("add", "concat", "multiply", "subtract", "maximum", "+")
        self.notes.append(f"join {join}")
        if join == "+":
            return one + two
        layer = {
            "add": L.Add(),
            "concat": L.Concatenate(),
            "multiply": L.Multiply(),
            "subtract": L.Subtract(),
            "maximum": L.Maximum(),
        }[join]
        return layer([one, two])

    def shared(self, x):
        """One layer called twice, in a row or on two tensors."""
        channels = x.shape[-1]
        if self.dims:
            kinds = [L.Conv1D, L.Conv2D, L.Conv3D]
            layer = kinds[self.dims - 1](channels, 2, padding="same")
        else:
            layer = L.Dense(channels)
        twice = self.pick("row", "pair")
        self.notes.append(f"shared in a {twice}")
        if twice == "row":
            return layer(L.ReLU()(layer(x)))
        return L.Concatenate()([layer(x), layer(self.activation(x))])

    def nested(self, x):
        """A model in the model, called once or twice."""
        shape, channels = x.shape[1:], x.shape[-1]
        name = self.pick(None, "inner")
        inside = L.Dense(channels, activation=self.pick(*ACTIVATIONS))
        if self.either():
            inner = keras.Sequential([keras.Input(shape), inside, L.ReLU()])
        else:
            given = keras.Input(shape)
            made = L.BatchNormalization()(inside(given))
            inner = keras.Model(given, L.Add()([made, given]))
        self.notes.append(f"nested {type(inner).__name__} {name}")
        return inner(inner(x)) if self.either() else inner(x)

    def part(self, x):
        """Any of the above."""
        return self.pick(
            self.conv,
            self.depthwise,
            self.transposed,
            self.sequence,
            self.normalization,
            self.normalization,
            self.activation,
            self.operation,
            self.pooling,
            self.branches,
            self.shared,
            self.nested,
        )(x)


EDGES = ("dead", "zero", "negative", "flat")


def _degenerate(rng: random.Random, numbers, model, notes) -> None:
    """Fills the weights, and puts numbers at the edge into some."""
    for weight in model.weights:
        if not keras.backend.is_float_dtype(weight.dtype):
            continue
        value = numbers.normal(size=weight.shape) * 0.5
        last = weight.name
        if last in ("moving_variance", "gamma"):
            value = np.abs(value) + 0.3
        edges = EDGES if rng.random() < 0.4 else ("plain",)
        how = rng.choice([e for e in edges if (e, last) != ("negative", _VARIANCE)])
        if how == "dead" and value.size:
            value[..., 0] = 1e-32 * np.sign(value[..., 0])
        elif how == "zero":
            value *= 0
        elif how == "negative":
            value = -np.abs(value)
        elif how == "flat":
            value[:] = 0.25
        if how != "plain":
            notes.append(f"{how} {last}")
        if last == _VARIANCE:
            value = np.abs(value)
        weight.assign(value.astype("float32"))


_VARIANCE = "moving_variance"


def drawn(seed: int, parts: int = 4) -> Drawn:
    """The model of this number."""
    keras.utils.clear_session(free_memory=False)
    rng = random.Random(seed)
    keras.utils.set_random_seed(seed)
    builder = Builder(rng)
    with warnings.catch_warnings():
        # A softmax over one value is legal: it is 1.
        warnings.filterwarnings("ignore", message="(?s).*softmax over axis")
        return _drawn(builder, rng, parts)


def _drawn(builder: Builder, rng: random.Random, parts: int) -> Drawn:
    shape = [builder.number(3, 5) for _ in range(builder.dims)] + [builder.number(1, 4)]
    inputs = [keras.Input(shape)]
    x = inputs[0]
    if builder.number(0, 4) == 0:
        inputs.append(keras.Input(shape))
        x = builder.note("two inputs", L.Concatenate()(inputs))
    for _ in range(builder.number(1, parts)):
        x = builder.part(x)
    if builder.dims and builder.either():
        pools = [L.GlobalAveragePooling1D, L.GlobalAveragePooling2D]
        x = [*pools, L.GlobalAveragePooling3D][builder.dims - 1]()(x)
    x = L.Flatten()(x)
    outputs = [L.Dense(2, activation=builder.pick(None, "softmax", "sigmoid"))(x)]
    if builder.number(0, 4) == 0:
        outputs.append(builder.note("two outputs", L.Dense(1)(x)))
    one = outputs[0] if len(outputs) == 1 else outputs
    model = keras.Model(inputs if len(inputs) > 1 else inputs[0], one)
    numbers = np.random.default_rng(rng.randint(0, 2**31))
    _degenerate(rng, numbers, model, builder.notes)
    data = [numbers.normal(size=(6, *shape)).astype("float32") for _ in inputs]
    if builder.number(0, 5) == 0:
        data = [builder.note("constant inputs", np.full_like(a, 0.5)) for a in data]
    given = data if len(inputs) > 1 else data[0]
    if builder.number(0, 4) == 0:
        model = builder.note("subclassed", Holder(model))
        model(given)
    return Drawn(model, given, builder.notes)
