"""Distillation in `fit`: exact sums, any student, every way to train and save."""

import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest

import keras_dlopt as dlopt
from keras_dlopt import distill
from keras_dlopt.errors import ConfigError, DataError, FormatError, ModelError
from keras_dlopt.schedules import PolynomialSparsity

tf = pytest.importorskip("tensorflow")
L = keras.layers
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
LOGITS = distill.LogitsDistillation(temperature=2.0, weight=0.5)


def net(width, *, name, head=None):
    return keras.Sequential(
        [
            keras.Input((6,)),
            L.Dense(width, activation="relu", name="hidden"),
            L.Dense(3, activation=head, name="head"),
        ],
        name=name,
    )


def pair(head=None):
    keras.utils.set_random_seed(1)
    return net(4, name="small"), net(9, name="large", head=head)


def data(n=24):
    rng = np.random.default_rng(0)
    return rng.normal(size=(n, 6)).astype("float32"), rng.integers(0, 3, n)


def compiled(model, rate=0.1, **kwargs):
    model.compile(keras.optimizers.SGD(rate), LOSS, **kwargs)
    return model


def by_hand(student, teacher, x, y, rate=0.1, steps=3):
    """The same steps with nothing but TensorFlow."""
    history = []
    for _ in range(steps):
        with tf.GradientTape() as tape:
            z, t = student(x), teacher(x)
            label = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(y, z))
            q = tf.nn.softmax(t / 2)
            cross = tf.nn.softmax_cross_entropy_with_logits(q, z / 2)
            entropy = tf.nn.softmax_cross_entropy_with_logits(q, t / 2)
            soft = 0.5 * 4 * tf.reduce_mean(cross - entropy)
            loss = label + soft
        grads = tape.gradient(loss, [v.value for v in student.trainable_variables])
        for variable, grad in zip(student.trainable_variables, grads, strict=True):
            variable.assign_sub(rate * grad)
        history.append((float(loss), float(soft)))
    return history


def weights_of(model):
    return [w.copy() for w in model.get_weights()]


def assert_same(a, b, tolerance=1e-6):
    for one, other in zip(a, b, strict=True):
        np.testing.assert_allclose(one, other, atol=tolerance)


def test_the_sum_of_both_losses_is_trained():
    student, teacher = pair()
    x, y = data()
    before = weights_of(teacher)
    taught = compiled(distill.distill(student, teacher, LOGITS), metrics=["accuracy"])
    history = taught.fit(x, y, epochs=3, batch_size=24, verbose=0).history
    expected = by_hand(student, teacher, x, y)
    np.testing.assert_allclose(history["loss"], [a for a, _ in expected], rtol=1e-5)
    np.testing.assert_allclose(
        history["distillation_loss"], [b for _, b in expected], rtol=1e-4
    )
    final = dlopt.finalize(taught)
    assert type(final) is keras.Sequential
    assert_same(final.get_weights(), student.get_weights())
    assert_same(teacher.get_weights(), before, 0)
    assert teacher.trainable
    assert "accuracy" in history


def test_evaluation_is_the_students():
    student, teacher = pair()
    x, y = data()
    taught = compiled(distill.distill(student, teacher))
    logs = taught.evaluate(x, y, verbose=0, return_dict=True)
    assert set(logs) == {"loss"}
    plain = compiled(student).evaluate(x, y, verbose=0)
    assert logs["loss"] == pytest.approx(plain, rel=1e-6)
    seen = taught.fit(x, y, validation_data=(x, y), verbose=0).history
    assert set(seen) == {"loss", "distillation_loss", "val_loss"}
    assert_same([taught.predict(x, verbose=0)], [dlopt.finalize(taught)(x)], 1e-6)


def test_a_student_learns_without_labels():
    student, teacher = pair("softmax")
    x, _ = data()
    taught = distill.distill(student, teacher, distill.LogitsDistillation(1.0))
    taught.compile(keras.optimizers.Adam(0.05))
    history = taught.fit(x, epochs=100, batch_size=24, verbose=0).history["loss"]
    assert history[-1] < 0.2 * history[0]
    p = keras.ops.softmax(dlopt.finalize(taught)(x))
    assert float(np.abs(p - teacher(x)).mean()) < 0.06


class Doubling(keras.Model):
    """A step and a loss of its own."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.hidden, self.head = L.Dense(4, activation="relu"), L.Dense(3)

    def call(self, x):
        return self.head(self.hidden(x))

    def get_config(self):
        return {"name": self.name}


class OwnLoss(Doubling):
    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None):
        return 2 * super().compute_loss(
            x=x, y=y, y_pred=y_pred, sample_weight=sample_weight
        )


class OwnStep(Doubling):
    def train_step(self, batch):
        x, y = batch
        with tf.GradientTape() as tape:
            loss = self.compute_loss(x, y, self(x, training=True))
        grads = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply(grads, self.trainable_variables)
        return {"total": loss}


@pytest.mark.parametrize("kind", [Doubling, OwnLoss, OwnStep])
@pytest.mark.parametrize("recipe", [False, True])
def test_own_steps_and_losses_stay(kind, recipe):
    _, teacher = pair()
    x, y = data()
    model = kind(name="own")
    model(x)
    plain = compiled(model)
    label = plain.compute_loss(x, y, plain(x))
    student = model
    if recipe:
        rule = dlopt.Recipe([(dlopt.named("kernel"), dlopt.Prune(0.5))])
        student = dlopt.transform(model, rule)
        label = compiled(student).compute_loss(x, y, student(x))
    taught = distill.distill(student, teacher, LOGITS)
    compiled(taught)
    logs = taught.fit(x, y, batch_size=24, verbose=0).history
    total = logs["total" if kind is OwnStep else "loss"][0]
    soft = by_hand(dlopt.finalize(student) if recipe else model, teacher, x, y)[0][1]
    assert total == pytest.approx(float(label) + soft, rel=1e-5)
    seen = dlopt.finalize(taught).get_weights()
    if recipe:
        assert (seen[0] == 0).mean() == pytest.approx(0.5, abs=0.03)


def test_pruning_and_distillation_are_one_fit():
    student, _ = pair()
    x, y = data(48)
    rule = dlopt.Prune(PolynomialSparsity(0.5, end=4))
    recipe = dlopt.Recipe(
        [(dlopt.named("kernel"), rule >> dlopt.FakeQuant(bits=4, per_channel=True))]
    )
    masked = dlopt.transform(student, recipe)
    taught = compiled(distill.distill(masked, "parent"))
    assert [type(one) for one in taught.teachers] == [keras.Sequential]
    assert_same(taught.teachers[0].get_weights(), student.get_weights(), 0)
    taught.fit(x, y, epochs=2, batch_size=8, verbose=0)
    assert_same(taught.teachers[0].get_weights(), student.get_weights(), 0)
    final = dlopt.finalize(taught)
    assert (final.get_weights()[0] == 0).mean() >= 0.5
    # The state of transforms goes along: calibrated ranges, masks, the steps done.
    again = distill.distill(dlopt.transform(student, recipe), "parent")
    compiled(again).fit(x, y, epochs=2, batch_size=8, verbose=0, shuffle=False)
    states = [s.numpy() for s in again.states]
    more = dlopt.TransformedModel(dlopt.finalize(again), recipe)
    for old, new in zip(states, more.states, strict=True):
        new.assign(old)
    third = distill.distill(more, "parent")
    assert_same([s.numpy() for s in third.states], states, 0)


def test_saved_and_loaded_it_trains_on(tmp_path):
    student, teacher = pair()
    x, y = data()
    terms = [LOGITS, distill.FeatureDistillation("hidden", "hidden")]
    taught = compiled(distill.distill(student, teacher, terms), metrics=["accuracy"])
    taught.fit(x, y, verbose=0, shuffle=False)
    taught.save(tmp_path / "taught.keras")
    again = keras.saving.load_model(tmp_path / "taught.keras")
    assert again.terms == taught.terms
    assert not again.teachers[0].trainable
    assert_same(again.get_weights(), taught.get_weights(), 0)
    for model in (taught, again):
        model.fit(x, y, epochs=2, verbose=0, shuffle=False)
    assert_same(again.get_weights(), taught.get_weights(), 0)


def test_projectors_train_and_stay_behind():
    student, teacher = pair()
    x, y = data()
    term = distill.FeatureDistillation("hidden", "hidden", weight=2.0)
    taught = compiled(distill.distill(student, teacher, term))
    (projector,) = taught.projectors
    assert projector.kernel.shape == (4, 9)
    kernel = projector.kernel.numpy()
    first = taught.fit(x, y, batch_size=24, verbose=0).history["distillation_loss"]
    hidden = [np.maximum(m.layers[0](x), 0) for m in (student, teacher)]
    expected = 2 * ((hidden[0] @ kernel - hidden[1]) ** 2).mean()
    assert first[0] == pytest.approx(expected, rel=1e-5)
    assert np.abs(projector.kernel.numpy() - kernel).max() > 0
    final = dlopt.finalize(taught)
    assert final.count_params() == student.count_params() == taught.count_params()


def test_a_mean_teacher_follows_the_student():
    student, _ = pair()
    x, y = data()
    taught = distill.distill(student, distill.MeanTeacher(0.8), LOGITS)
    compiled(taught).fit(x, y, epochs=3, batch_size=24, verbose=0)
    kept = weights_of(student)
    twin = keras.models.clone_model(student)
    twin.set_weights(kept)
    teacher = keras.models.clone_model(student)
    for _ in range(3):
        kept = [
            0.8 * a + 0.2 * b for a, b in zip(kept, twin.get_weights(), strict=True)
        ]
        teacher.set_weights(kept)
        by_hand(twin, teacher, x, y, steps=1)
    assert_same(dlopt.finalize(taught).get_weights(), twin.get_weights(), 1e-5)
    averages = [average for _, average in taught._average.value.pairs]
    assert_same(averages, kept, 1e-5)


def test_kept_outputs_are_the_teachers(tmp_path):
    student, teacher = pair()
    x, y = data()
    path = tmp_path / "outputs.npz"
    outputs = distill.teacher_outputs(teacher, x, path=path)
    assert_same([outputs], [teacher(x)], 1e-6)
    written = path.stat().st_mtime_ns
    np.testing.assert_array_equal(
        distill.teacher_outputs(teacher, x, path=path), outputs
    )
    assert path.stat().st_mtime_ns == written
    ends = []
    for targets in (y, distill.taught(y, outputs)):
        keras.utils.set_random_seed(3)
        taught = compiled(distill.distill(student, teacher, LOGITS), metrics=["acc"])
        taught.fit(x, targets, batch_size=8, epochs=2, verbose=0)
        ends.append(dlopt.finalize(taught).get_weights())
    assert_same(*ends, 1e-6)
    # Another teacher, or other inputs, are computed anew.
    other = distill.teacher_outputs(teacher, x + 1, path=path)
    assert np.abs(other - outputs).max() > 0
    batches = tf.data.Dataset.from_tensor_slices(x).batch(5)
    assert_same([distill.teacher_outputs(teacher, batches)], [outputs], 1e-6)
    # Without labels.
    alone = distill.distill(student, teacher, LOGITS)
    alone.compile("sgd")
    alone.fit(x, distill.taught(None, outputs), verbose=0)


def test_kept_outputs_are_of_a_model_not_of_its_weights(tmp_path):
    whole = keras.Sequential([keras.Input((6,)), L.Dense(3), L.Softmax()])
    bare = keras.Sequential([keras.Input((6,)), whole.layers[0]])
    batches = tf.data.Dataset.from_tensor_slices(data()[0]).batch(5)
    for number, x in enumerate((data()[0], batches)):
        path = tmp_path / f"{number}.npz"
        chances = distill.teacher_outputs(whole, x, path=path)
        logits = distill.teacher_outputs(bare, x, path=path)
        assert_same([keras.ops.softmax(logits)], [chances], 1e-6)


def test_kept_outputs_of_several_inputs(tmp_path):
    ends = {name: keras.Input((6,), name=name) for name in "ab"}
    teacher = keras.Model(ends, L.Dense(3)(L.Concatenate()([ends["a"], ends["b"]])))
    x, y = data()[0], data()[0].copy()
    path = tmp_path / "outputs.npz"
    first = distill.teacher_outputs(teacher, {"a": x, "b": y}, path=path, batch_size=8)
    y[-1] += 1  # past the first batch
    second = distill.teacher_outputs(teacher, {"a": x, "b": y}, path=path, batch_size=8)
    assert_same([first[:-1]], [second[:-1]], 1e-6)
    assert np.abs(first[-1] - second[-1]).max() > 0


def test_kept_outputs_in_half_precision(tmp_path):
    keras.config.set_dtype_policy("mixed_bfloat16")
    _, teacher = pair()
    x, y = data()
    path = tmp_path / "outputs.npz"
    made = distill.teacher_outputs(teacher, x, path=path)
    read = distill.teacher_outputs(teacher, x, path=path)
    assert made.dtype == read.dtype == "bfloat16"
    np.testing.assert_array_equal(read.astype("float32"), made.astype("float32"))
    tf.constant(distill.taught(y, read)["teacher_outputs"])  # as `fit` takes it


def test_faults_of_kept_outputs(tmp_path):
    student, teacher = pair()
    x, y = data()
    path = tmp_path / "outputs.npz"
    path.write_bytes(b"nothing")
    with pytest.raises(FormatError, match="holds no teacher's outputs, or is damaged"):
        distill.teacher_outputs(teacher, x, path=path)
    with pytest.raises(DataError, match="23 outputs of the teacher for 24 labels"):
        distill.taught(y, np.zeros((23, 3)))
    inputs = keras.Input((6,))
    double = keras.Model(inputs, [inputs, inputs], name="double")
    with pytest.raises(ConfigError, match="'double' has several outputs"):
        distill.teacher_outputs(double, x)
    term = distill.FeatureDistillation("hidden", "hidden")
    taught = compiled(distill.distill(student, teacher, term))
    outputs = distill.teacher_outputs(teacher, x)
    with pytest.raises(ConfigError, match="come with the data, and these terms look"):
        taught.fit(x, distill.taught(y, outputs), verbose=0)


@pytest.mark.parametrize(
    "options",
    [{"jit_compile": True}, {"steps_per_execution": 3}, {"run_eagerly": True}],
)
def test_every_way_to_run_a_step(options):
    student, teacher = pair()
    x, y = data()
    ends = []
    for given in ({"jit_compile": False}, options):
        terms = [
            LOGITS,
            distill.FeatureDistillation("hidden", "hidden"),
            distill.RelationalDistillation("hidden", "hidden", weight=0.01),
        ]
        keras.utils.set_random_seed(0)
        taught = compiled(distill.distill(student, teacher, terms), **given)
        taught.fit(x, y, epochs=2, batch_size=8, verbose=0, shuffle=False)
        ends.append(weights_of(taught))
    assert_same(*ends, 1e-5)


def test_half_precision():
    keras.config.set_dtype_policy("mixed_bfloat16")
    student, teacher = pair("softmax")
    x, y = data()
    terms = [LOGITS, distill.DIST(), distill.FeatureDistillation("hidden", "hidden")]
    taught = compiled(distill.distill(student, teacher, terms))
    history = taught.fit(x, y, epochs=2, verbose=0).history
    assert np.isfinite(history["loss"]).all()


class Nested(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.body = keras.Sequential([L.Dense(4, name="inside"), L.ReLU()])
        self.head = L.Dense(3)

    def call(self, inputs):
        return self.head(self.body(inputs["x"]))

    def get_config(self):
        return {"name": self.name}


def test_subclassed_and_nested_models():
    x, y = data()
    student, teacher = Nested(name="student"), Nested(name="teacher")
    for model in (student, teacher):
        model({"x": x})
    term = distill.FeatureDistillation("body/inside", "body/inside", projector="linear")
    with pytest.raises(ModelError, match="Pass example="):
        distill.distill(student, teacher, term)
    taught = distill.distill(student, teacher, term, example={"x": x[:1]})
    compiled(taught).fit({"x": x}, y, verbose=0)
    assert_same(taught.teachers[0].get_weights(), teacher.get_weights(), 0)


def test_several_teachers():
    student, teacher = pair()
    x, y = data()
    other = net(5, name="third", head="softmax")
    terms = [LOGITS, distill.AttentionTransfer("a", "a")]
    with pytest.raises(ConfigError, match="The student 'small' runs no layer 'a'"):
        distill.distill(student, [teacher, other], terms)
    terms[1] = distill.FeatureDistillation("hidden", "hidden", which=1)
    taught = compiled(distill.distill(student, [teacher, other], terms))
    assert taught.projectors[1].kernel.shape == (4, 5)
    taught.fit(x, y, verbose=0)
    terms[1] = distill.FeatureDistillation("hidden", "hidden", which=2)
    with pytest.raises(ConfigError, match="asks for teacher 2 of 2, counted from 0"):
        distill.distill(student, [teacher, other], terms)


def test_a_loop_of_ones_own():
    student, teacher = pair()
    x, y = data()
    taught = compiled(distill.distill(student, teacher, LOGITS))
    total = taught.compute_loss(x, y, taught(x, training=True))
    assert float(total) == pytest.approx(by_hand(student, teacher, x, y)[0][0], 1e-5)
    with pytest.raises(ModelError, match=r"neither x nor what the model made of it"):
        taught.compute_loss(None, y, np.zeros((24, 3), "float32"))


def test_layers_that_are_called_twice():
    inputs = keras.Input((4,))
    shared = L.Dense(4, name="shared")
    model = keras.Model(inputs, shared(shared(inputs)), name="twice")
    with pytest.raises(ConfigError, match="layer 'shared' is called 2 times"):
        distill.distill(model, model, distill.FeatureDistillation("shared", "shared"))
    inputs = keras.Input((3, 8, 8))
    made = L.Cropping2D(1, data_format="channels_first", name="crop")(inputs)
    first = keras.Model(inputs, L.Dense(3)(L.Flatten()(made)))
    term = distill.FeatureDistillation("crop", "crop")
    with pytest.raises(ConfigError, match="has its channels first; features are comp"):
        distill.distill(first, first, term)


@keras.saving.register_keras_serializable("tests_distill")
class Ends(keras.Model):
    """Ends in an operation that no layer says."""

    def __init__(self, end="softmax", words=0):
        super().__init__(name="ends")
        self.end, self.head = end, L.Dense(3)
        self.words = L.Embedding(words, 6) if words else None

    def build(self, shape):
        self.head.build((None, 6))
        if self.words:
            self.words.build((None, 1))

    def call(self, x):
        if self.words:
            x = keras.ops.mean(self.words(keras.ops.abs(x)), axis=1)
        return getattr(tf.nn, self.end, tf.identity)(self.head(x))

    def get_config(self):
        return {"end": self.end}


@pytest.mark.parametrize("end", ["softmax", "sigmoid", "identity", "relu", "tanh"])
def test_probabilities_without_a_layer_are_seen(end):
    student, _ = pair()
    teacher = Ends(end)
    teacher.build((None, 6))
    known = end if end in ("softmax", "sigmoid") else "linear"
    for example in (None, data(4)[0]):
        taught = distill.distill(student, teacher, LOGITS, example=example)
        assert taught._heads.value == (("linear",), (known,))


def test_a_model_that_does_not_run_on_what_is_drawn():
    student, teacher = Ends(words=50), Ends(words=50)
    for one in (student, teacher):
        one.build((None, 6))
    with pytest.raises(ModelError, match="'ends' does not run on numbers drawn at ran"):
        distill.distill(student, teacher, copy=False)
    example = np.ones((2, 6), "float32")
    taught = distill.distill(student, teacher, copy=False, example=example)
    assert taught._heads.value == (("softmax",), ("softmax",))


def test_values_are_no_logits():
    student, teacher = pair()
    for loss in ("mse", keras.losses.Huber()):
        with pytest.raises(ConfigError, match="Use OutputDistillation.'mean_squared_"):
            distill.distill(student, teacher).compile("sgd", loss)
    term = distill.OutputDistillation("mean_squared_error")
    distill.distill(student, teacher, term).compile("sgd", "mse")
    # Brier's score of probabilities is another matter.
    student.layers[-1].activation = keras.activations.softmax
    distill.distill(student, teacher).compile("sgd", "mse")


def test_masked_places_do_not_count():
    def tagger(width):
        layers = [L.Embedding(9, width, mask_zero=True), L.Dense(4, name="hidden")]
        return keras.Sequential([keras.Input((5,), dtype="int32"), *layers, L.Dense(3)])

    keras.utils.set_random_seed(2)
    student, teacher = tagger(3), tagger(4)
    for one in (student, teacher):  # divergences well above the rounding
        one.set_weights([5 * w for w in one.get_weights()])
    # The first three places of the first row and all of the second are words.
    x = np.array([[1, 2, 3, 0, 0], [4, 5, 6, 7, 8]], "int32")
    short = np.array([[1, 2, 3]], "int32")
    terms = [
        LOGITS,
        distill.DecoupledDistillation(),
        distill.OutputDistillation(),
        distill.FeatureDistillation("hidden", "hidden"),
    ]
    for term in terms:
        taught = distill.distill(student, teacher, term)
        taught.compile("sgd")
        y = np.ones(x.shape, "int32")
        both = taught.compute_loss(x, y, taught(x, training=True))
        parts = [
            float(taught.compute_loss(one, np.ones(one.shape), taught(one)))
            for one in (short, x[1:])
        ]
        assert float(both) == pytest.approx((3 * parts[0] + 5 * parts[1]) / 8, rel=1e-4)
    other = x.copy()
    other[0, :3] = [3, 1, 2]
    swapped = distill.DIST()
    for term in (
        swapped,
        distill.AttentionTransfer("hidden", "hidden"),
        distill.RelationalDistillation("hidden", "hidden"),
    ):
        values = []
        for row in (0.0, 7.0):  # what stands in masked places changes nothing
            for one in (student, teacher):
                table = one.layers[0].embeddings
                table.assign(keras.ops.slice_update(table, (0, 0), table[:1] * 0 + row))
            taught = distill.distill(student, teacher, term)
            taught.compile("sgd")
            y = np.ones(x.shape, "int32")
            values.append(float(taught.compute_loss(x, y, taught(x, training=True))))
        assert values[0] == pytest.approx(values[1], rel=1e-5)
        assert values[0] > 0


def test_masked_features_of_several_lengths():
    def net(*layers):
        layers = [keras.Input((5,), dtype="int32"), *layers]
        return keras.Sequential([*layers, L.GlobalAveragePooling1D(), L.Dense(3)])

    student = net(L.Embedding(9, 4, mask_zero=True, name="words"))
    teacher = net(L.Embedding(9, 4), L.Conv1D(4, 2, name="conv"))
    term = distill.FeatureDistillation("words", "conv")
    taught = distill.distill(student, teacher, term)
    taught.compile("sgd")
    x = np.array([[1, 2, 3, 0, 0]], "int32")
    with pytest.raises(ConfigError, match="'words' is masked, and 'conv' has features"):
        taught.compute_loss(x, None, taught(x, training=True))


@pytest.mark.parametrize(
    ("make", "kind", "text"),
    [
        (lambda s, t: (s, "father"), ConfigError, "teacher must be 'parent'"),
        (lambda s, t: (s, []), ConfigError, "one MeanTeacher. Received: "),
        (
            lambda s, t: (s, [t, distill.MeanTeacher()]),
            ConfigError,
            "one MeanTeacher. Received: ",
        ),
        (lambda s, t: (s, 3), ConfigError, "teacher must be a Keras model"),
        (lambda s, t: (s, t, ["kl"]), ConfigError, r"terms\[0\] must be a distillatio"),
        (lambda s, t: (keras.Sequential([L.Dense(2)]), t), ModelError, "built"),
        (lambda s, t: (s, keras.Sequential([L.Dense(2)])), ModelError, "built"),
        (lambda s, t: (distill.distill(s, t), t), ModelError, "has teachers already"),
    ],
)
def test_what_is_refused(make, kind, text):
    with pytest.raises(kind, match=text):
        distill.distill(*make(*pair()))


WORKER = """
import json, os, sys
os.environ["CUDA_VISIBLE_DEVICES"] = ""
import keras, numpy as np, tensorflow as tf
from keras_dlopt.distribute.build import split_cpu
split_cpu(2)
sys.path.insert(0, sys.argv[1])
import test_distill as t
from keras_dlopt import distill

def run(scope):
    with scope:
        student, teacher = t.pair()
        terms = [
            t.LOGITS,
            distill.DIST(weight=0.1),
            distill.FeatureDistillation("hidden", "hidden"),
            distill.RelationalDistillation("hidden", "hidden", weight=0.01),
        ]
        made = []
        for given in (teacher, distill.MeanTeacher(0.9)):
            keras.utils.set_random_seed(0)
            taught = t.compiled(distill.distill(student, given, terms))
            x, y = t.data()
            logs = taught.fit(
                x, y, epochs=3, batch_size=8, verbose=0, shuffle=False
            ).history
            made.append((t.weights_of(taught), logs))
    return made

import contextlib
one = run(contextlib.nullcontext())
two = run(tf.distribute.MirroredStrategy(
    ["CPU:0", "CPU:1"], cross_device_ops=tf.distribute.HierarchicalCopyAllReduce()
).scope())
gaps = []
for (a, la), (b, lb) in zip(one, two, strict=True):
    gaps.append(max(float(np.abs(p - q).max()) for p, q in zip(a, b, strict=True)))
    for name in la:
        gaps.append(float(np.abs(np.subtract(la[name], lb[name])).max()))
print(json.dumps(gaps))
"""


@pytest.mark.dist
@pytest.mark.timeout(240)
def test_two_replicas_are_one_device():
    tests = os.path.dirname(os.path.abspath(__file__))
    done = subprocess.run(
        [sys.executable, "-c", WORKER, tests],
        capture_output=True,
        text=True,
        timeout=220,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert max(json.loads(done.stdout.splitlines()[-1])) < 1e-5


JAX = """
import os
os.environ["KERAS_BACKEND"] = "jax"
import json, keras, numpy as np
import keras_dlopt as dlopt
from keras_dlopt import distill

L = keras.layers

def net(width):
    return keras.Sequential(
        [keras.Input((6,)), L.Dense(width, "relu", name="hidden"), L.Dense(3)]
    )

keras.utils.set_random_seed(0)
student, teacher = net(4), net(9)
x = np.random.default_rng(0).normal(size=(24, 6)).astype("float32")
y = np.arange(24) % 3
recipe = dlopt.Recipe([(dlopt.named("kernel"), dlopt.FakeQuant(bits=4))])
terms = [
    distill.LogitsDistillation(2.0),
    distill.FeatureDistillation("hidden", "hidden"),
]
falls = []
for given in (teacher, distill.MeanTeacher(0.9), "parent"):
    taught = distill.distill(dlopt.transform(student, recipe), given, terms)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    taught.compile(keras.optimizers.SGD(0.05), loss)
    logs = taught.fit(x, y, epochs=4, batch_size=8, verbose=0, validation_data=(x, y))
    falls.append(logs.history["loss"])
    assert "val_distillation_loss" not in logs.history
    dlopt.finalize(taught)
print(json.dumps(falls))
"""


@pytest.mark.jax
@pytest.mark.timeout(240)
def test_it_trains_on_jax():
    pytest.importorskip("jax")
    done = subprocess.run(
        [sys.executable, "-c", JAX],
        capture_output=True,
        text=True,
        timeout=220,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for losses in json.loads(done.stdout.splitlines()[-1]):
        assert losses[-1] < losses[0]


class OwnTerms(Doubling):
    """A loss and metrics of its own, and nothing compiled."""

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None):
        return keras.ops.mean(keras.ops.square(y_pred - 1.0))

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        assert not isinstance(y, dict)
        return {"mean": keras.ops.mean(y_pred)}


def test_a_loss_of_its_own_counts_though_nothing_is_compiled():
    _, teacher = pair()
    x, y = data()
    model = OwnTerms(name="own")
    model(x)
    taught = distill.distill(model, teacher, LOGITS)
    taught.compile(keras.optimizers.SGD(0.0))
    outputs = distill.teacher_outputs(teacher, x)
    own = float(np.mean((model(x) - 1.0) ** 2))
    soft = by_hand(model, teacher, x, y)[0][1]
    total = taught.compute_loss(x, distill.taught(y, outputs), taught(x, training=True))
    assert float(total) == pytest.approx(own + soft, rel=1e-5)
    taught.fit(x, distill.taught(y, outputs), verbose=0)


@pytest.mark.parametrize("shape", [(24,), (24, 1)])
def test_weights_of_examples_weigh_the_terms(shape):
    student, teacher = pair()
    x, y = data()
    taught = compiled(distill.distill(student, teacher, LOGITS))
    weight = (np.arange(24) < 12).astype("float32").reshape(shape)
    total = taught.compute_loss(x, y, taught(x, training=True), sample_weight=weight)
    # Keras divides the sum by the number of all examples.
    half = by_hand(student, teacher, x[:12], y[:12], rate=0.0)[0][0]
    assert float(total) == pytest.approx(half / 2, rel=1e-5)


@pytest.mark.parametrize("several", [True, False])
def test_kept_outputs_are_of_one_teacher(several):
    student, teacher = pair()
    x, y = data()
    given = [teacher, teacher] if several else distill.MeanTeacher()
    taught = compiled(distill.distill(student, given, LOGITS))
    outputs = distill.teacher_outputs(teacher, x)
    with pytest.raises(
        ConfigError, match=r"which stand for one model, and 'small' has"
    ):
        taught.fit(x, distill.taught(y, outputs), verbose=0)
    taught.fit(x, y, verbose=0)
