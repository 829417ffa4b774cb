from catalogue import Case
from keras_dlopt.data import augment

CASES = [
    Case(
        "AugmentationLayer",
        "layer",
        lambda: augment.AugmentationLayer(augment.TrivialAugment(wide=True), seed=1),
        input_shape=(6, 6, 3),
        images=True,
        exempt={"jax": "refused by name: the operations are TensorFlow's"},
    ),
]
