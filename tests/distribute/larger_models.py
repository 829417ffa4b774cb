"""A transformer, a residual network and an embedding model on replicas, and on one."""

import numpy as np

from contracts.equality import Calls, Run

BATCH, STEPS = 16, 20


def _transformer():
    import keras_dlopt as dlopt

    shape = (8, 8, 3)
    return dlopt.models.vit_small(
        input_shape=shape, classes=4, patch=2, units=16, depth=2, heads=2, seed=0
    ), _images(shape)


def _resnet():
    import keras

    import keras_dlopt as dlopt

    shape = (8, 8, 3)
    model = dlopt.models.resnet(depth=8, width=4, input_shape=shape, classes=4)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.synchronized = True
    return model, _images(shape)


def _embedding():
    """Bags of words of which some occur often, others twice in an example."""
    import keras

    rng = np.random.default_rng(0)
    words = np.minimum(rng.geometric(0.05, (BATCH * 5, 12)) - 1, 199)
    model = keras.Sequential(
        [
            keras.Input((12,), dtype="int32"),
            keras.layers.Embedding(200, 16),
            keras.layers.GlobalAveragePooling1D(),
            keras.layers.Dense(16, activation="tanh"),
            keras.layers.Dense(4),
        ]
    )
    return model, words.astype("int32")


def _images(shape):
    return np.random.default_rng(0).normal(size=(BATCH * 5, *shape))


MODELS = {"transformer": _transformer, "resnet": _resnet, "embedding": _embedding}


def _train(replicas, make, optimizer):
    import keras
    import tensorflow as tf

    import keras_dlopt as dlopt

    keras.utils.set_random_seed(0)
    with dlopt.distribute.strategy(f"cpu:{replicas}").scope():
        model, x = make()
        model = dlopt.distribute.data_parallel(model)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(optimizer(), loss)
        model.optimizer.build(model.trainable_variables)
    y = np.random.default_rng(1).integers(0, 4, len(x))
    if x.dtype != "int32":
        x = x.astype(keras.config.floatx())
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(BATCH)
    calls = Calls()
    options = {"shuffle": False, "verbose": 0, "callbacks": [calls]}
    history = model.fit(data, epochs=STEPS // 5, **options).history
    weights = [np.asarray(v.value.numpy()) for v in model.weights]
    return Run(weights, history, calls.made)


def cases():
    """Pairs of a name and `train(replicas) -> Run`."""
    import keras_dlopt as dlopt

    ours = dlopt.optimizers
    for optimizer, build in {
        "sgd": lambda: ours.SGD(0.05, momentum=0.9),
        "adamw": lambda: ours.AdamW(1e-3),
    }.items():
        for name, make in MODELS.items():
            yield (
                f"{name}_{optimizer}",
                lambda r, make=make, build=build: _train(r, make, build),
            )
