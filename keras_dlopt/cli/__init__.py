"""The command `keras-dlopt`: reads arguments, shows results, holds no logic."""

from keras_dlopt.cli.app import main

__all__ = ["main"]
