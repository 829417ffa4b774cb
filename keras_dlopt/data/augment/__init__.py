"""More from the same images: policies on `tf.data`, and averaged predictions.

What is drawn depends on the seed, the epoch and the number of the batch alone: the same
images come at any `steps_per_execution`, on any number of replicas (each gets its part
of the global batch), and in a run that goes on at an epoch.
"""

from keras_dlopt.data.augment.averaging import TestTimeAugmentation
from keras_dlopt.data.augment.inside import AugmentationLayer
from keras_dlopt.data.augment.pipeline import augmented
from keras_dlopt.data.augment.trivial import TrivialAugment

__all__ = ["AugmentationLayer", "TestTimeAugmentation", "TrivialAugment", "augmented"]
