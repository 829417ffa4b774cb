"""A residual network of equal blocks: apart, one block called often, and plain again.

python examples/sharing.py [--smoke]
"""

import argparse
import pathlib
import tempfile

import keras

import keras_dlopt as dlopt

L = keras.layers
parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--smoke", action="store_true")
smoke = parser.parse_args().smoke
data = dlopt.data.load("digits" if smoke else "mnist")
keras.utils.set_random_seed(0)
inputs = keras.Input(data.input_shape)
x = L.Dense(64, activation="relu")(L.Flatten()(inputs))
for k in range(4):
    up = L.Dense(128, activation="relu", name=f"block{k}_up")(x)
    x = x + L.Dense(64, name=f"block{k}_down")(up)
net = keras.Model(inputs, L.Dense(data.classes)(x))
recipe = dlopt.shared_recipe(net, [f"block{k}" for k in range(4)], start="first")
tied = dlopt.transform(net, recipe)
for model in (net, tied):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(dlopt.optimizers.Adam(), loss, metrics=["accuracy"])
    model.fit(*data.train, batch_size=64, epochs=1 if smoke else 5, verbose=0)
    right = model.evaluate(*data.test, verbose=0)[1]
    print(f"{model.count_params():,} numbers, accuracy {right:.2%}")
plain, one = dlopt.finalize(tied), dlopt.shared_layers(tied)
for name, model in (("apart", net), ("equal", plain), ("one", one)):
    path = pathlib.Path(tempfile.mkdtemp()) / "model"
    model.save(f"{path}.keras")
    dlopt.save_compressed(model, f"{path}.dlopt")
    for end in (".keras", ".dlopt"):
        print(f"{name}: {path.with_suffix(end).stat().st_size:,} bytes in {end}")
