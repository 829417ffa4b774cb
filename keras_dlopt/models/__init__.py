"""Reference networks, as plain Functional graphs of standard Keras layers."""

from keras_dlopt.models.cifar_resnet import (
    resnet,
    resnet20,
    resnet32,
    resnet56,
    resnet110,
)
from keras_dlopt.models.lenet import lenet5, lenet_300_100, textbook_cnn

__all__ = [
    "lenet5",
    "lenet_300_100",
    "resnet",
    "resnet20",
    "resnet32",
    "resnet56",
    "resnet110",
    "textbook_cnn",
]
