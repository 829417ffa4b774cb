"""Deep real architectures: a third of what is free leaves."""

import keras
import numpy as np
import pytest

from keras_dlopt.surgery import dependencies
from keras_dlopt.surgery.removal import without
from support.removing import drawn, masked, randomized, relative

# name -> its image size, the share of groups that are free, what holds others
NETWORKS = {
    "Xception": (71, 0.99, set()),
    "MobileNetV2": (64, 0.99, set()),
    "MobileNetV3Small": (64, 0.99, set()),
    "EfficientNetB0": (64, 0.99, {"Normalization"}),
    "DenseNet121": (64, 0.99, set()),
    "ResNet50": (64, 0.99, set()),
    "InceptionV3": (75, 0.99, set()),
    "ConvNeXtTiny": (64, 0.7, {"Normalization", "LayerNormalization"}),
    "NASNetMobile": (64, 0.99, set()),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_a_third_of_the_free_channels_leaves(name):
    size, share, kinds = NETWORKS[name]
    model = getattr(keras.applications, name)(
        weights=None, input_shape=(size, size, 3), classes=7, classifier_activation=None
    )
    randomized(model)
    found = dependencies(model)
    assert len(found.free) > share * len(found.groups)
    assert {pin.kind for pin in found.pinned} == {"Input", "Output"} | kinds
    gone = drawn(found, 0.3, np.random.default_rng(0))
    small = without(found, gone)
    assert small.count_params() < 0.75 * model.count_params()
    x = np.random.default_rng(1).uniform(0, 255, (2, size, size, 3)).astype("float32")
    zeroed, left, whole = (
        net.predict(x, verbose=0) for net in (masked(model, found, gone), small, model)
    )
    assert relative(zeroed, left) < 1e-5
    assert relative(zeroed, whole) > 1e-2  # it did something
