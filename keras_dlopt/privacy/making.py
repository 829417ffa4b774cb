"""`private`: a model that is trained with differential privacy."""

import keras

from keras_dlopt.graph.copying import copy_model
from keras_dlopt.graph.walk import check_built
from keras_dlopt.privacy.model import PrivateModel
from keras_dlopt.privacy.refusals import check_model, check_recipe
from keras_dlopt.transforms.model import TransformedModel
from keras_dlopt.transforms.recipe import Recipe


def private(
    model: keras.Model,
    *,
    epsilon: float | None = None,
    noise_multiplier: float | None = None,
    clip: float = 1.0,
    delta: float = 1e-5,
    sampling: str = "poisson",
    accountant: str = "pld",
    microbatch: int | None = None,
    method: str = "auto",
    seed: int | None = None,
    copy: bool = True,
) -> PrivateModel:
    """A model whose `fit` is DP-SGD (Abadi 2016), with any optimizer.

    Each step clips the gradient of each example, adds Gaussian noise to their sum once,
    also on several replicas, and hands the mean to the optimizer. What is spent is in
    the logs as `epsilon`, in `model.epsilon()` and in `model.ledger`, and is kept in
    files. A transformed model keeps its recipe, where that reads weights alone.

    The weights are what is protected. Logs, metrics and the choice of settings by
    looking at results on the same examples are not, and nor is anything from somebody
    who knows the seed. Noise comes from a generator that is not made for cryptography,
    in floating point.

    Args:
        model: a built Keras model, or a `TransformedModel`.
        epsilon: budget; training stops when it is spent. None for no limit.
        noise_multiplier: deviation of the noise in units of `clip`; None for the least
            under which what `fit` plans stays within `epsilon`.
        clip: the longest norm that an example's gradient keeps.
        delta: chance that the bound does not hold, below 1 / examples.
        sampling: `"poisson"`, each example in each batch with probability batch size /
            examples; `"shuffled"`, each once a pass, for which much more is counted.
        accountant: `"pld"`, or `"rdp"`, whose bound is looser.
        microbatch: examples whose gradients are computed at once; None for all of a
            batch. The noise is added once a batch all the same.
        method: `"ghost"`, norms from what layers take and give, where all layers are
            Dense, Conv1D, Conv2D or Embedding (TensorFlow); `"vectorized"`, each
            example's gradient by itself; `"auto"`, the first where it serves.
        seed: of draws and noise, for tests. None, a fresh secret, for all else: with
            the seed the noise can be taken off.
        copy: whether the model stays as it is. False trains the model itself.

    Returns:
        A model to `compile` and `fit`, then to `finalize`.

    Raises:
        ModelError: for layers that mix the examples of a batch, training steps and
            losses of the model's own, and models that are not built.
        ConfigError: for transforms that read data, and arguments out of range.
        MissingDependencyError: without `dp-accounting`.

    Example:
        >>> L = keras.layers
        >>> net = keras.Sequential([keras.Input((4,)), L.Dense(3)])
        >>> model = private(net, epsilon=3.0, clip=1.0)
        >>> loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        >>> model.compile(keras.optimizers.SGD(0.5), loss)
        >>> model.epsilon()
        0.0
    """
    check_built(model)
    check_model(model)
    if copy:
        model = copy_model(model)
    inner, recipe, states = model, Recipe([]), []
    if isinstance(model, TransformedModel):
        check_recipe(model.recipe)
        states = model.states
        model.release()
        inner, recipe = model.model, model.recipe
    made = PrivateModel(
        inner,
        recipe,
        epsilon=epsilon,
        noise_multiplier=noise_multiplier,
        clip=clip,
        delta=delta,
        sampling=sampling,
        accountant=accountant,
        microbatch=microbatch,
        method=method,
        seed=seed,
        corrections=getattr(model, "corrections", ()),
    )
    for old, new in zip(states, made.states, strict=True):
        new.assign(old)
    return made
