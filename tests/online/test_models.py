"""Learners over other models and ways to compile."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_dlopt import distill, online

L = keras.layers
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
RNG = np.random.default_rng(0)
X = RNG.normal(size=(240, 6)).astype("float32")
Y = X[:, :3].argmax(1)
DER = (online.DarkExperience(0.1),)


def learner(model, **options):
    return online.OnlineLearner(
        model,
        **{"batch_size": 12, "replay": online.Replay(12), "terms": DER, **options},
    )


@keras.saving.register_keras_serializable("test_online")
class Stepping(keras.Model):
    """Subclassed, with a train step of its own that doubles the loss."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.hidden, self.drop = L.Dense(16, activation="relu"), L.Dropout(0.1, seed=1)
        self.norm, self.head = L.BatchNormalization(), L.Dense(3)

    def build(self, shape):
        self.hidden.build(shape)
        self.norm.build((None, 16))
        self.head.build((None, 16))

    def call(self, x, training=None):
        x = self.norm(self.hidden(x), training=training)
        return self.head(self.drop(x, training=training))

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            out = self(x, training=True)
            loss = 2.0 * self.compute_loss(x, y, out)
        grads = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply(grads, self.trainable_variables)
        return {"loss": loss}


def stepping(**options):
    keras.utils.set_random_seed(0)
    model = Stepping()
    model.build((None, 6))
    model.compile(keras.optimizers.SGD(0.05), LOSS, **options)
    return model


def test_a_subclassed_model_with_its_own_step(tmp_path):
    terms = [*DER, online.EWC(0.1), online.SnapshotDistillation(0.1)]
    one = learner(stepping(), terms=terms)
    errors = one.learn(X[:120], Y[:120]).errors
    one.anchor()
    one.save(tmp_path / "a.npz")
    other = learner(stepping(), terms=terms).restore(tmp_path / "a.npz")
    for made in (one, other):
        errors = np.r_[errors, made.learn(X[120:], Y[120:]).errors]
    assert errors[120:240].mean() < 0.7 * errors[:60].mean()
    assert (errors[120:240] == errors[240:]).all()
    pairs = zip(one.model.variables, other.model.variables, strict=True)
    assert all(np.array_equal(a.numpy(), b.numpy()) for a, b in pairs)
    assert any("seed" in v.path for v in one.model.variables)


def test_xla_learns_the_same():
    def weights(**options):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((6,)), L.Dense(3)])
        model.compile(keras.optimizers.SGD(0.1), LOSS, **options)
        made = learner(model, replay=online.Replay(12, steps=2))
        made.learn(X, Y)
        assert made._engine.steps.traces()["learn"] == 1
        return np.concatenate([v.numpy().ravel() for v in model.trainable_variables])

    plain = weights(jit_compile=False)
    assert weights(jit_compile=True) == pytest.approx(plain, abs=1e-5)


def test_bfloat16_is_stored_and_learned(tmp_path):
    def started():
        keras.utils.set_random_seed(0)
        policy = keras.DTypePolicy("bfloat16")
        model = keras.Sequential(
            [
                keras.Input((6,)),
                L.Dense(16, "relu", dtype=policy),
                L.Dense(3, dtype="mixed_bfloat16"),
            ]
        )
        model.compile(keras.optimizers.SGD(0.1), LOSS)
        return learner(model)

    one = started()
    one.learn(X[:120], Y[:120])
    one.save(tmp_path / "a.npz")
    other = started().restore(tmp_path / "a.npz")
    found = [made.learn(X[120:], Y[120:]).errors for made in (one, other)]
    assert (found[0] == found[1]).all()
    assert str(one.model.layers[0].kernel.dtype) == "bfloat16"
    pairs = zip(one.model.variables, other.model.variables, strict=True)
    assert all(np.array_equal(a.numpy(), b.numpy()) for a, b in pairs)


def test_inputs_by_name_and_one_probability():
    inputs = {"a": keras.Input((3,), name="a"), "b": keras.Input((3,), name="b")}
    joined = L.Concatenate()([inputs["a"], inputs["b"]])
    model = keras.Model(inputs, L.Dense(1, activation="sigmoid")(joined))
    model.compile(keras.optimizers.SGD(0.5), "binary_crossentropy")
    y = (X[:, 0] > 0).astype("int64")
    data = {"a": X[:, :3], "b": X[:, 3:]}
    made = learner(model, memory=online.ClassBalanced(40), drift=online.DDM())
    errors = made.learn(data, y).errors
    assert errors[-80:].mean() < 0.15 < errors[:24].mean()
    assert made.predict({k: v[:5] for k, v in data.items()}).shape == (5, 1)


def test_a_distilled_student_goes_on_learning_from_its_teacher():
    keras.utils.set_random_seed(0)
    teacher, student = (
        keras.Sequential([keras.Input((6,)), L.Dense(w, "relu"), L.Dense(3)])
        for w in (32, 8)
    )
    taught = distill.distill(student, teacher)
    taught.compile(keras.optimizers.SGD(0.05), LOSS)
    made = learner(taught)
    made.learn(X, Y)
    assert float(taught.distillation_loss.result()) > 0


def test_one_hot_labels_and_augmented_images():
    keras.utils.set_random_seed(0)
    images = np.zeros((96, 8, 8, 1), "float32")
    labels = np.arange(96) % 2
    images[labels == 1, 2:6, 2:6] = 1.0
    model = keras.Sequential([keras.Input((8, 8, 1)), L.Flatten(), L.Dense(2)])
    loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1), loss)
    shift = L.RandomTranslation(0.1, 0.1, seed=3)
    made = learner(
        model,
        memory=online.ClassBalanced(20),
        replay=online.Replay(12, augment=shift),
    )
    errors = made.learn(images, np.eye(2, dtype="float32")[labels]).errors
    assert errors[-24:].mean() == 0.0
    assert made._engine.batcher.held.classes()[1].tolist() == [10, 10]


@pytest.mark.slow
def test_an_application_learns():
    keras.utils.set_random_seed(0)
    model = keras.applications.MobileNetV2(
        (32, 32, 3), alpha=0.35, weights=None, classes=3, classifier_activation=None
    )
    model.compile(keras.optimizers.Adam(1e-3), LOSS)
    x = RNG.normal(size=(96, 32, 32, 3)).astype("float32")
    made = learner(model, terms=[*DER, online.SnapshotDistillation(0.1)])
    told = made.learn(x, np.arange(96) % 3)
    made.anchor()
    made.learn(x, np.arange(96) % 3)
    assert len(told.errors) == 96
    assert made._engine.steps.traces()["learn"] == 1
