"""What distillation advises, followed."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_dlopt import distill, finalize

advice = pytest.mark.advice
L = keras.layers
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
X = np.random.default_rng(0).normal(size=(8, 6)).astype("float32")
Y = np.arange(8) % 3
FEATURES = distill.FeatureDistillation("hidden", "hidden")


def net(width=4, classes=3):
    inputs = keras.Input((6,))
    hidden = L.Dense(width, activation="relu", name="hidden")(inputs)
    return keras.Model(inputs, L.Dense(classes, name="head")(hidden))


def images(width=4):
    inputs = keras.Input((8, 8, 1))
    y = L.Conv2D(width, 3, name="conv")(inputs)
    y = L.GlobalAveragePooling2D(name="pool")(y)
    return keras.Model(inputs, L.Dense(3)(y))


def trained(student, teacher, term, y=Y, x=X):
    taught = distill.distill(student, teacher, term)
    taught.compile("sgd", None if y is None else LOSS)
    taught.fit(x, None if y is ... else y, verbose=0, shuffle=False)
    return taught


def double():
    inputs = keras.Input((6,))
    return keras.Model(inputs, {"a": L.Dense(3)(inputs), "b": L.Dense(2)(inputs)})


@advice("distill/cache.py", "Make a model of the one that the student learns from.")
def test_a_teacher_of_several_outputs(told):
    model = double()
    with told():
        distill.teacher_outputs(model, X)
    one = keras.Model(model.input, model.output["a"])
    assert distill.teacher_outputs(one, X).shape == (8, 3)


@advice("distill/cache.py", "Remove it, or give another path.")
def test_a_damaged_file(told, tmp_path):
    path, other = tmp_path / "a.npz", tmp_path / "b.npz"
    path.write_bytes(b"PK")
    with told():
        distill.teacher_outputs(net(), X, path=path)
    distill.teacher_outputs(net(), X, path=other)
    path.unlink()
    distill.teacher_outputs(net(), X, path=path)


@advice("distill/features.py", "Choose layers of one kind, both before or both after")
@advice("distill/features.py", "Choose a layer before pooling or flattening.")
@advice("distill/features.py", "Use projector='linear'.")
def test_features_that_cannot_be_compared(told):
    x = np.ones((8, 8, 8, 1), "float32")
    for wrong, right in (
        (("conv", "pool"), ("pool", "pool")),
        (("pool", "conv"), ("conv", "conv")),
    ):
        with told():
            distill.distill(images(), images(), distill.FeatureDistillation(*wrong))
        trained(images(), images(), distill.FeatureDistillation(*right), x=x)
    with told():
        distill.distill(images(), images(), distill.AttentionTransfer("pool", "pool"))
    trained(images(), images(), distill.AttentionTransfer("conv", "conv"), x=x)
    with told():
        term = distill.FeatureDistillation("conv", "conv", projector=None)
        distill.distill(images(), images(6), term)
    term = distill.FeatureDistillation("conv", "conv", projector="linear")
    trained(images(), images(6), term, x=x)


@advice("distill/logits.py", "Compare features instead: FeatureDistillation maps one")
def test_outputs_of_other_sizes(told):
    with told():
        trained(net(), net(9, classes=5), distill.LogitsDistillation())
    trained(net(), net(9, classes=5), FEATURES)


@advice("distill/logits.py", "Pass y, or use LogitsDistillation.")
def test_labels_are_missing(told):
    with told():
        trained(net(), net(9), distill.DecoupledDistillation(), y=None)
    trained(net(), net(9), distill.DecoupledDistillation())
    trained(net(), net(9), distill.LogitsDistillation(), y=None)


@advice("distill/logits.py", "Give output=, its name or number.")
def test_an_output_is_not_named(told):
    for term, text in (
        (distill.LogitsDistillation(), True),
        (distill.LogitsDistillation(output="b"), False),
    ):
        taught = distill.distill(double(), double(), term)
        taught.compile("sgd", {"a": "mse", "b": "mse"})
        y = {"a": np.zeros((8, 3)), "b": np.zeros((8, 2))}
        if text:
            with told():
                taught.fit(X, y, verbose=0)
        else:
            taught.fit(X, y, verbose=0)


@advice("distill/distilling.py", "Give distill() all of them in a list, or go on from")
def test_a_student_of_two_teachers(told):
    one, other = net(9), net(7)
    taught = distill.distill(net(), one)
    with told():
        distill.distill(taught, other)
    trained(net(), [one, other], None)
    trained(finalize(taught), other, None)


@advice("distill/model.py", "Pass x=.")
def test_a_loss_without_inputs(told):
    taught = distill.distill(net(), net(9))
    taught.compile("sgd", LOSS)
    outputs = np.zeros((8, 3), "float32")
    with told():
        taught.compute_loss(None, Y, outputs)
    assert float(taught.compute_loss(X, Y, outputs)) > 0


@advice("distill/model.py", "Pass y without them: the teacher then runs in each step.")
def test_kept_outputs_have_no_features(told):
    teacher = net(9)
    kept = distill.taught(Y, distill.teacher_outputs(teacher, X))
    with told():
        trained(net(), teacher, FEATURES, y=kept)
    trained(net(), teacher, FEATURES)


@advice("distill/model.py", "Pass y without them.")
def test_kept_outputs_of_one_of_two_teachers(told):
    one, other = net(9), net(7)
    kept = distill.taught(Y, distill.teacher_outputs(one, X))
    with told():
        trained(net(), [one, other], None, y=kept)
    trained(net(), [one, other], None)


@advice("distill/teachers.py", "Choose a layer that is called once.")
def test_a_layer_with_two_calls(told):
    inputs = keras.Input((6,))
    shared, once = L.Dense(6, name="shared"), L.Dense(6, name="hidden")
    model = keras.Model(inputs, L.Dense(3)(once(shared(shared(inputs)))))
    with told():
        term = distill.FeatureDistillation("shared", "shared")
        distill.distill(model, model, term)
    trained(model, model, FEATURES)


@advice("distill/teachers.py", "Build the model with data_format='channels_last'.")
def test_channels_come_last(told):
    def model(form):
        inputs = keras.Input((8, 8, 3))
        y = L.Cropping2D(1, data_format=form, name="crop")(inputs)
        return keras.Model(inputs, L.Dense(3)(L.Flatten()(y)))

    term = distill.FeatureDistillation("crop", "crop")
    with told():
        distill.distill(model("channels_first"), model("channels_first"), term)
    distill.distill(model("channels_last"), model("channels_last"), term)


@advice("distill/term.py", "Give the models inputs of a fixed size, or choose a layer")
def test_features_of_an_open_size(told):
    def model(length):
        inputs = keras.Input((length, 4))
        y = L.Conv1D(4, 3, name="conv")(inputs)
        return keras.Model(inputs, L.Dense(3)(L.GlobalMaxPooling1D(name="pool")(y)))

    def batches():
        for length in (9, 10):
            x = np.random.default_rng(0).normal(size=(8, length, 4))
            yield x.astype("float32"), Y

    specs = (tf.TensorSpec((None, None, 4)), tf.TensorSpec((None,), "int64"))
    open_ended = tf.data.Dataset.from_generator(batches, output_signature=specs)
    open_ended = open_ended.apply(tf.data.experimental.assert_cardinality(2))
    term = distill.RelationalDistillation("conv", "conv", angle=0.0)
    with told():
        trained(model(None), model(None), term, y=..., x=open_ended)
    x = np.random.default_rng(0).normal(size=(8, 9, 4)).astype("float32")
    trained(model(9), model(9), term, x=x)
    term = distill.RelationalDistillation("pool", "pool", angle=0.0)
    trained(model(None), model(None), term, y=..., x=open_ended)


@advice("distill/teachers.py", "Pass example=, a batch of its inputs.")
def test_a_size_that_is_open(told):
    inputs = keras.Input((None, 3))
    model = keras.Model(inputs, L.Dense(3)(L.Reshape((15,))(inputs)))
    with told():
        distill.distill(model, model, distill.LogitsDistillation())
    x = np.ones((8, 5, 3), "float32")
    taught = distill.distill(model, model, distill.LogitsDistillation(), example=x[:1])
    taught.compile("sgd", LOSS)
    taught.fit(x, Y, verbose=0)


@advice("distill/features.py", "Choose layers of one length.")
def test_masked_features_of_several_lengths(told):
    def words(*layers, masked):
        table = L.Embedding(9, 4, mask_zero=masked, name="words")
        ends = [L.GlobalAveragePooling1D(), L.Dense(3)]
        inputs = keras.Input((6,), dtype="int32")
        return keras.Sequential([inputs, table, *layers, *ends])

    student = words(masked=True)
    teacher = words(L.Conv1D(4, 2, name="conv"), masked=False)
    x = np.array([[1, 2, 3, 4, 0, 0]] * 8, "int32")
    with told():
        trained(student, teacher, distill.FeatureDistillation("words", "conv"), x=x)
    trained(student, teacher, distill.FeatureDistillation("words", "words"), x=x)


@advice("distill/logits.py", "Use OutputDistillation('mean_squared_error')")
def test_logits_of_a_regression(told):
    with told():
        distill.distill(net(), net()).compile("sgd", "mse")
    term = distill.OutputDistillation("mean_squared_error")
    distill.distill(net(), net(), term).compile("sgd", "mse")
