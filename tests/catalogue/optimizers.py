"""The optimizers."""

import keras

from catalogue import Case
from keras_dlopt import optimizers


def _small_model():
    return keras.Sequential(
        [
            keras.Input((8,)),
            keras.layers.Dense(8, activation="relu"),
            keras.layers.Dense(4),
        ]
    )


def _optimizer(name, make):
    return Case(name, "optimizer", make)


def _sam(name, make):
    return Case(
        name,
        "model",
        make,
        exempt={
            "replicas": "one device only; fit raises ModelError under a strategy",
            "jax": "trains on TensorFlow only; fit raises ModelError elsewhere",
        },
    )


CASES = [
    _optimizer("SGD", lambda: optimizers.SGD(0.05, momentum=0.9)),
    _optimizer("RMSprop", lambda: optimizers.RMSprop(0.01, momentum=0.5)),
    _optimizer("Adam", lambda: optimizers.Adam(0.01)),
    _optimizer("AdamW", lambda: optimizers.AdamW(0.01, weight_decay=0.1)),
    _optimizer("Adagrad", lambda: optimizers.Adagrad(0.05)),
    _optimizer(
        "Adam_accumulating",
        lambda: optimizers.Adam(
            0.01,
            gradient_accumulation_steps=2,
            use_ema=True,
            ema_overwrite_frequency=3,
            global_clipnorm=0.5,
        ),
    ),
    _optimizer(
        "AdamW_options",
        lambda: optimizers.AdamW(
            0.01,
            cautious=True,
            centralize=True,
            adaptive_clip=0.05,
            skip_nonfinite=True,
        ),
    ),
    _optimizer("GradientDescent", lambda: optimizers.GradientDescent(0.1, batches=4)),
    _optimizer("RAdam", lambda: optimizers.RAdam(0.01)),
    _optimizer("AdaBelief", lambda: optimizers.AdaBelief(0.01, epsilon=1e-8)),
    _optimizer("Adan", lambda: optimizers.Adan(0.01)),
    _optimizer("AdEMAMix", lambda: optimizers.AdEMAMix(0.01, warmup=10)),
    _optimizer("ADOPT", lambda: optimizers.ADOPT(0.01)),
    _optimizer("MARS", lambda: optimizers.MARS(0.01)),
    _optimizer("Prodigy", lambda: optimizers.Prodigy(initial_distance=1e-3)),
    _optimizer("LARS", lambda: optimizers.LARS(1.0, trust=0.01, weight_decay=1e-3)),
    _optimizer("SOAP", lambda: optimizers.SOAP(0.01, frequency=2, epsilon=1e-4)),
    _optimizer("LBFGS", lambda: optimizers.LBFGS(0.1, memory=4)),
    _optimizer("Adam8bit", lambda: optimizers.Adam8bit(0.01, min_size=16)),
    _optimizer(
        "ScheduleFree",
        lambda: optimizers.ScheduleFree(optimizers.Adam(0.01, beta_1=0.0)),
    ),
    _optimizer(
        "Lookahead",
        lambda: optimizers.Lookahead(optimizers.SGD(0.05), period=2),
    ),
    _sam("SAM", lambda: optimizers.SAM(_small_model())),
    _sam("ASAM", lambda: optimizers.ASAM(_small_model())),
]
