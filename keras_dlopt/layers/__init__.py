"""Residual layers and blocks, and batch normalization by the fused kernel."""

from keras_dlopt.layers.batch_normalization import BatchNormalization
from keras_dlopt.layers.blocks import BasicBlock, BottleneckBlock, PreActivationBlock
from keras_dlopt.layers.fused import use_fused
from keras_dlopt.layers.residual import Residual
from keras_dlopt.layers.scale import LayerScale, ReZero
from keras_dlopt.layers.stochastic_depth import StochasticDepth

__all__ = [
    "BasicBlock",
    "BatchNormalization",
    "BottleneckBlock",
    "LayerScale",
    "PreActivationBlock",
    "ReZero",
    "Residual",
    "StochasticDepth",
    "use_fused",
]
