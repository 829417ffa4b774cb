"""Training set-ups whose weights must not depend on the number of replicas."""

import warnings

import numpy as np

from contracts.equality import Calls, Run

EXAMPLES, BATCH, CLASSES = 40, 8, 4


def _data(count=EXAMPLES):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(count, 8)).astype("float32")
    return x, rng.integers(0, CLASSES, count).astype("int32")


def dataset(count=EXAMPLES, batch=BATCH, unknown=False, repeat=False):
    import tensorflow as tf

    made = tf.data.Dataset.from_tensor_slices(_data(count)).batch(batch)
    if unknown:
        made = made.filter(lambda *_: True)
    if repeat:
        made = made.repeat()
    options = tf.data.Options()
    options.autotune.enabled = False
    return made.with_options(options)


def _net(*layers, seed=0):
    import keras

    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input((8,)),
            keras.layers.Dense(16, use_bias=False),
            *layers,
            keras.layers.Activation("tanh"),
            keras.layers.Dense(CLASSES, kernel_regularizer="l2"),
        ]
    )


def _train(
    replicas,
    optimizer,
    *,
    net=_net,
    data=dataset,
    fit=None,
    **compile_options,
):
    import keras

    import keras_dlopt as dlopt

    with dlopt.distribute.strategy(f"cpu:{replicas}").scope():
        model = dlopt.distribute.data_parallel(net())
        if compile_options.get("jit_compile") and replicas == 1:
            compile_options["jit_compile"] = False
        model.compile(
            optimizer(),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
            **compile_options,
        )
        model.optimizer.build(model.trainable_variables)
    calls = Calls()
    arguments = {"epochs": 4, "verbose": 0, "callbacks": [calls], **(fit or {})}
    history = model.fit(data(), **arguments).history
    history["evaluate"] = model.evaluate(dataset(), verbose=0)
    weights = [*model.weights, model.optimizer.variables[0]]
    return Run([np.asarray(v.value.numpy()) for v in weights], history, calls.made)


def _generator():
    x, y = _data()

    def batches():
        for start in range(0, EXAMPLES, BATCH):
            yield x[start : start + BATCH], y[start : start + BATCH]

    return batches()


def _ghost(replicas):
    """One device that normalizes `replicas` parts of a batch apart, by hand."""
    import keras
    import tensorflow as tf

    net = _net(keras.layers.BatchNormalization())
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    moving = net.layers[1].non_trainable_variables
    for _ in range(4):
        for x, y in dataset():
            kept = [v.numpy() for v in moving]
            parts, first = [], None
            for xs, ys in zip(
                tf.split(x, replicas), tf.split(y, replicas), strict=True
            ):
                for v, value in zip(moving, kept, strict=True):
                    v.assign(value)
                with tf.GradientTape() as tape:
                    value = loss(ys, net(xs, training=True)) + sum(net.losses)
                parts.append(tape.gradient(value, net.trainable_variables))
                first = first or [v.numpy() for v in moving]
            for v, value in zip(moving, first, strict=True):
                v.assign(value)
            grads = [sum(g) / replicas for g in zip(*parts, strict=True)]
            optimizer.apply(grads, net.trainable_variables)
    return Run([v.numpy() for v in net.weights])


def _unsynchronized(replicas, twin_of=2):
    import keras

    if replicas == 1:
        return _ghost(twin_of)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        run = _train(
            replicas,
            lambda: keras.optimizers.SGD(0.1, momentum=0.9),
            net=lambda: _net(keras.layers.BatchNormalization()),
        )
    return Run(run.weights[:-1])  # the twin counts no steps


def _with_shortcut_loss():
    import keras

    from keras_dlopt.layers import Residual

    keras.utils.set_random_seed(1)
    return _net(
        Residual([keras.layers.Dense(16)], shortcut_loss=0.5),
        keras.layers.BatchNormalization(synchronized=True),
    )


def _distilled():
    import keras

    teacher = _net(seed=1)
    teacher.trainable = False
    divergence = keras.losses.KLDivergence()

    class Student(keras.Sequential):
        def compute_loss(self, x, y, y_pred, sample_weight=None, training=True):
            wanted = keras.ops.softmax(teacher(x, training=False) / 2.0)
            soft = divergence(wanted, keras.ops.softmax(y_pred / 2.0))
            hard = super().compute_loss(x, y, y_pred, sample_weight, training)
            return 0.5 * hard + 2.0 * soft

    return Student(_net().layers)


def cases(_):
    """Pairs of a name and `train(replicas) -> Run`, which must be equal."""
    import keras

    import keras_dlopt as dlopt

    k, ours = keras.optimizers, dlopt.optimizers

    def case(optimizer, **options):
        return lambda replicas: _train(replicas, optimizer, **options)

    def adam():
        return ours.Adam(0.01)

    normalized = {
        "net": lambda: _net(keras.layers.BatchNormalization(synchronized=True))
    }
    yield from {
        "keras_clipnorm": case(lambda: k.Adam(0.01, clipnorm=0.1)),
        "keras_global_clipnorm": case(lambda: k.SGD(0.1, global_clipnorm=0.1)),
        "keras_clipvalue": case(lambda: k.SGD(0.1, momentum=0.9, clipvalue=0.01)),
        "keras_accumulating": case(
            lambda: k.AdamW(0.01, gradient_accumulation_steps=3, clipnorm=0.1)
        ),
        "keras_ema_overwrite": case(
            lambda: k.Adam(
                0.01, use_ema=True, ema_momentum=0.9, ema_overwrite_frequency=3
            )
        ),
        "keras_nadam": case(lambda: k.Nadam(0.01)),
        "keras_schedule_free": case(lambda: k.ScheduleFreeAdamW(0.01)),
        "keras_accumulating_steps": case(
            lambda: k.Adam(0.01, gradient_accumulation_steps=2), steps_per_execution=2
        ),
        "ours_accumulating": case(
            lambda: ours.AdamW(0.01, gradient_accumulation_steps=3, clipnorm=0.1)
        ),
        "ours_ema_overwrite": case(
            lambda: ours.Adam(
                0.01, use_ema=True, ema_momentum=0.9, ema_overwrite_frequency=3
            )
        ),
        "ours_lookahead_on_uneven_batches": case(
            lambda: ours.Lookahead(ours.AdamW(0.01), period=3),
            data=lambda: dataset(count=37),
        ),
        "steps_per_execution": case(adam, steps_per_execution=5),
        "steps_per_execution_not_dividing": case(
            lambda: ours.AdamW(0.01), steps_per_execution=3
        ),
        "steps_per_epoch": case(
            adam,
            data=lambda: dataset(repeat=True),
            fit={"steps_per_epoch": 5},
        ),
        "uneven_batches": case(adam, data=lambda: dataset(count=37)),
        "uneven_first_batch": case(adam, data=lambda: dataset(count=35, batch=7)),
        "jit": case(lambda: k.SGD(0.1, momentum=0.9), jit_compile=True),
        "batch_normalization": case(lambda: k.SGD(0.1, momentum=0.9), **normalized),
        "loss_before_replicas_meet": case(adam, net=_with_shortcut_loss),
        "distillation": case(adam, net=_distilled),
    }.items()
    for parts in (2, 4):  # each has a twin of its own and runs on that many only
        yield f"apart_{parts}", lambda r, parts=parts: _unsynchronized(r, parts)
    known = case(lambda: ours.AdamW(0.01), fit={"epochs": 1})
    three = {"steps_per_execution": 3}  # the last call finds two batches
    for name, data, several in (
        ("unknown_cardinality", lambda: dataset(unknown=True), {}),
        ("unknown_in_calls_of_three", lambda: dataset(unknown=True), three),
        ("generator", _generator, {}),
    ):
        other = case(lambda: ours.AdamW(0.01), data=data, fit={"epochs": 1}, **several)
        yield name, lambda r, other=other: other(r) if r > 1 else _mended(known, other)


def _mended(known, other):
    """One device: Keras' calls for such data, but not its one step too many."""
    run = known(1)
    run.calls = other(1).calls
    return run
