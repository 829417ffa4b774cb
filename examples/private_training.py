"""A small network that learns digits and keeps each of them private.

python examples/private_training.py --data mnist
python examples/private_training.py --smoke
"""

import argparse

import keras

import keras_dlopt as dlopt

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--data", default="mnist")
parser.add_argument("--epsilon", type=float, default=3.0)
parser.add_argument("--smoke", action="store_true")
args = parser.parse_args()
data = dlopt.data.load("digits" if args.smoke else args.data)
batch, epochs = (256, 2) if args.smoke else (2048, 20)
keras.utils.set_random_seed(0)
layers = keras.layers
# tanh holds gradients in bounds, so that less of them is clipped (Papernot 2021).
model = keras.Sequential(
    [
        keras.Input(data.input_shape),
        layers.Conv2D(16, 3, strides=2, activation="tanh", padding="same"),
        layers.Conv2D(32, 3, strides=2, activation="tanh", padding="same"),
        layers.Flatten(),
        layers.Dense(32, activation="tanh"),
        layers.Dense(data.classes),
    ]
)
model = dlopt.privacy.private(model, epsilon=args.epsilon, delta=1e-5, clip=0.1)
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
model.compile(keras.optimizers.SGD(10.0, momentum=0.9), loss, metrics=["accuracy"])
model.fit(*data.train, batch, epochs, verbose=0)
accuracy = model.evaluate(*data.test, verbose=0, return_dict=True)["accuracy"]
print(f"accuracy {accuracy:.2%} at epsilon {model.epsilon():.2f}")
print(f"noise {model.ledger[0].noise_multiplier:.2f}, {model.ledger[0].steps} steps")
