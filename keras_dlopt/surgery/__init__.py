"""Models rebuilt from smaller layers."""

from keras_dlopt.surgery.factorize import factorize
from keras_dlopt.surgery.hashing import HashedKernel, hashed_layers

__all__ = ["HashedKernel", "factorize", "hashed_layers"]
