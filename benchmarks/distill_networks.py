"""The networks of `distill_bars.py`: how each trains, alone and with its teacher."""

import dataclasses
import functools
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from distill_copies import Copies

import keras_dlopt as dlopt
from keras_dlopt import distill

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def perceptron(width, dropout=0.0):
    x = inputs = keras.Input((28, 28, 1))
    x = keras.layers.Flatten()(x)
    for _ in range(2):
        x = keras.layers.Dense(width, activation="relu")(x)
        if dropout:
            x = keras.layers.Dropout(dropout)(x)
    return keras.Model(inputs, keras.layers.Dense(10, dtype="float32")(x))


def compiled(model, copies, args, epochs, loss=LOSS):
    steps = epochs * (len(copies.x) // args.batch_size)
    rate = dlopt.schedules.OneCycle(args.rate, steps=steps)
    model.compile(keras.optimizers.Adam(rate), loss)
    return model


def error(model, data):
    guess = model.predict(data[0], batch_size=1000, verbose=0).argmax(1)
    return int(np.sum(guess != data[1]))


def kept(path, make):
    """A model from a file, or made and written."""
    if path.exists():
        return keras.saving.load_model(path, compile=False)
    model = make()
    model.save(path)
    return model


def errors(model, data):
    return {
        "val_error": round(100 * error(model, data.val) / len(data.val[1]), 3),
        "test_error": round(100 * error(model, data.test) / len(data.test[1]), 3),
    }


def of_size(data, size):
    """A data set with its images made smaller."""
    if size == data.input_shape[0]:
        return data
    made = {
        part: np.concatenate(
            [
                keras.ops.convert_to_numpy(
                    keras.ops.image.resize(
                        x, (size, size), antialias=True, data_format="channels_last"
                    )
                )
                for x in np.array_split(getattr(data, part), 10)
            ]
        )
        for part in ("x_train", "x_val", "x_test")
    }
    return dataclasses.replace(data, **made)


def taught_by(teacher, student, args):
    return distill.distill(
        student, teacher, distill.LogitsDistillation(args.temperature), copy=False
    )


class Hinton:
    """The perceptrons of Hinton 2015."""

    def __init__(self, data, args):
        self.data, self.args = data, args
        keras.config.set_dtype_policy("mixed_bfloat16")
        self.moved = Copies(*data.train, args.copies, "turn")
        self.plain = Copies(*data.train)
        self.fresh = Copies(*data.train, args.narrowed_epochs, "turn", 102)
        path = args.cache / f"hinton_{args.teacher_epochs}_{args.dropout}.keras"
        self.teacher = kept(path, self.train_teacher)
        self.about = {"teacher": errors(self.teacher, data)}

    def train_teacher(self):
        keras.utils.set_random_seed(100)
        teacher = perceptron(1200, self.args.dropout)
        compiled(teacher, self.moved, self.args, self.args.teacher_epochs)
        self.moved.fit(teacher, self.args, epochs=self.args.teacher_epochs, seed=100)
        return teacher

    @functools.cached_property
    def longer(self):
        """The teacher trained on, over moves of its own."""
        args = self.args

        def make():
            keras.utils.set_random_seed(101)
            copies = Copies(*self.data.train, args.more_epochs, "turn", 101)
            teacher = perceptron(1200, args.dropout)
            teacher.set_weights(self.teacher.get_weights())
            compiled(teacher, copies, args, args.more_epochs)
            copies.fit(teacher, args, epochs=args.more_epochs, seed=101)
            return teacher

        name = f"hinton_{args.teacher_epochs}_{args.dropout}_{args.more_epochs}.keras"
        teacher = kept(args.cache / name, make)
        self.about["teacher_trained_on"] = errors(teacher, self.data)
        return teacher

    def narrowed(self):
        """A student of the strongest units of the teacher that was trained on."""
        student = perceptron(800)
        small, _ = dlopt.surgery.prune_channels(
            self.longer, parameters=student.count_params(), max_share=1 / 3
        )
        student.set_weights(small.get_weights())
        return student

    def run_narrowed(self, seed):
        args, copies, student = self.args, self.fresh, self.narrowed()
        path = args.cache / f"hinton_narrowed_{args.more_epochs}.npz"
        outputs, epochs = copies.outputs(self.longer, path), args.narrowed_epochs
        model = taught_by(self.longer, student, args)
        compiled(model, copies, args, epochs, None)
        copies.fit(model, args, epochs=epochs, seed=seed, outputs=outputs)
        return {"epochs": epochs, **errors(student, self.data)}

    def run(self, kind, seed):
        args = self.args
        keras.utils.set_random_seed(seed)
        copies = self.plain if kind in ("alone", "distilled") else self.moved
        if kind == "narrowed":
            return self.run_narrowed(seed)
        student, outputs, epochs = perceptron(800), None, args.alone_epochs
        model, loss = student, LOSS
        if kind.startswith("distilled"):
            path = args.cache / f"hinton_{kind}.npz"
            outputs = copies.outputs(self.teacher, path)
            model, loss = taught_by(self.teacher, student, args), None
        if kind != "alone":
            epochs = args.epochs
        compiled(model, copies, args, epochs, loss)
        copies.fit(model, args, epochs=epochs, seed=seed, outputs=outputs)
        return {"epochs": epochs, **errors(student, self.data)}


class Fashion:
    """LeNet-5 with a ResNet-20 as teacher."""

    def __init__(self, data, args):
        self.data = data = of_size(data, args.size)
        self.args = args
        keras.config.set_dtype_policy("mixed_bfloat16")
        self.moved = Copies(*data.train, args.copies, "flip")
        self.plain = Copies(*data.train)
        path = args.cache / f"fashion_{args.size}_{args.teacher_epochs}.keras"
        self.teacher = kept(path, self.train_teacher)
        self.about = {"teacher": errors(self.teacher, data)}

    def train_teacher(self):
        epochs, batch_size = self.args.teacher_epochs, self.args.batch_size
        keras.utils.set_random_seed(100)
        copies = Copies(*self.data.train, epochs, "flip", 100)
        teacher = dlopt.models.resnet20(input_shape=self.data.input_shape, classes=10)
        dlopt.layers.use_fused(teacher)
        steps = epochs * (len(copies.x) // batch_size)
        rate = dlopt.schedules.OneCycle(0.2, steps=steps)
        optimizer = dlopt.optimizers.SGD(
            rate, momentum=0.9, nesterov=True, weight_decay=1e-3
        )
        teacher.compile(optimizer, LOSS)
        copies.fit(teacher, self.args, epochs=epochs, seed=100)
        return teacher

    def run(self, kind, seed):
        args = self.args
        keras.utils.set_random_seed(seed)
        copies = self.plain if kind.endswith("plain") else self.moved
        model = student = dlopt.models.lenet5(input_shape=self.data.input_shape)
        outputs, loss = None, LOSS
        if kind.startswith("distilled"):
            path = args.cache / f"fashion_{args.size}_{kind}.npz"
            outputs = copies.outputs(self.teacher, path)
            model, loss = taught_by(self.teacher, student, args), None
        compiled(model, copies, args, args.epochs, loss)
        copies.fit(model, args, epochs=args.epochs, seed=seed, outputs=outputs)
        return errors(student, self.data)
