"""Training towards few bytes on fewer and fewer units: the dead ones cost no time.

What has no inputs or no outputs left is zero in the network of fixed architecture, so
that its rows and columns can be left out of the arrays that are trained, and put back
as zeros for the file.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from keras import layers, ops

import keras_dlopt as dlopt

CUTS = (0.3, 0.45, 0.6, 0.75)  # shares of the training after which is cut
EARLY = (0.15, 0.25, 0.35, 0.45, 0.6, 0.75)


class Cutting:
    """A chain of convolutions without padding and dense layers, of which some is left.

    Args:
        net: the network of fixed architecture, `Sequential`.
        dropout: of the outputs of hidden dense layers, while training.
    """

    def __init__(self, net, dropout=0.0):
        self.net, self.dropout = net, dropout
        self.parts = [layer for layer in net.layers if layer.weights]
        self.flat = isinstance(self.parts[0], layers.Dense)
        kernels = [layer.kernel.shape for layer in self.parts]
        self.alive = [np.arange(kernels[0][-2]), *(np.arange(s[-1]) for s in kernels)]
        # Each of the arrays, full, by layer, variable and what is kept of it.
        self.kept = {}

    def rows(self, i):
        """Of the kernel of layer i: a flattened map has its channels many times."""
        before = self.alive[i]
        if i == 0:
            return before
        units = self.parts[i - 1].kernel.shape[-1]
        times = self.parts[i].kernel.shape[-2] // units
        return (np.arange(times)[:, None] * units + before).reshape(-1)

    def build(self):
        """The network that is left, for training."""
        x = inputs = keras.Input(self.net.input_shape[1:])
        place = 0
        for layer in self.net.layers:
            config = layer.get_config()
            if layer in self.parts:
                size = "units" if isinstance(layer, layers.Dense) else "filters"
                config[size] = len(self.alive[place + 1])
                if place == 0 and self.flat:
                    x = ops.take(x, self.alive[0], axis=1)
                place += 1
            x = type(layer).from_config(config)(x)
            if (
                self.dropout
                and isinstance(layer, layers.Dense)
                and config["units"] > 10
            ):
                x = layers.Dropout(self.dropout)(x)
        made = keras.Model(inputs, x)
        for layer, small in zip(self.parts, _parts(made), strict=True):
            for variable, own in zip(layer.weights, small.weights, strict=True):
                own.assign(self.take(self.parts.index(layer), variable.numpy()))
        return made

    def take(self, i, full):
        """What is left of an array of layer i."""
        if full.ndim == 1:
            return full[self.alive[i + 1]]
        return full[..., self.rows(i), :][..., self.alive[i + 1]]

    def put(self, i, part, shape):
        """The same among zeros."""
        full = np.zeros(shape, part.dtype)
        if full.ndim == 1:
            full[self.alive[i + 1]] = part
        else:
            view = full.reshape(-1, *shape[-2:])
            places = np.ix_(range(len(view)), self.rows(i), self.alive[i + 1])
            view[places] = part.reshape(len(view), *part.shape[-2:])
        return full

    def variables(self, small, optimizer):
        """Name, layer, shape of the weight, and each variable that training has."""
        trained = {id(v): n for n, v in enumerate(small.trainable_variables)}
        moments = optimizer.variables[-2 * len(trained) :]
        slots = {id(s.target.variable): s for g in small.groups for s in g.slots}
        for i, layer in enumerate(_parts(small.model)):
            for weight in layer.weights:
                for name, v in {"weight": weight, **slots[id(weight)].state}.items():
                    key = (i, weight.name, name)
                    yield key, v
                    if id(v) in trained:
                        at = 2 * trained[id(v)]
                        yield (*key, "mean"), moments[at]
                        yield (*key, "square"), moments[at + 1]

    def keep(self, small, optimizer):
        """Reads all that training has."""
        for key, variable in self.variables(small, optimizer):
            value = variable.numpy()
            if value.ndim:
                shape = getattr(self.parts[key[0]], key[1]).shape
                value = self.put(key[0], value, tuple(shape))
            self.kept[key] = value

    def give(self, small, optimizer):
        """Gives it to the network that is left."""
        for key, variable in self.variables(small, optimizer):
            value = self.kept[key]
            variable.assign(self.take(key[0], value) if value.ndim else value)

    def cut(self):
        """Finds what is dead; constants of units without inputs go to the next bias."""
        for _ in range(2):
            for i in range(len(self.parts) - 1):
                kernel, bias = self.effective(i, "kernel"), self.effective(i, "bias")
                after = self.effective(i + 1, "kernel")
                units = kernel.shape[-1]
                no_inputs = ~_some(kernel)
                by_unit = after.reshape(-1, units, after.shape[-1])
                no_outputs = ~(by_unit != 0).any(axis=(0, 2))
                active = getattr(self.parts[i], "activation", None)
                constant = ops.convert_to_numpy(active(bias)) if active else bias
                constant = constant * (no_inputs & ~no_outputs)
                more = np.einsum("u,tuo->o", constant, by_unit)
                self.kept[i + 1, "bias", "weight"] += more.astype("float32")
                dead = no_inputs | no_outputs
                self.alive[i + 1] = np.array(
                    [u for u in self.alive[i + 1] if not dead[u]]
                )
                self.kept[i, "kernel", "weight"][..., dead] = 0
                self.kept[i, "bias", "weight"][dead] = 0
                gone = self.kept[i + 1, "kernel", "weight"].reshape(by_unit.shape)
                gone[:, dead] = 0
        if self.flat:
            used = _some(np.swapaxes(self.effective(0, "kernel"), -1, -2))
            self.alive[0] = np.flatnonzero(used)

    def effective(self, i, name):
        """A weight as the network has it."""
        kept = {
            k: self.kept[i, name, k] for k in ("weight", "log_step", "fixed", "mask")
        }
        step = kept["fixed"] if kept["fixed"] > 0 else np.exp(kept["log_step"])
        return np.round(kept["weight"] / step) * step * kept["mask"]

    def fill(self, small):
        """Gives the weights of a finished network to the one of fixed architecture."""
        for i, layer in enumerate(_parts(small)):
            for own, weight in zip(self.parts[i].weights, layer.weights, strict=True):
                own.assign(self.put(i, weight.numpy(), tuple(own.shape)))

    def train(self, recipe, optimizer_of, fit, epochs, cuts=CUTS):
        """Trains towards few bytes, and fills the network of fixed architecture.

        Args:
            recipe: for all of the training.
            optimizer_of: makes Adam.
            fit: of a model, an optimizer and a number of epochs.
            epochs: of the training.
            cuts: shares of it after which is cut.
        """
        ends = [round(share * epochs) for share in cuts] + [epochs]
        done = iterations = 0
        for end in ends:
            small, optimizer = dlopt.transform(self.build(), recipe), optimizer_of()
            optimizer.build(small.trainable_variables)
            optimizer.iterations.assign(iterations)
            if done:
                self.give(small, optimizer)
            fit(small, optimizer, end - done)
            iterations, done = int(optimizer.iterations.numpy()), end
            if end < epochs:
                self.keep(small, optimizer)
                self.cut()
        self.fill(dlopt.finalize(small))


def _parts(model):
    return [layer for layer in model.layers if layer.weights]


def _some(kernel):
    """Whether a unit, the last axis, has any weight."""
    return (kernel != 0).reshape(-1, kernel.shape[-1]).any(axis=0)
