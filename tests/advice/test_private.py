"""What private training advises, followed."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_dlopt as dlopt
from keras_dlopt import distill, privacy

advice = pytest.mark.advice
L = keras.layers
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
X = np.random.default_rng(0).normal(size=(8, 6)).astype("float32")
Y = np.arange(8) % 3
NOISE = {"noise_multiplier": 2.0, "clip": 1.0, "seed": 0}


def net(*layers):
    return keras.Sequential([keras.Input((6,)), *layers, L.Dense(3)])


def trained(model, *, optimizer="sgd", fit=None, **given):
    private = privacy.private(model, **NOISE | given)
    private.compile(optimizer, LOSS)
    fit = {"x": X, "y": Y, "batch_size": 4, "steps_per_epoch": 1} | (fit or {})
    private.fit(**fit, verbose=0)
    return private


@advice("privacy/accounting.py", "or decide for a larger epsilon.")
def test_a_spent_budget(told):
    with told():
        trained(net(), epsilon=0.1)
    trained(net(), epsilon=30.0)


@advice("privacy/model.py", "Use epsilon=3.0 to have the noise follow")
def test_neither_noise_nor_budget(told):
    with told():
        privacy.private(net())
    trained(net(), epsilon=3.0, noise_multiplier=None)


@advice("privacy/model.py", "Use fit(x, y), which draws the batches itself.")
def test_a_batch_by_hand(told):
    private = trained(net())
    with told():
        private.train_on_batch(X, Y)
    private.fit(X, Y, 4, steps_per_epoch=1, verbose=0)


@advice("privacy/stepping.py", "Use fit(x, y).")
def test_a_step_by_hand(told):
    private = trained(net())
    with told():
        private.train_step((X, Y))
    private.fit(X, Y, 4, steps_per_epoch=1, verbose=0)


@advice("privacy/model.py", "Use fit(x, y), or train finalize(model), without")
@pytest.mark.slow
def test_trained_by_others(told):
    private = trained(net())
    with told():
        private(X, training=True)
    other = dlopt.optimizers.SAM(private)
    other.compile("sgd", LOSS)
    with told():
        other.fit(X, Y, verbose=0)
    private.fit(X, Y, 4, steps_per_epoch=1, verbose=0)
    other = dlopt.optimizers.SAM(dlopt.finalize(private))
    other.compile("sgd", LOSS)
    other.fit(X, Y, verbose=0)


@advice("privacy/model.py", "Use transforms without one, such as Prune, ")
@pytest.mark.slow
def test_a_transform_with_a_loss(told):
    def recipe(transform):
        return dlopt.Recipe([(dlopt.named("kernel"), transform)])

    with told():
        trained(dlopt.transform(net(), recipe(dlopt.L0(1e-3))))
    trained(dlopt.transform(net(), recipe(dlopt.Prune(0.5))))


@advice("privacy/ghost.py", "Use private(model, method='vectorized').")
def test_a_layer_with_two_calls(told):
    inputs = keras.Input((6,))
    shared = L.Dense(6)
    model = keras.Model(inputs, L.Dense(3)(shared(shared(inputs))))
    with told():
        trained(model)
    trained(model, method="vectorized")


class Tied(keras.Model):
    def __init__(self):
        super().__init__()
        self.mixed = L.Dense(6, activation="tanh")

    def build(self, input_shape=None):
        self.mixed.build((None, 6))

    def call(self, x):
        kernel = keras.ops.transpose(self.mixed.kernel)
        return keras.ops.matmul(self.mixed(x), kernel)[:, :3]


@advice("privacy/explained.py", "Use private(model, method='vectorized'), which")
def test_a_weight_read_past_its_layer(told):
    model = Tied()
    model.build()
    with told():
        trained(model, copy=False)
    with told():
        trained(net(L.LayerNormalization()), method="ghost")
    before = model.mixed.kernel.numpy()
    trained(model, method="vectorized", copy=False)
    assert abs(model.mixed.kernel.numpy() - before).max() > 0


@advice("privacy/refusals.py", "Use private(model, method='vectorized'), which runs")
def test_a_model_that_looks_at_the_batch(told):
    inputs = keras.Input((6,))
    centered = inputs - keras.ops.mean(inputs, axis=0, keepdims=True)
    model = keras.Model(inputs, L.Dense(3)(centered))
    with told():
        trained(model)
    trained(model, method="vectorized")


@advice("privacy/refusals.py", "Use GroupNormalization or LayerNormalization, or")
@pytest.mark.slow
def test_statistics_of_the_batch(told):
    norm = L.BatchNormalization()
    with told():
        trained(net(L.Dense(4), norm))
    trained(net(L.Dense(4), L.LayerNormalization()))
    norm = L.BatchNormalization(trainable=False)
    trained(net(L.Dense(4), norm))


@advice("privacy/refusals.py", "Give it mean= and ")
def test_statistics_of_the_data(told):
    adapted = L.Normalization()
    adapted.adapt(X)
    with told():
        trained(net(adapted))
    trained(net(L.Normalization(mean=0.0, variance=1.0)))


@advice("privacy/refusals.py", "Use mixed_bfloat16 or float32.")
@pytest.mark.slow
def test_half_precision(told):
    with told():
        trained(net(L.Dense(4, dtype="mixed_float16")))
    trained(net(L.Dense(4, dtype="mixed_bfloat16")))


class OwnLoss(keras.Model):
    def __init__(self):
        super().__init__()
        self.head = L.Dense(3)

    def call(self, x):
        return self.head(x)

    def compute_loss(self, x=None, y=None, y_pred=None, **_):
        return 2 * LOSS(y, y_pred)


class Twice(keras.losses.Loss):
    def call(self, y, y_pred):
        return 2 * LOSS(y, y_pred)


@advice("privacy/refusals.py", "Put what it does into a ")
def test_a_loss_of_its_own(told):
    model = OwnLoss()
    model(X)
    with told():
        privacy.private(model, copy=False, **NOISE)
    private = privacy.private(net(), **NOISE)
    private.compile("sgd", Twice())
    private.fit(X, Y, 4, steps_per_epoch=1, verbose=0)


@advice("privacy/refusals.py", "Train the teacher privately, then distill()")
@pytest.mark.slow
def test_a_student_of_a_teacher(told):
    with told():
        privacy.private(distill.distill(net(), net(L.Dense(9))), **NOISE)
    teacher = dlopt.finalize(trained(net(L.Dense(9))))
    taught = distill.distill(net(), teacher)
    taught.compile("sgd", None)
    taught.fit(X, verbose=0)


@advice("privacy/refusals.py", "Leave activations out of the recipe, and quantize them")
@pytest.mark.slow
def test_ranges_of_activations(told):
    model = net(L.Dense(4), L.ReLU())
    weight = (dlopt.named("kernel"), dlopt.FakeQuant(bits=8))
    places = dlopt.named("output") & dlopt.inside(L.ReLU)
    both = dlopt.Recipe([weight, (places, dlopt.FakeQuantActivation(bits=8))])
    with told():
        trained(dlopt.transform(model, both))
    trained(dlopt.transform(model, dlopt.Recipe([weight])))


@advice("privacy/refusals.py", "Use a score that reads the ")
@pytest.mark.slow
def test_scores_by_gradients(told):
    from keras_dlopt.transforms import prune

    def recipe(score):
        transform = dlopt.Prune(0.5, score=score)
        return dlopt.Recipe([(dlopt.named("kernel"), transform)])

    with told():
        trained(dlopt.transform(net(), recipe(prune.Taylor())))
    trained(dlopt.transform(net(), recipe(prune.Magnitude())))


@advice("privacy/refusals.py", "Use a schedule, ")
@pytest.mark.parametrize(
    "callback",
    [
        dlopt.callbacks.LossDrivenLearningRate(),
        keras.callbacks.EarlyStopping(monitor="loss"),
        keras.callbacks.ModelCheckpoint("m.keras", "loss", save_best_only=True),
    ],
    ids=lambda c: type(c).__name__,
)
@pytest.mark.slow
def test_callbacks_that_look_at_the_loss(told, callback):
    with told():
        trained(net(), fit={"callbacks": [callback]})
    stopping = keras.callbacks.EarlyStopping(monitor="val_loss")
    given = {"callbacks": stopping, "validation_data": (X, Y)}
    schedule = keras.optimizers.schedules.CosineDecay(0.1, 10)
    trained(net(), optimizer=keras.optimizers.SGD(schedule), fit=given)


@advice("privacy/refusals.py", "Compile with the optimizer inside it, and train in")
@pytest.mark.slow
def test_a_scale_of_the_loss(told):
    sgd = keras.optimizers.SGD(0.1)
    with told():
        trained(net(), optimizer=keras.optimizers.LossScaleOptimizer(sgd))
    trained(net(), optimizer=sgd)


@advice("privacy/refusals.py", "Put weights into the loss, where they are clipped.")
@advice("privacy/refusals.py", "Pass validation_data=(x, y).")
@pytest.mark.slow
def test_what_fit_does_not_take(told):
    for wrong in (
        {"sample_weight": np.ones(8)},
        {"class_weight": {0: 1.0, 1: 2.0, 2: 1.0}},
        {"validation_split": 0.5},
    ):
        with told():
            trained(net(), fit=wrong)

    class Weighted(keras.losses.Loss):
        def call(self, y, y_pred):
            weight = keras.ops.take(
                keras.ops.convert_to_tensor([1.0, 2.0, 1.0]), keras.ops.cast(y, "int32")
            )
            return weight * LOSS(y, y_pred)

    private = privacy.private(net(), **NOISE)
    private.compile("sgd", Weighted())
    private.fit(
        X, Y, 4, steps_per_epoch=1, verbose=0, validation_data=(X, Y), shuffle=True
    )


@advice("privacy/gradients.py", "Take it off; regularizers of weights may stay.")
@pytest.mark.slow
def test_losses_of_layers(told):
    with told():
        trained(net(L.Dense(4, activity_regularizer="l2")))
    with told():
        trained(net(L.Dense(4, activity_regularizer="l2")), method="vectorized")
    trained(net(L.Dense(4, kernel_regularizer="l2")))


@advice("privacy/drawing.py", "Pass x and y as NumPy arrays or tensors.")
def test_data_that_are_drawn_by_others(told):
    batches = tf.data.Dataset.from_tensor_slices((X, Y)).batch(4)
    for wrong in (
        {"x": batches, "y": None},
        {"y": None},
        {"x": iter([X])},
        {"y": np.array([None] * 8)},
    ):
        with told():
            trained(net(), fit=wrong)
    trained(net(), fit={"x": tf.constant(X), "y": tf.constant(Y)})
