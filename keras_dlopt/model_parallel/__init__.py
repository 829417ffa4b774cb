"""One model on several devices: a split of its weights, or of its layers.

| backend | weights split | layers in stages |
|---|---|---|
| JAX | `split_model`, by `keras.distribution` | |
| TensorFlow | `SplitTrainer`, by DTensor | `Pipeline`, by `tf.device` |
"""

from keras_dlopt import moved
from keras_dlopt.model_parallel.dtensor import SplitTrainer
from keras_dlopt.model_parallel.functional import FunctionalStep, TrainState
from keras_dlopt.model_parallel.jax_split import (
    keras_distribution,
    split_model,
)
from keras_dlopt.model_parallel.layout import Layout, automatic_layout
from keras_dlopt.model_parallel.pipeline import Pipeline

__all__ = [
    "FunctionalStep",
    "Layout",
    "Pipeline",
    "SplitTrainer",
    "TrainState",
    "automatic_layout",
    "keras_distribution",
    "split_model",
]

__getattr__ = moved.names(__name__)
