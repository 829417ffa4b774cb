"""Trainings whose logs a replica alone would get wrong: what each loss divides by."""

import numpy as np

from contracts.equality import Calls, Run

EXAMPLES, BATCH, TOKENS = 37, 8, 6  # the last batch: 3 and 2, or 2, 2, 1 and 0
MEAN, BY_WEIGHT = "sum_over_batch_size", "mean_with_sample_weight"


def _two_outputs(floatx):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(EXAMPLES, 8)).astype(floatx)
    y = {"a": rng.integers(0, 4, EXAMPLES), "b": rng.normal(size=(EXAMPLES, 2))}
    weights = {name: rng.uniform(0.1, 3, EXAMPLES) for name in y}
    return x, y, weights


def _sentences(_):
    rng = np.random.default_rng(0)
    x = rng.integers(1, 9, (EXAMPLES, TOKENS))
    x[np.arange(TOKENS) >= rng.integers(1, TOKENS + 1, (EXAMPLES, 1))] = 0
    y = rng.integers(0, 4, (EXAMPLES, TOKENS))
    return x, y, rng.uniform(0.1, 3, (EXAMPLES, TOKENS))


def _net_of_two():
    import keras

    inputs = keras.Input((8,))
    x = keras.layers.Dense(8, activation="tanh", kernel_regularizer="l2")(inputs)
    x = keras.layers.ActivityRegularization(1e-2)(x)
    outputs = {n: keras.layers.Dense(u, name=n)(x) for n, u in (("a", 4), ("b", 2))}
    return keras.Model(inputs, outputs)


def _net_of_sentences():
    import keras

    embed = keras.layers.Embedding(9, 8, mask_zero=True)
    return keras.Sequential([keras.Input((TOKENS,)), embed, keras.layers.Dense(4)])


def _losses(reductions):
    import keras

    kind = keras.losses.SparseCategoricalCrossentropy
    first = kind(from_logits=True, reduction=reductions[0])
    if len(reductions) == 1:
        names = ["accuracy", "sparse_categorical_crossentropy"]
        return {"loss": first, "metrics": names, "weighted_metrics": ["accuracy"]}
    root = keras.metrics.RootMeanSquaredError()
    return {
        "loss": {"a": first, "b": keras.losses.MeanSquaredError(reductions[1])},
        "loss_weights": {"a": 1.0, "b": 0.3},
        "metrics": {"a": ["accuracy"], "b": [root, "mae"]},
        "weighted_metrics": {"a": ["accuracy"], "b": ["mae"]},
    }


def _train(
    replicas,
    reductions,
    *,
    weights=True,
    count=EXAMPLES,
    unknown=False,
    half=False,
    **more,
):
    import keras
    import tensorflow as tf

    import keras_dlopt as dlopt

    two = len(reductions) == 2
    make = (_two_outputs if two else _sentences)(keras.config.floatx())
    options = tf.data.Options()
    options.autotune.enabled = False
    data = tf.data.Dataset.from_tensor_slices(make if weights else make[:2])
    data = data.take(count).batch(BATCH).with_options(options)
    if unknown:
        data = data.filter(lambda *_: True)
    keras.utils.set_random_seed(0)
    with dlopt.distribute.strategy(f"cpu:{replicas}").scope():
        model = dlopt.distribute.data_parallel(
            _net_of_two() if two else _net_of_sentences()
        )
        optimizer = keras.optimizers.SGD(0.05, momentum=0.9)
        if half:
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
        if replicas == 1:
            more = {**more, "jit_compile": False}
        model.compile(optimizer, **_losses(reductions), **more)
    calls = Calls()
    both = {"validation_data": data, "callbacks": [calls]}
    history = model.fit(data, epochs=2, verbose=0, **both).history
    found = [np.asarray(v.value.numpy()) for v in model.weights]
    return Run(found, history, calls.made)


def cases(_):
    """Pairs of a name and `train(replicas) -> Run`."""
    means, sums, mixed = (MEAN, MEAN), ("sum", "sum"), ("sum", "mean")
    for name, reductions, options in (
        ("two_outputs", means, {"weights": False}),
        ("two_outputs_weighted", means, {}),
        ("two_outputs_in_calls", means, {"steps_per_execution": 3}),
        ("two_outputs_unknown", means, {"unknown": True, "steps_per_execution": 3}),
        ("two_outputs_eager", means, {"run_eagerly": True}),
        ("two_outputs_scaled", means, {"half": True}),
        ("sums", sums, {}),
        ("sums_scaled", sums, {"half": True}),
        ("sum_and_mean", mixed, {}),
        ("sum_and_mean_compiled", mixed, {"jit_compile": True}),
        ("divided_by_weights", (BY_WEIGHT, BY_WEIGHT), {}),
        ("divided_by_weights_even", (BY_WEIGHT, BY_WEIGHT), {"count": 32}),
        ("masked", (MEAN,), {"weights": False}),
        ("masked_even", (MEAN,), {"weights": False, "count": 32}),
        ("masked_sum", ("sum",), {}),
        ("masked_weighted", (BY_WEIGHT,), {}),
    ):
        yield (
            name,
            lambda r, reductions=reductions, options=options: _train(
                r, reductions, **options
            ),
        )
