"""Keras 3 models that train better, get smaller and run faster."""

__version__ = "0.1.0"
