"""Fashion-MNIST to MNIST with few labels: from scratch, unfrozen by stages, LoRA.

python examples/transfer.py [--smoke]
"""

import argparse

import keras

import keras_dlopt as dlopt
from keras_dlopt import adapt

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def fit(model, data, epochs, callbacks=(), **options):
    """Trains with Adam; returns the accuracy on the test images."""
    model.compile(dlopt.optimizers.Adam(3e-3, **options), LOSS, metrics=["accuracy"])
    model.fit(*data.train, epochs=epochs, callbacks=list(callbacks), verbose=0)
    return model.evaluate(*data.test, verbose=0, return_dict=True)["accuracy"]


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--smoke", action="store_true")
smoke = parser.parse_args().smoke
source = dlopt.data.load("digits" if smoke else "fashion_mnist")
target = dlopt.data.load("digits" if smoke else "mnist").take(100 if smoke else 1_000)
keras.utils.set_random_seed(0)
trained = dlopt.models.lenet_300_100(input_shape=source.input_shape)
fit(trained, source, 1 if smoke else 4)
scratch = dlopt.models.lenet_300_100(input_shape=target.input_shape)
print(f"from scratch {fit(scratch, target, 3 if smoke else 12):.2%}")
tuned = adapt.new_head(trained, adapt.Labels(target.y_train))
stages = adapt.GradualUnfreezing(adapt.top_down(tuned))
rates = adapt.layer_rates(tuned, 0.8)
accuracy = fit(tuned, target, 3 if smoke else 12, [stages], multipliers=rates)
print(f"by stages {accuracy:.2%}\n{adapt.moved(trained, tuned)}")
tuned = adapt.new_head(trained, adapt.Labels(target.y_train))
small = dlopt.transform(tuned, adapt.lora_recipe(tuned, 8))
print(f"LoRA {fit(small, target, 3 if smoke else 12):.2%}")
