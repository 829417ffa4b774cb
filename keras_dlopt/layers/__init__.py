"""Residual layers and blocks, and batch normalization by the fused kernel."""

from keras_dlopt.layers.batch_normalization import BatchNormalization
from keras_dlopt.layers.blocks import BasicBlock, BottleneckBlock, PreActivationBlock
from keras_dlopt.layers.fused import use_fused
from keras_dlopt.layers.mobile import ConvNeXtBlock, InvertedResidualBlock
from keras_dlopt.layers.operation import OperationLayer
from keras_dlopt.layers.residual import Residual
from keras_dlopt.layers.scale import LayerScale, ReZero, ScaleAndShift
from keras_dlopt.layers.squeeze import SqueezeExcitation
from keras_dlopt.layers.stochastic_depth import StochasticDepth
from keras_dlopt.layers.transformer import (
    ResidualMLPBlock,
    SelfAttention,
    TransformerBlock,
)

__all__ = [
    "BasicBlock",
    "BatchNormalization",
    "BottleneckBlock",
    "ConvNeXtBlock",
    "InvertedResidualBlock",
    "LayerScale",
    "OperationLayer",
    "PreActivationBlock",
    "ReZero",
    "Residual",
    "ResidualMLPBlock",
    "ScaleAndShift",
    "SelfAttention",
    "SqueezeExcitation",
    "StochasticDepth",
    "TransformerBlock",
    "use_fused",
]
