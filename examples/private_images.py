"""Images that a key hides from the eye, labels that lie, and what a model still learns.

python examples/private_images.py --data fashion_mnist
python examples/private_images.py --smoke
"""

import argparse

import keras

import keras_dlopt as dlopt
from keras_dlopt.data import obfuscate

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--data", default="fashion_mnist")
parser.add_argument("--smoke", action="store_true")
args = parser.parse_args()
data = dlopt.data.load("digits" if args.smoke else args.data)
hide = obfuscate.Permutation("correct horse battery", data.input_shape)
answers = obfuscate.randomized_response(data.y_train, classes=data.classes, epsilon=3.0)


def accuracy(x, y, x_test):
    """Of a small dense network on test images."""
    keras.utils.set_random_seed(0)
    model = dlopt.models.lenet_300_100(input_shape=data.input_shape)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(dlopt.optimizers.Adam(1e-3), loss, metrics=["accuracy"])
    model.fit(x, y, batch_size=64, epochs=5, verbose=0)
    return model.evaluate(x_test, data.y_test, verbose=0, return_dict=True)["accuracy"]


print(f"as they are {accuracy(data.x_train, data.y_train, data.x_test):.2%}")
hidden = accuracy(hide(data.x_train), data.y_train, hide(data.x_test))
print(f"pixels in the order of a key {hidden:.2%}: it hides from the eye alone")
print(f"labels that lie, epsilon 3 {accuracy(data.x_train, answers, data.x_test):.2%}")
print(f"kept labels {(answers == data.y_train).mean():.2%}")
shares = obfuscate.class_shares(answers, classes=data.classes, epsilon=3.0)
print(f"shares of classes from the answers {shares.round(3)}")
