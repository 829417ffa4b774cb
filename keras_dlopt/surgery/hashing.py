"""Models with layers that store the buckets of their hashed kernels alone."""

from functools import partial
from typing import Any

import keras
import numpy as np

from keras_dlopt.errors import ConfigError, ModelError
from keras_dlopt.graph.kinds import is_product
from keras_dlopt.graph.rebuilding import Piece, rebuilt
from keras_dlopt.graph.targets import weight_targets
from keras_dlopt.runtime.values import to_numpy
from keras_dlopt.transforms.finalize import finalize
from keras_dlopt.transforms.hashed_kernel import KINDS, OPTIONS, HashedKernel
from keras_dlopt.transforms.model import TransformedModel
from keras_dlopt.transforms.share import HashedWeights


def hashed_layers(model: TransformedModel) -> keras.Model:
    """A plain model with `HashedKernel` layers where kernels were hashed.

    It computes what `finalize(model)` computes, and a file of it holds one number a
    bucket instead of one a weight.

    Args:
        model: a transformed Sequential or Functional model with `HashedWeights`.

    Raises:
        ModelError: for anything else.
        ConfigError: for hashed weights of other layers than Dense and Conv1D to Conv3D.

    Example:
        >>> from keras_dlopt import Recipe, named, transform
        >>> net = keras.Sequential([keras.Input((64,)), keras.layers.Dense(64)])
        >>> small = transform(net, Recipe([(named("kernel"), HashedWeights(1 / 64))]))
        >>> net.count_params(), hashed_layers(small).count_params()
        (4160, 128)
    """
    groups = getattr(model, "groups", ())
    found = {
        slot.target.path: (group.transform, slot.arrays())
        for group in groups
        if isinstance(group.transform, HashedWeights)
        for slot in group.slots
    }
    if not isinstance(model, TransformedModel) or not found:
        raise ModelError(
            "hashed_layers takes a model with HashedWeights, made by "
            "keras_dlopt.transform. Received: "
            f"{model!r}."
        )
    plain = finalize(model)
    layers = {t.path: t.layer for t in weight_targets(plain)}
    pieces = {}
    for path, (transform, arrays) in found.items():
        layer = layers[path]
        known = is_product(layer, exactly=True)
        if not known or path.rpartition("/")[2] != "kernel":
            raise ConfigError(
                f"{path!r} of a {type(layer).__name__} cannot be stored as a hash: "
                f"hashed_layers knows {', '.join(KINDS)} without groups. Leave it out "
                "of the recipe."
            )
        pieces[id(layer)] = partial(_piece, layer, transform, arrays)
    return rebuilt(plain, pieces)


def _piece(
    layer: Any, transform: HashedWeights, arrays: dict[str, np.ndarray]
) -> list[Piece]:
    config = layer.get_config()
    conv = not isinstance(layer, keras.layers.Dense)
    new = HashedKernel(
        type(layer).__name__,
        config["filters" if conv else "units"],
        buckets=arrays["buckets"].size,
        kernel_size=tuple(config["kernel_size"]) if conv else (),
        options={k: config[k] for k in OPTIONS} if conv else None,
        activation=config["activation"],
        use_bias=layer.use_bias,
        signs=transform.signs,
        seed=transform.seed,
        name=layer.name,
    )
    bias = [to_numpy(layer.bias)] if layer.use_bias else []
    return [(new, [arrays["buckets"], *bias])]
