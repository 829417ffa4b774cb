"""The optimizers."""

import keras_dlopt as dlopt  # noqa: F401
from catalogue import Case
from keras_dlopt import optimizers

CASES = [
    Case("SGD", "optimizer", lambda: optimizers.SGD(0.05, momentum=0.9)),
    Case("RMSprop", "optimizer", lambda: optimizers.RMSprop(0.01, momentum=0.5)),
    Case("Adam", "optimizer", lambda: optimizers.Adam(0.01)),
    Case("AdamW", "optimizer", lambda: optimizers.AdamW(0.01, weight_decay=0.1)),
    Case("Adagrad", "optimizer", lambda: optimizers.Adagrad(0.05)),
    Case(
        "Adam_accumulating",
        "optimizer",
        lambda: optimizers.Adam(
            0.01,
            gradient_accumulation_steps=2,
            use_ema=True,
            ema_overwrite_frequency=3,
            global_clipnorm=0.5,
        ),
    ),
    Case(
        "AdamW_options",
        "optimizer",
        lambda: optimizers.AdamW(
            0.01,
            cautious=True,
            centralize=True,
            adaptive_clip=0.05,
            skip_nonfinite=True,
        ),
    ),
]
