"""One rule for each kind of layer, and the table of them."""

from keras_dlopt.surgery.rules.table import RULES

__all__ = ["RULES"]
