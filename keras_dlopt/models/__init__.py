"""Reference networks to train and to compress.

The LeNets, the ResNets, Wide-ResNet and the MobileNet are plain Functional graphs of
standard Keras layers with a name each; ConvNeXt and the vision transformer use the
blocks of `keras_dlopt.layers`. All return logits unless `activation` is given.
"""

from keras_dlopt.models.cifar_resnet import (
    resnet,
    resnet20,
    resnet32,
    resnet56,
    resnet110,
)
from keras_dlopt.models.imagenet_resnet import resnet18, resnet34, resnet50
from keras_dlopt.models.lenet import lenet5, lenet_300_100, textbook_cnn
from keras_dlopt.models.light import convnext_small, mobilenet_small, vit_small
from keras_dlopt.models.wide_resnet import wide_resnet

__all__ = [
    "convnext_small",
    "lenet5",
    "lenet_300_100",
    "mobilenet_small",
    "resnet",
    "resnet18",
    "resnet20",
    "resnet32",
    "resnet34",
    "resnet50",
    "resnet56",
    "resnet110",
    "textbook_cnn",
    "vit_small",
    "wide_resnet",
]
