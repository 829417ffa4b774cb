"""What would break privacy, or could not be counted, refused by name."""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_dlopt import callbacks as own_callbacks
from keras_dlopt.distill.model import DistilledModel
from keras_dlopt.errors import ConfigError, ModelError
from keras_dlopt.graph.walk import walk
from keras_dlopt.transforms.recipe import Recipe
from keras_dlopt.transforms.trainer import overridden

# Layers that make what they return for one example from the others of the batch.
_MIXES = (keras.layers.BatchNormalization, keras.layers.MixUp, keras.layers.CutMix)
# Callbacks that act on what the training batches gave.
_LOOKS = (
    own_callbacks.LossDrivenLearningRate,
    own_callbacks.HypergradientLearningRate,
    own_callbacks.LearningRateFinder,
    own_callbacks.DivergenceGuard,
    keras.callbacks.TerminateOnNaN,
)
_FREE = (keras.callbacks.ModelCheckpoint,)  # unless it keeps the best
_TRAINING = ("train_step", "compute_loss")


def check_model(model: Any) -> None:
    """Raises `ModelError` for a model whose examples do not stay apart."""
    if isinstance(model, DistilledModel):
        raise ModelError(
            f"{model.name!r} learns from a teacher, and its terms look at private "
            "examples past the clipping. Train the teacher privately, then distill() "
            "on examples that are public."
        )
    for name in _TRAINING:
        if overridden(model, name) and type(model).__module__.split(".")[0] != "keras":
            owner = getattr(model, "model", model)
            raise ModelError(
                f"{type(owner).__name__} has its own {name}(), whose gradients would "
                "not be clipped for each example. Put what it does into a "
                "keras.losses.Loss, or train another model."
            )
    for path, layer, _ in walk(model):
        if isinstance(layer, _MIXES) and layer.trainable:
            raise ModelError(
                f"The layer {path!r}, a {type(layer).__name__}, makes one example's "
                "outputs from the others of its batch, so that no gradient is of one "
                "example alone. Use GroupNormalization or LayerNormalization, or "
                "freeze it (layer.trainable = False)."
            )
        if isinstance(layer, keras.layers.Normalization) and _adapted(layer):
            raise ModelError(
                f"The layer {path!r}, a Normalization, holds statistics of the data "
                "that it was adapted to, which nothing hides. Give it mean= and "
                "variance= of public data."
            )
        if layer.dtype_policy.name == "mixed_float16":
            raise ModelError(
                f"The layer {path!r} computes in mixed_float16, whose loss scale "
                "follows gradients before the noise. Use mixed_bfloat16 or float32."
            )


def _adapted(layer: Any) -> bool:
    """Whether a `Normalization` has its statistics from data, not from its author."""
    return layer.get_config().get("mean") is None


def check_apart(model: Any, x: Any) -> None:
    """Raises `ModelError` where an example's outputs change with the others of a batch.

    Args:
        model: whose layers may be of any class.
        x: arrays of examples.
    """
    count = len(keras.tree.flatten(x)[0])

    def outputs(*rows: int) -> list[Any]:
        batch = keras.tree.map_structure(
            lambda v: ops.convert_to_tensor(v[[i % count for i in rows]]), x
        )
        with keras.StatelessScope():  # no random state moves on
            made = keras.tree.flatten(model(batch, training=True))
        return [ops.convert_to_numpy(ops.cast(v[0], "float32")) for v in made]

    for one, other in zip(outputs(0, 1, 2), outputs(0, 3, 4), strict=True):
        if not np.allclose(one, other, rtol=1e-3, atol=1e-4, equal_nan=True):
            raise ModelError(
                f"The outputs of {model.name!r} for an example change with the other "
                "examples of its batch, so that no gradient is of one example alone. "
                "Use private(model, method='vectorized'), which runs each by itself."
            )


def check_recipe(recipe: Recipe) -> None:
    """Raises `ConfigError` for transforms that read the data."""
    for _, transform in recipe.entries:
        if transform.kind == "activation":
            raise ConfigError(
                f"{transform!r} measures ranges on private examples, which nothing "
                "hides. Leave activations out of the recipe, and quantize them after "
                "training, with post_training on public examples."
            )
        if transform.statistics:
            raise ConfigError(
                f"{transform!r} needs the {' and '.join(transform.statistics)} of "
                "private examples, which nothing hides. Use a score that reads the "
                "weights alone, such as Magnitude()."
            )


def check_callbacks(callbacks: Any) -> None:
    """Raises `ConfigError` for callbacks that act on the training loss."""
    given = getattr(callbacks, "callbacks", callbacks) or ()
    for one in given if isinstance(given, list | tuple) else (given,):
        monitor = getattr(one, "monitor", None)
        free = isinstance(one, _FREE) and not one.save_best_only
        watched = isinstance(monitor, str) and not monitor.startswith("val_")
        if isinstance(one, _LOOKS) or (watched and not free):
            raise ConfigError(
                f"{type(one).__name__} acts on the training loss or its gradients, "
                "which are those of private examples before the noise. Use a schedule, "
                "or monitor='val_loss' with validation_data that are public."
            )


def check_optimizer(optimizer: Any, loss: Any) -> None:
    """Raises for what `compile` was given and cannot be trained privately."""
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        raise ConfigError(
            f"{type(optimizer).__name__} follows gradients before the noise. Compile "
            "with the optimizer inside it, and train in float32 or mixed_bfloat16."
        )
    if loss is None:
        raise ConfigError(
            "compile() needs a loss: the gradient of each example's loss is clipped, "
            "and what layers add by themselves is of the batch. Received: loss=None."
        )


def check_fit(given: dict[str, Any]) -> None:
    """Raises `ConfigError` for arguments of `fit` that would not be counted."""
    advice = {
        "sample_weight": "Put weights into the loss, where they are clipped.",
        "class_weight": "Put weights into the loss, where they are clipped.",
        "validation_split": "Pass validation_data=(x, y).",
    }
    for name, value in given.items():
        if name in advice and _is_given(value):
            raise ConfigError(
                f"fit() of a private model takes no {name}: the examples are drawn and "
                f"counted one like the other. {advice[name]}"
            )


def _is_given(value: Any) -> bool:
    """Whether an argument was given: anything but None and 0."""
    return value is not None and not (isinstance(value, int | float) and value == 0)
