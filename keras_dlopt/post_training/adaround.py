"""AdaRound: learned rounding of kernels, layer by layer, from few examples."""

import dataclasses
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_dlopt.errors import ConfigError
from keras_dlopt.graph.channels import tensor_axis
from keras_dlopt.graph.linear import Linear, linear_layers, watch
from keras_dlopt.graph.rebuilding import like
from keras_dlopt.graph.trace import trace
from keras_dlopt.post_training.bias import corrections
from keras_dlopt.post_training.data import Batches
from keras_dlopt.runtime.values import to_numpy
from keras_dlopt.select import Selector, at
from keras_dlopt.transforms import (
    Chain,
    FakeQuant,
    IntegerCodes,
    Recipe,
    SoftRounding,
    Transform,
    TransformedLayer,
    TransformedModel,
    transform,
)


@dataclasses.dataclass(frozen=True, eq=False)
class _Kernel:
    """A kernel before it is rounded, and the grid it goes to."""

    grid: FakeQuant
    weight: np.ndarray
    scale: np.ndarray
    lowest: np.ndarray
    highest: np.ndarray


def adaround(
    model: TransformedModel,
    data: Any,
    *,
    steps: int = 400,
    batch_size: int = 32,
    limit: int = 512,
    learning_rate: float = 3e-2,
    strength: float = 0.1,
    seed: int = 0,
    example: Any = None,
) -> TransformedModel:
    """Rounds each kernel weight up or down so that its layer's output changes least.

    For each convolution and dense layer, in order: the inputs are those of the
    quantized model so far, the wanted outputs those of the float model, before the
    activation, each channel divided by its standard deviation. `SoftRounding` is
    trained on them; its codes replace the nearest ones. A layer that is called on
    tensors of several sizes is trained on the size with the most values. A bias
    correction of the model belongs to its rounding and is left out of the result.

    Args:
        model: what `quantize` or `transform` returned, the kernels' transforms ending
            in `FakeQuant` without `begin`; its ranges set. It stays as it is.
        data: examples without labels.
        steps: training steps a layer, at least 1.
        batch_size: examples a step.
        limit: how many examples are used at most.
        learning_rate: of Adam.
        strength: of the term that makes every weight decide; see `SoftRounding`.
        seed: of the order of the examples.
        example: a batch of inputs, for models that do not know their input's shape.

    Returns:
        A new model whose kernels are `IntegerCodes`.

    Raises:
        ConfigError: for a model without `FakeQuant` kernels.
        DataError: for data that is empty or does not fit the model.

    Source: Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization"
    (arXiv:2004.10568), sections 3.2 and 3.4.
    Differs from the paper: the error is taken before the activation, per channel in
    units of its standard deviation.
    """
    if not isinstance(model, TransformedModel):
        raise ConfigError(
            "adaround rounds the kernels of a TransformedModel, such as "
            "quantize(model, data, weights=FakeQuant(bits=4)). Received: "
            f"{type(model).__name__}."
        )
    kernels = _kernels(model)
    small = _with_codes(model, kernels)
    _take_back(model, small)
    batches = Batches(small.model, data, batch_size=64, limit=limit)
    slots = {
        slot.target.path: slot
        for group in small.groups
        if isinstance(group.transform, IntegerCodes)
        for slot in group.slots
    }
    graph = trace(small.model, example)
    for linear in linear_layers(small.model, graph):
        path = linear.target.path
        if path not in slots:
            continue
        inputs, wanted = _examples(small, batches, linear)
        codes = _round(
            linear,
            kernels[path],
            inputs,
            wanted,
            steps=steps,
            batch_size=batch_size,
            learning_rate=learning_rate,
            strength=strength,
            seed=seed,
        )
        slots[path].write("codes", codes.astype("float32"))
    return small


def _kernels(model: TransformedModel) -> dict[str, _Kernel]:
    """The kernels whose transform ends in FakeQuant, by path."""
    found = {}
    for group in model.groups:
        links = _links(group.transform)
        last = links[-1]
        if not isinstance(last, FakeQuant) or last.begin:
            continue
        for slot in group.slots:
            weight, state = to_numpy(slot.target.variable), slot.arrays()
            if len(links) > 1:
                before = Chain(links[:-1])
                weight, _ = before.finalize(slot.target, weight, state)
                prefix = f"{len(links) - 1}_"
                state = {k.removeprefix(prefix): v for k, v in state.items()}
            grid = last.grid_of(slot.target, weight, state)
            found[slot.target.path] = _Kernel(last, weight, *grid)
    if not found:
        raise ConfigError(
            f"{model.name!r} has no kernels under FakeQuant that rounds from the "
            "start, so there is nothing to round better. Use "
            "quantize(model, data, weights=FakeQuant(bits=4)) first."
        )
    return found


def _take_back(model: TransformedModel, small: TransformedModel) -> None:
    """Gives `small` the values from before a bias correction of `model`."""
    for place, before in corrections(model).items():
        small.model.variables[place].assign(before)


def _links(given: Transform) -> tuple[Transform, ...]:
    return given.links if isinstance(given, Chain) else (given,)


def _with_codes(
    model: TransformedModel, kernels: dict[str, _Kernel]
) -> TransformedModel:
    """A copy of the model with IntegerCodes where FakeQuant was."""
    entries: list[tuple[Selector, Transform]] = []
    for group, (selector, old) in zip(model.groups, model.recipe.entries, strict=True):
        paths = [slot.target.path for slot in group.slots]
        if paths and paths[0] in kernels:
            entries.append((at(*paths), IntegerCodes(kernels[paths[0]].grid)))
        else:
            entries.append((selector, old))
    small = transform(model.model, Recipe(entries))
    for new, before in zip(small.groups, model.groups, strict=True):
        for slot, source in zip(new.slots, before.slots, strict=True):
            kernel = kernels.get(slot.target.path)
            values = source.arrays()
            if kernel is not None:
                codes = np.rint(kernel.weight / kernel.scale)
                codes = np.clip(codes, kernel.lowest, kernel.highest)
                values = {"codes": codes, "scale": kernel.scale}
            for name, value in values.items():
                slot.write(name, value.astype(slot.state[name].dtype))
        new.last.assign(to_numpy(before.last))
    return small


def _examples(
    small: TransformedModel, batches: Batches, linear: Linear
) -> tuple[np.ndarray, np.ndarray]:
    """The layer's inputs in the quantized model, its outputs in the float model."""
    taken: list[np.ndarray] = []
    made: list[np.ndarray] = []

    def take(_, inputs, outputs):
        taken.append(np.asarray(ops.convert_to_numpy(inputs), "float32"))

    def make(_, inputs, outputs):
        made.append(np.asarray(ops.convert_to_numpy(outputs), "float32"))

    watch(small, batches, [linear.layer], take)
    watch(small.model, batches, [linear.layer], make)
    sizes: dict[tuple[int, ...], int] = {}
    for one in taken:
        sizes[one.shape[1:]] = sizes.get(one.shape[1:], 0) + one.size
    most = max(sizes, key=lambda shape: sizes[shape])
    chosen = [i for i, one in enumerate(taken) if one.shape[1:] == most]
    return (
        np.concatenate([taken[i] for i in chosen]),
        np.concatenate([made[i] for i in chosen]),
    )


def _round(
    linear: Linear,
    kernel: _Kernel,
    inputs: np.ndarray,
    wanted: np.ndarray,
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    strength: float,
    seed: int,
) -> np.ndarray:
    """Trains the rounding of one kernel; returns its codes."""
    soft = SoftRounding(kernel.grid, steps=steps, strength=strength)
    layer = _alone(linear.layer)
    trial = TransformedLayer(layer, Recipe([(at("kernel"), soft)]))
    net = keras.Sequential([keras.Input(inputs.shape[1:]), trial])
    layer.set_weights(linear.layer.get_weights())
    state = trial.groups[0].slots[0]
    start = soft.start(kernel.weight, kernel.scale, kernel.lowest, kernel.highest)
    for name, value in start.items():
        state.write(name, value)
    layer.trainable = True  # the rounding would be frozen with its layer
    if layer.use_bias:
        layer.bias.trainable = False
    loss = _in_deviations(wanted, tensor_axis(layer))
    net.compile(keras.optimizers.Adam(learning_rate), loss)
    rng = np.random.default_rng(seed)
    size = min(batch_size, len(inputs))
    for _ in range(steps):
        chosen = rng.choice(len(inputs), size, replace=False)
        net.train_on_batch(inputs[chosen], wanted[chosen])
    return soft.codes(state.arrays())


def _in_deviations(wanted: np.ndarray, axis: int) -> Any:
    """Squared error, each channel in units of its standard deviation."""
    rest = tuple(i for i in range(wanted.ndim) if i != axis % wanted.ndim)
    spread = wanted.std(axis=rest, dtype="float64", keepdims=True)
    spread = np.where(spread > 0, spread, 1.0).astype("float32")

    def loss(y, x):
        return ops.mean(ops.sum(ops.square((y - x) / spread), axis=axis))

    return loss


def _alone(layer: Any) -> Any:
    """A layer like this one, without activation and regularizers."""
    plain = {key: None for key in layer.get_config() if key.endswith("_regularizer")}
    return like(layer, activation="linear", dtype="float32", **plain)
