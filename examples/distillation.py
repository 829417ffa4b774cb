"""A small network alone and with a teacher, then in 4 bits with itself as the teacher.

python examples/distillation.py --data fashion_mnist
python examples/distillation.py --smoke
"""

import argparse

import keras

import keras_dlopt as dlopt
from keras_dlopt import distill

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def fit(model, data, epochs):
    """Trains with Adam; returns the accuracy on the test images."""
    model.compile(dlopt.optimizers.Adam(1e-3), LOSS, metrics=["accuracy"])
    model.fit(*data.train, batch_size=64, epochs=epochs, verbose=0)
    return model.evaluate(*data.test, verbose=0, return_dict=True)["accuracy"]


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--data", default="fashion_mnist")
parser.add_argument("--epochs", type=int, default=8)
parser.add_argument("--smoke", action="store_true")
args = parser.parse_args()
data = dlopt.data.load("digits" if args.smoke else args.data)
epochs = 1 if args.smoke else args.epochs
keras.utils.set_random_seed(0)
teacher = dlopt.models.resnet(depth=8, input_shape=data.input_shape)
student = dlopt.models.lenet_300_100(input_shape=data.input_shape)
print(f"teacher {fit(teacher, data, epochs):.2%}")
taught = distill.distill(student, teacher)
print(f"student alone {fit(student, data, epochs):.2%}")
print(f"student with its teacher {fit(taught, data, epochs):.2%}")
recipe = dlopt.Recipe([(dlopt.named("kernel"), dlopt.FakeQuant(bits=4))])
small = dlopt.transform(dlopt.finalize(taught), recipe)
print(f"in 4 bits {fit(distill.distill(small, 'parent'), data, epochs):.2%}")
