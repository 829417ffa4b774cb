from catalogue import Case
from catalogue.layers import PER_REPLICA
from keras_dlopt import models

SMALL = {"input_shape": (8, 8, 1), "classes": 4}


def _model(name, make, **kwargs):
    kwargs = {"input_shape": SMALL["input_shape"], **kwargs}
    return Case(f"models.{name}", "model", make, **kwargs)


CASES = [
    _model("lenet_300_100", lambda: models.lenet_300_100(**SMALL)),
    _model(
        "lenet5",
        lambda: models.lenet5(input_shape=(16, 16, 1), classes=4),
        input_shape=(16, 16, 1),
    ),
    _model("textbook_cnn", lambda: models.textbook_cnn(**SMALL)),
    _model(
        "resnet",
        lambda: models.resnet(depth=8, width=4, **SMALL),
        exempt=PER_REPLICA,
    ),
    _model(
        "wide_resnet",
        lambda: models.wide_resnet(depth=10, widen=1, **SMALL),
        exempt=PER_REPLICA,
    ),
    _model(
        "mobilenet_small",
        lambda: models.mobilenet_small(width=4, blocks=(1, 2), **SMALL),
        exempt=PER_REPLICA,
    ),
    _model(
        "convnext_small",
        lambda: models.convnext_small(
            width=4, blocks=(1, 1), kernel_size=3, survival=0.8, seed=1, **SMALL
        ),
        random=True,
    ),
    _model(
        "vit_small",
        lambda: models.vit_small(patch=2, units=8, depth=1, heads=2, **SMALL),
    ),
]
