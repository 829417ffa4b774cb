"""Shards, a chosen part, augmentation, averages: python examples/data.py [--smoke]."""

import sys
import tempfile

import keras

from keras_dlopt import data, models

EPOCHS, NAME = (2, "digits") if "--smoke" in sys.argv else (8, "fashion_mnist")
found = data.load(NAME)
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
folder, steps = tempfile.mkdtemp(), len(found.x_train) // 64


def fitted(batches, callbacks=()):
    keras.utils.set_random_seed(0)
    model = models.lenet_300_100(input_shape=found.input_shape)
    model.compile("adam", LOSS, metrics=["accuracy"])
    each = {"epochs": EPOCHS, "steps_per_epoch": steps, "callbacks": list(callbacks)}
    model.fit(batches, verbose=0, shuffle=False, **each)
    return model, model.evaluate(*found.test, verbose=0, return_dict=True)["accuracy"]


print(data.write_shards(found.train, folder))
history = data.select.ExampleHistory(*found.train)
stored = data.read_shards(folder, batch_size=64, shuffle=True).repeat()
print(f"all, from shards: {fitted(stored, [history])[1]:.2%}")
kept = data.select.stratified(history.difficulty(), 0.5, skip=0.05)
part = (one[kept] for one in found.train)
chosen = data.batches(*part, batch_size=64, shuffle=True).repeat()
print(f"half of them, chosen: {fitted(chosen)[1]:.2%}")
more = data.augment.augmented(found.train, data.augment.TrivialAugment(), batch_size=64)
model, accuracy = fitted(more)
averaged = data.augment.TestTimeAugmentation(model).predict(found.x_test, verbose=0)
again = (averaged.argmax(axis=1) == found.y_test).mean()
print(f"augmented: {accuracy:.2%}, averaged over views: {again:.2%}")
